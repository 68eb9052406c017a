import os
import subprocess
import sys

import jax
import pytest

from mixtrain_jax.config import load
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import processes, watch

AHEAD = """
import jax, numpy as np
from mixtrain_jax.runtime import parallel

def step(state, batch):
    return state + parallel.sum_over_devices(batch.sum()), {}, batch

batches = [np.arange(24, dtype=np.float32).reshape(8, 3) + i for i in range(5)]
taken = []

def source():
    for batch in batches:
        taken.append(len(taken))
        yield batch

mapped = parallel.map_step(step)
ahead, plain = (parallel.replicate(np.zeros((), np.float32)) for _ in range(2))
for number, (batch, placed) in enumerate(parallel.prefetch(source())):
    assert batch is batches[number] and len(taken) == min(number + 2, 5)
    assert len(placed.sharding.device_set) == jax.local_device_count() == 4
    ahead, _, seen = mapped(ahead, placed)
    np.testing.assert_array_equal(parallel.gather(seen), batch)
    plain, _, _ = mapped(plain, parallel.shard(batch))
    assert float(ahead) == float(plain)
print(number + 1, "batches")
"""


@pytest.mark.multidevice
def test_prefetched_batches_give_the_same_steps(on_devices):
    assert on_devices(4, AHEAD).endswith("5 batches\n")


SAME = """
import jax, numpy as np
from mixtrain_jax.runtime import parallel

def step(state, batch):
    found = np.float32(1.1) * batch.sum() * state["a"]
    total = parallel.sum_over_devices(found)
    state = {"a": state["a"] + total, "b": state["b"] * state["a"].sum()}
    return state, {"loss": total.sum()}, batch * state["b"][0]

rng = np.random.default_rng(0)
batches = [rng.normal(size=(8, 3)).astype(np.float32) for _ in range(4)]
first = {"a": rng.normal(size=5).astype(np.float32), "b": rng.normal(size=2).astype(np.float32)}
ended = []
for name, mapping in parallel.MAPPINGS.items():
    mapped, state, told = mapping(step), parallel.replicate(first), []
    for batch, placed in parallel.prefetch(iter(batches)):
        state, metrics, output = mapped(state, placed)
        told.append((float(metrics["loss"]), parallel.gather(output)))
    ended.append((jax.device_get(parallel.of_this_host(state)), told))
one, other = ended
jax.tree.map(np.testing.assert_array_equal, one, other)
assert one[1][0][1].shape == (8, 3)
print("the same")
"""


@pytest.mark.multidevice
def test_shard_map_takes_the_steps_of_pmap_bit_by_bit(on_devices):
    assert on_devices(4, SAME) == "the same\n"


TWO = """
import sys
from mixtrain_jax.runtime import processes, watch
processes.start(sys.argv[1], 2, int(sys.argv[2]))
exec(open(sys.argv[3]).read())
watch.finish()
"""


@pytest.mark.multidevice
def test_in_two_processes_too(tmp_path):
    from tests.harness import two_processes

    (tmp_path / "same.py").write_text(SAME)
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
    for said, _ in two_processes(TWO, [[tmp_path / "same.py"]] * 2, XLA_FLAGS=flags):
        assert said.endswith("the same\n")


def test_a_second_run_of_a_program_goes_on_alone(monkeypatch):
    """On a Cloud TPU machine too, where the first would join what it finds."""
    jax.devices()
    monkeypatch.setattr(processes.launchers, "on_cloud_tpu", lambda _: True)
    monkeypatch.setattr(processes, "_initialize", lambda **_: pytest.fail("JAX's devices are up"))
    processes.start()
    watch.finish()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="JAX was used before this run"):
        processes.start()


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_devices_that_are_not_there_are_one_line(shapes, platform):
    done = subprocess.run(
        [sys.executable, "-m", "mixtrain_jax.check", f"--data={shapes}", "--write=recipe.py"],
        env=os.environ | {"JAX_PLATFORMS": platform}, cwd=load.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    line = f"error: JAX_PLATFORMS={platform}: JAX's devices do not start here."
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(line), done.stderr
    assert "Traceback" not in done.stderr


def test_a_peer_that_is_lost_at_the_start_is_no_bad_input(monkeypatch):
    def lost():
        raise RuntimeError("DEADLINE_EXCEEDED: Getting topologies timed out")

    monkeypatch.setattr(jax, "default_backend", lost)
    with pytest.raises(UserError, match="devices do not start here. DEADLINE"):
        processes._start_devices()  # alone nobody can be lost
    monkeypatch.setattr(processes.hosts, "count", lambda: 2)
    with pytest.raises(RuntimeError, match="DEADLINE"):
        processes._start_devices()


def test_a_cpu_that_was_not_meant_is_told(monkeypatch, caplog):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(processes, "cpu_only", lambda: True)
    processes._start_devices()
    assert not caplog.text
    monkeypatch.setattr(processes, "cpu_only", lambda: False)
    processes._start_devices()
    assert "finds none, so this runs on the CPU: JAX_PLATFORMS=cuda" in caplog.text
