"""Real processes as Slurm, Open MPI and Kubernetes start them: they meet, and take their GPUs."""

import os
import subprocess
import sys

import pytest

from mixtrain_jax.config import load
from tests.harness import free_port

pytestmark = pytest.mark.multidevice

PROGRAM = """
import jax
from mixtrain_jax.runtime import parallel, processes, watch
processes.start()
print(parallel.describe(), "|", jax.config.values["jax_cuda_visible_devices"], flush=True)
watch.finish()
"""


def start(variables, prefix=()):
    """One process with four fake devices, which sees four GPUs."""
    fake = {
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4",
    }
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", PROGRAM],
        cwd=load.ROOT,
        env=os.environ | fake | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process):
    """What a process has printed to its good end."""
    output, trouble = process.communicate(timeout=300)
    assert process.returncode == 0, trouble
    return [line for line in output.splitlines() if not line.startswith("[Gloo]")]


def slurm(task):
    """Two nodes with a task each: by itself JAX would leave each task one GPU of its node."""
    return {
        "SLURM_JOB_ID": str(os.getpid() % 4096), "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2",
        "SLURM_PROCID": str(task), "SLURM_LOCALID": "0", "SLURM_NODEID": str(task),
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }  # fmt: skip


def mpirun(task):
    """The same of Open MPI."""
    return {
        "OMPI_MCA_orte_hnp_uri": f"{os.getpid() % 4096 * 4096}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(task),
        "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    }  # fmt: skip


@pytest.mark.parametrize("launcher", [slurm, pytest.param(mpirun, marks=pytest.mark.slow)])
def test_a_lone_task_of_a_node_takes_all_its_gpus(launcher):
    for process in [start(launcher(task)) for task in range(2)]:
        assert said(process) == ["2 hosts, 8 devices (cpu), 4 on this host | 0,1,2,3"]


STUB = '''
"""A cluster's API that knows one pod, of a JobSet of two."""
import sys, types
made = lambda **values: types.SimpleNamespace(**values)
pod = made(
    metadata=made(name="run-hosts-0-x", labels={"job-name": "run-hosts-0"},
                  owner_references=[made(controller=True, kind="Job")]),
    spec=made(subdomain="run"),
)
job = made(
    metadata=made(name="run-hosts-0", labels={"jobset.sigs.k8s.io/jobset-name": "run"}),
    spec=made(parallelism=2),
)
config = made(load_incluster_config=lambda: None)
client = made(
    CoreV1Api=lambda: made(list_namespaced_pod=lambda **which: made(items=[pod])),
    BatchV1Api=lambda: made(read_namespaced_job=lambda **which: job),
    exceptions=made(ApiException=RuntimeError),
)
'''
POD = """
set -e
mount -t tmpfs none /run
mkdir -p /run/secrets/kubernetes.io/serviceaccount
echo default > /run/secrets/kubernetes.io/serviceaccount/namespace
printf '127.0.0.1 localhost run-hosts-0-0.run %s\\n' "$(hostname)" > /run/hosts
mount --bind /run/hosts /etc/hosts
exec "$@"
"""


@pytest.mark.slow
def test_the_pods_of_a_jobset_find_each_other(tmp_path):
    """JAX's own search, with files and names as in a pod; only the cluster's API is a stub."""
    (tmp_path / "kubernetes.py").write_text(STUB)
    port = str(free_port())
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", POD, "sh"]
    variables = {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1", "HOSTNAME": "localhost",
        "PYTHONPATH": str(tmp_path), "JAX_COORDINATOR_PORT": port,
    }  # fmt: skip
    pods = [start(variables | {"JOB_COMPLETION_INDEX": str(i)}, inside) for i in range(2)]
    for pod in pods:
        (line,) = said(pod)
        assert line.startswith("2 hosts, 8 devices (cpu), 4 on this host | ")
