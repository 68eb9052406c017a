"""The files of docs/cluster: their exit codes are the program's, their flags are known."""

import re

import yaml

from mixtrain_jax import errors, train
from mixtrain_jax.config import load
from mixtrain_jax.config.resolve import check_batch_size

FOLDER = load.ROOT / "docs" / "cluster"


def test_a_jobset_fails_where_somebody_has_to_look_and_restarts_otherwise():
    spec = yaml.safe_load((FOLDER / "jobset.yaml").read_text())["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # JobSet's webhook takes no other names.
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (fails,) = job["podFailurePolicy"]["rules"]
    codes = fails["onExitCodes"]
    assert (fails["action"], codes["operator"]) == ("FailJob", "In")
    assert set(codes["values"]) == {errors.BUG, errors.BAD_INPUT}
    assert job["backoffLimit"] == 0  # any other end fails the job, which restarts all hosts
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert codes["containerName"] == container["name"]
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert_starts(container["command"][3:], chips)


def test_a_slurm_job_is_queued_again_after_the_same_codes():
    text = (FOLDER / "train.sbatch").read_text()
    (codes,) = re.findall(r"^  ([\d |]+)\) scontrol requeue", text, re.M)
    assert tuple(map(int, codes.split(" | "))) == errors.RESTARTABLE
    nodes, gpus = (
        int(re.search(rf"^#SBATCH --{name}=(\d+)", text, re.M)[1])
        for name in ("nodes", "gpus-per-node")
    )
    assert_starts(re.findall(r"--(?:config[.\w]*|workdir)=\S+", text), nodes * gpus)


def assert_starts(flags, devices):
    """The flags are known, and such a run has weights to start from and a batch for its devices."""
    fields = dict(flag[9:].split("=", 1) for flag in flags if flag.startswith("--config."))
    read = train.parse().parse_args(
        [flag for flag in flags if flag.startswith("--") and not flag.startswith("--config.")]
    )
    config = load.load(str(load.ROOT / read.config), fields)
    assert read.workdir and config.init_from
    check_batch_size("batch_size", config.batch_size, devices, 2 * config.accumulate)
    assert config.eval.batch_size is None  # as many as there are devices
