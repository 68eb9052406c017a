"""The estimate of a step's memory: its parts, and XLA's word for small steps."""

import subprocess
import sys

import jax
import pytest

from mixtrain_jax.config import load
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.inspection import memory_estimate
from tests.mixtraining import small


def estimate(bucket=(64, 64), devices=1, **changes):
    config = resolve(small.config(**changes), classes=small.CLASSES)
    return memory_estimate.of_training(config, bucket, devices)


def test_state_is_what_the_arrays_take():
    _, _, state = small.build(resolve(small.config(), classes=small.CLASSES))
    found = estimate()
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert found.state == pytest.approx(whole, rel=0.001)  # but for counters
    assert found.gradients == sum(leaf.nbytes for leaf in jax.tree.leaves(state.student))
    assert estimate(optimizer__name="sgd").state < found.state
    assert found.waiting == 2 * found.batch == found.total - found.step


def test_activations_follow_images_pixels_parts_remat_and_dtype():
    base = estimate(batch_size=8)
    assert estimate(batch_size=16).activations == pytest.approx(2 * base.activations, abs=1)
    assert estimate(batch_size=16, devices=2).activations == base.activations
    assert estimate(batch_size=16, accumulate=2).activations == base.activations
    larger = estimate(batch_size=8, bucket=(128, 64)).activations
    assert 1.5 * base.activations < larger < 2.1 * base.activations
    assert estimate(batch_size=8, model__remat=True).activations < base.activations
    assert estimate(batch_size=8, model__dtype="bfloat16").activations < base.activations


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_within_thirty_percent_of_what_xla_says(number):
    """Of steps that the estimate was not fitted to, in a process with XLA's usual schedule."""
    program = (
        "from tools import fit_memory as f; assert len(f.CHECK) == 5; "
        f"m, e = f.compare(*f.CHECK[{number}]); print(m, e.step)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=load.ROOT, capture_output=True, text=True, check=True
    )
    measured, estimated = map(int, done.stdout.split())
    assert estimated == pytest.approx(measured, rel=0.3)


@pytest.mark.parametrize(
    ("recipe", "measured"), [("faster_r50:plain", 12.07e9), ("faster_r50", 12.44e9)]
)
def test_near_what_was_measured_on_a_gpu(recipe, measured):
    """On an H200, docs/benchmarks.md."""
    config = load.load(recipe, {"batch_size": "16", "steps": "100", "model.dtype": "bfloat16"})
    config = resolve(config, classes=80)
    estimate = memory_estimate.of_training(config, (800, 1344), 1, "gpu")
    assert estimate.total == pytest.approx(measured, rel=0.15)
    assert memory_estimate.of_training(config, (800, 1344), 1).total < estimate.total
