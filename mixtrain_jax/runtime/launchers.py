"""Who started this process beside others, and which of its machine's GPUs it takes.

JAX finds coordinator and ranks itself under Slurm, Open MPI and Kubernetes. It would leave each
task of Slurm and Open MPI one GPU, that of its number on the node, also where a node has one task
and eight GPUs; so the GPUs are named here. Cloud TPUs are found by JAX.
"""

import glob
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from mixtrain_jax.errors import UserError


def found(variables: Mapping[str, str], gpus: int) -> dict[str, Any] | None:
    """How `jax.distributed.initialize` joins the processes that a launcher started with this one.

    Args:
      variables: of the process's environment.
      gpus: how many the machine has.

    Returns:
      Its keyword arguments; None where no launcher started several processes.

    Raises:
      UserError: the tasks of a node cannot share its GPUs equally, or this Open MPI does not tell
        its processes where they meet.
    """
    if _in_slurm(variables):
        return {
            "cluster_detection_method": "slurm",
            "local_device_ids": local_devices(variables, gpus),
        }
    if _in_open_mpi(variables):
        if "OMPI_MCA_orte_hnp_uri" not in variables:
            raise UserError(
                "Open MPI 5 does not tell its processes where they meet; give each "
                "--coordinator=HOST:PORT --processes=$OMPI_COMM_WORLD_SIZE "
                "--process=$OMPI_COMM_WORLD_RANK"
            )
        return {
            "cluster_detection_method": "ompi",
            "local_device_ids": local_devices(variables, gpus),
        }
    # A pod of an Indexed job, as JobSets make them; JAX asks the cluster's API by this package.
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= variables.keys()
    if indexed and importlib.util.find_spec("kubernetes") is not None:
        return {}
    return None


def on_cloud_tpu(variables: Mapping[str, str]) -> bool:
    """Whether this machine has TPUs and JAX means to use them."""
    wanted = variables.get("JAX_PLATFORMS", "tpu").split(",")
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None


def gpus() -> int:
    """How many GPUs this machine has, whoever may use them."""
    return len(glob.glob("/dev/nvidia[0-9]*"))


def local_devices(variables: Mapping[str, str], present: int) -> list[int] | None:
    """The GPUs of a task, by number among those that it can see.

    All of them where the node has one task, or where each task was given its own, by Slurm or a
    script of mpirun's; one each where there are as many tasks as GPUs.

    Args:
      variables: of the process's environment, those of its launcher and CUDA_VISIBLE_DEVICES.
      present: how many GPUs the machine has.

    Returns:
      Their numbers; None where there are none, where they cannot be counted, or where no launcher
      started this process.

    Raises:
      UserError: the tasks of the node cannot share its GPUs equally.
    """
    in_slurm, in_open_mpi = _in_slurm(variables), _in_open_mpi(variables)
    if not (in_slurm or in_open_mpi):
        return None
    tasks, task = tasks_here(variables)
    listed = variables.get("CUDA_VISIBLE_DEVICES")
    visible = present if listed is None else len([each for each in listed.split(",") if each])
    if not visible:
        return None
    asked = variables.get("SLURM_GPUS_PER_TASK") or "gpu" in variables.get(
        "SLURM_TRES_PER_TASK", ""
    )
    on_node = variables.get("SLURM_GPUS_ON_NODE", "")
    shared_out = on_node.isdecimal() and visible * tasks <= int(on_node)  # by --gpu-bind
    if tasks == 1 or asked or shared_out or (listed is not None and visible == 1):
        return list(range(visible))
    if tasks == visible:
        return [task]
    if listed is not None and not in_slurm and visible * tasks <= present:
        return list(range(visible))
    if variables.get("JAX_PLATFORMS") == "cpu":  # they are not used
        return None
    raise UserError(
        f"this node has {tasks} tasks and {visible} GPUs that each can see; start one task a node "
        "(srun --ntasks-per-node=1, mpirun --npernode 1), or one for each GPU "
        f"(--ntasks-per-node={visible}, --npernode {visible})"
    )


def tasks_here(variables: Mapping[str, str]) -> tuple[int, int]:
    """How many tasks a launcher started on this machine, and which of them this one is."""
    if _in_slurm(variables):
        return _tasks_on_node(variables), int(variables["SLURM_LOCALID"])
    if _in_open_mpi(variables):
        return (
            int(variables["OMPI_COMM_WORLD_LOCAL_SIZE"]),
            int(variables["OMPI_COMM_WORLD_LOCAL_RANK"]),
        )
    return 1, 0


def _in_slurm(variables: Mapping[str, str]) -> bool:
    return int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def _in_open_mpi(variables: Mapping[str, str]) -> bool:
    return int(variables.get("OMPI_COMM_WORLD_SIZE", 1)) > 1


def _tasks_on_node(variables: Mapping[str, str]) -> int:
    """How many tasks of a Slurm step run on this node, from a list such as "4(x2),3"."""
    counts: list[int] = []
    for part in variables["SLURM_STEP_TASKS_PER_NODE"].split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE={part} is not understood")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[int(variables.get("SLURM_NODEID", 0))]
