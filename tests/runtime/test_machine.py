"""What a machine has: memory in a container, where files that were read do not count as taken."""

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
