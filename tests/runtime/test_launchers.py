"""Who started a process beside others, and which GPUs it takes."""

import pytest

from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import launchers


def slurm(tasks_per_node, **variables):
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}
    return step | {"SLURM_STEP_TASKS_PER_NODE": tasks_per_node} | variables


def mpirun(tasks, task="0", **variables):
    return {
        "OMPI_COMM_WORLD_SIZE": "8",
        "OMPI_COMM_WORLD_LOCAL_SIZE": tasks,
        "OMPI_COMM_WORLD_LOCAL_RANK": task,
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.0.0.1:34911",
    } | variables


@pytest.mark.parametrize(
    ("variables", "gpus", "expected"),
    [
        (slurm("1(x4)"), 8, list(range(8))),
        (slurm("1(x4)", CUDA_VISIBLE_DEVICES="4,5,6,7"), 8, [0, 1, 2, 3]),
        (slurm("4(x2)", SLURM_LOCALID="3"), 4, [3]),
        (slurm("4", SLURM_LOCALID="3", SLURM_GPUS_PER_TASK="1", CUDA_VISIBLE_DEVICES="3"), 4, [0]),
        (slurm("1,4", SLURM_NODEID="1", SLURM_LOCALID="2"), 4, [2]),
        (
            slurm("4", SLURM_LOCALID="2", SLURM_GPUS_PER_TASK="h100:1", CUDA_VISIBLE_DEVICES="0"),
            4,
            [0],
        ),
        (slurm("2", SLURM_TRES_PER_TASK="cpu=4,gres/gpu=2", CUDA_VISIBLE_DEVICES="0,1"), 4, [0, 1]),
        (slurm("4", SLURM_LOCALID="2", SLURM_GPUS_ON_NODE="4", CUDA_VISIBLE_DEVICES="2"), 4, [0]),
        (slurm("4", SLURM_LOCALID="2", SLURM_GPUS_ON_NODE="4"), 4, [2]),
        (slurm("2"), 0, None),
        (slurm("2", CUDA_VISIBLE_DEVICES=""), 4, None),
        (mpirun("1"), 8, list(range(8))),
        (mpirun("4", "3"), 4, [3]),
        (mpirun("2"), 0, None),
    ],
)
def test_a_lone_task_takes_all_and_others_one_each(variables, gpus, expected):
    assert launchers.found(variables, gpus)["local_device_ids"] == expected


@pytest.mark.parametrize("variables", [slurm("2(x8)"), mpirun("2")])
def test_tasks_that_cannot_share_are_told_what_to_do(variables):
    with pytest.raises(UserError, match=r"this node has 2 tasks and 4 GPUs .*--ntasks-per-node=4"):
        launchers.found(variables, 4)


def test_processes_that_flags_name_take_their_launchers_gpus():
    five = mpirun("4", "3")
    del five["OMPI_MCA_orte_hnp_uri"]  # Open MPI 5, which needs the flags
    assert launchers.local_devices(five, 4) == [3]
    assert launchers.local_devices(slurm("1(x4)"), 8) == list(range(8))
    own = five | {"CUDA_VISIBLE_DEVICES": "6,7"}  # of a script that mpirun runs
    assert launchers.local_devices(own, 8) == [0, 1]
    assert launchers.local_devices(five | {"CUDA_VISIBLE_DEVICES": "3"}, 8) == [0]
    assert launchers.local_devices(five | {"JAX_PLATFORMS": "cpu"}, 3) is None
    assert launchers.local_devices({}, 8) is None  # by hand: all that are visible
    assert launchers.tasks_here(five) == (4, 3) and launchers.tasks_here({}) == (1, 0)


def test_the_launcher_says_how_the_processes_meet(monkeypatch):
    assert launchers.found(slurm("4"), 0)["cluster_detection_method"] == "slurm"
    assert launchers.found(mpirun("4"), 0)["cluster_detection_method"] == "ompi"
    with pytest.raises(UserError, match="--process=.OMPI_COMM_WORLD_RANK"):
        launchers.found({"OMPI_COMM_WORLD_SIZE": "2"}, 0)
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: name)
    assert launchers.found(pod, 4) == {}
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)
    assert launchers.found(pod, 4) is None


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},  # in a job, and not in a step
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a pod that is not one of several
    ],
)
def test_a_lone_process_joins_nobody(variables):
    assert launchers.found(variables, 8) is None
