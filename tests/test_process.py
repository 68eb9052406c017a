"""How many devices a command makes of the CPU."""

import subprocess
import sys

import pytest

from mixtrain_jax import process
from mixtrain_jax.config import load

SMALL = "configs/quickstart.py"


def devices(name, changes=(), training=True, cores=2, **environment):
    config = load.load(str(load.ROOT / name), list(changes))
    return process.cpu_devices(config, training, cores, environment)


@pytest.mark.parametrize(
    ("name", "changes", "training", "expected"),
    [
        (SMALL, [], True, 2),
        (SMALL, ["batch_size=6"], True, 1),  # three images per device, half of them mixed
        (f"{SMALL}:plain", ["batch_size=6"], True, 2),
        (SMALL, ["batch_size=6"], False, 2),
        (SMALL, ["accumulate=4"], True, 1),
        (SMALL, ["eval.batch_size=1"], True, 1),
        (SMALL, ["model.backbone.base_channels=64"], True, 1),
        ("configs/faster.py", [], True, 1),
        ("configs/faster_r50.py", [], True, 1),
    ],
)
def test_two_for_a_small_model_whose_batches_can_be_shared(name, changes, training, expected):
    assert devices(name, changes, training) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_NUM_CPU_DEVICES": "1"},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        {"SLURM_STEP_NUM_TASKS": "2"},
    ],
)
def test_who_decides_otherwise_is_heard(environment):
    assert devices(SMALL, **environment) == 1
    assert devices(SMALL, cores=1) == 1
    assert process.cpu_devices(None, True, 2, {}) == 1


def test_jax_has_as_many():
    program = (
        "import os\n"
        "os.environ.pop('XLA_FLAGS'); os.environ.pop('JAX_NUM_CPU_DEVICES', None)\n"
        "os.sched_getaffinity = lambda _: {0, 1}\n"
        "from mixtrain_jax import process\n"
        "from mixtrain_jax.config import load\n"
        "process.prepare(load.load('configs/quickstart.py'), training=True)\n"
        "import jax; print(jax.local_device_count())"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=load.ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "2\n", done.stderr
