"""What a machine has: memory in a container, where files that were read do not count as taken."""

import os
import types

import pytest

from mixtrain_jax.runtime import machine

GIB = 2**30


@pytest.mark.parametrize(
    ("used", "cached", "free"),
    [
        (3, 0, 1),
        (4, 3, 3),  # full of what was read
        (5, 0, None),  # more than may be: not counted as we think
    ],
)
def test_memory_of_a_container(tmp_path, monkeypatch, used, cached, free):
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{used * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\ninactive_file {cached * GIB}\n")
    monkeypatch.setattr(
        machine, "_GROUPS", ((tmp_path, "memory.max", "memory.current", "inactive_file"),)
    )
    monkeypatch.setattr(machine, "_available", lambda: 64 * GIB)
    assert machine._host_memory(2) == (None if free is None else free * GIB // 2)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._host_memory(2) == 32 * GIB
    (tmp_path / "memory.stat").unlink()
    assert machine._host_memory(1) == 64 * GIB


@pytest.mark.parametrize(
    ("capability", "there"), [("7.5", False), ("8.0", True), ("10.0", True), ("gfx942", True)]
)
def test_gpus_before_ampere_have_no_bfloat16(capability, there):
    assert machine._has_bfloat16(types.SimpleNamespace(compute_capability=capability)) == there
    assert machine._has_bfloat16(types.SimpleNamespace())  # CPUs and TPUs tell none


def test_tasks_of_a_node_share_its_cores_and_memory(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(48)))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 48)
    monkeypatch.setattr(machine, "_GROUPS", ())
    monkeypatch.setattr(machine, "_available", lambda: 96 * GIB)
    assert (machine.cores(), machine.free_memory()) == (48, 96 * GIB)
    slurm = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    for name, value in (slurm | {"SLURM_LOCALID": "1"}).items():
        monkeypatch.setenv(name, value)
    assert (machine.cores(), machine.free_memory()) == (12, 24 * GIB)
    assert machine._host_memory(2) == 12 * GIB  # of each device of the task
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "24")  # of which the job has half
    assert machine.cores() == 6
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1})  # bound by Slurm
    assert machine.cores() == 2
