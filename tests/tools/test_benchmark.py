"""The benchmark counts what it says, and measures a step of a small detector."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.config import load
from mixtrain_jax.errors import UserError
from tests.mixtraining import small
from tools import benchmark
from tools.benchmarks import measure, models


def of_shapes(function, *shapes):
    return 1e9 * measure.gflop(function, *(np.ones(shape, np.float32) for shape in shapes))


def test_a_product_and_a_convolution_are_counted():
    assert of_shapes(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    conv = jax.jit(lambda x, k: jax.lax.conv(x, k, (2, 2), "SAME"))
    assert of_shapes(conv, (1, 4, 8, 6), (9, 4, 3, 3)) == 2 * (9 * 4 * 3) * (4 * 3 * 3)


def test_loops_and_gradients_are_counted():
    def three(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0].sum()

    forward = 3 * 2 * 4 * 5 * 5
    assert of_shapes(three, (4, 5), (5, 5)) == forward
    assert of_shapes(jax.grad(three, (0, 1)), (4, 5), (5, 5)) == 3 * forward

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    assert of_shapes(either, (4, 4)) == 2 * 4**3


@pytest.fixture
def tiny(monkeypatch):
    """Every case is of a tiny detector and of 64x64 images."""

    config = small.config().lock()
    monkeypatch.setattr(
        models.configs, "load", lambda _, changes: load.override_all(config, changes)
    )
    monkeypatch.setattr(models, "CLASSES", small.CLASSES)
    monkeypatch.setattr(measure, "matmul_rate", lambda: 100.0)
    cases = {name: dataclasses.replace(case, size=(64, 64)) for name, case in models.CASES.items()}
    monkeypatch.setattr(models, "CASES", cases)


def test_a_step_is_measured(tiny):
    (row,) = models.run("faster_r50_mixed", 2, 0.1)
    assert row["batch"] == 2 and row["runs"] >= 3
    assert row["low"] <= row["median"] <= row["high"] < row["first"]
    assert row["efficiency"] == pytest.approx(row["gflop"] / row["median"] / 100)
    assert row["goal"] is row["torch_efficiency"] is None  # none was set for this one


def test_mixing_is_compared_with_plain_training_by_images():
    def row(case, median, batch):
        return {"case": models.CASES[case].title, "median": median, "batch": batch}

    plain, mixed = row("faster_r50_plain", 1.0, 4), row("faster_r50_mixed", 3.0, 8)
    (found,) = benchmark.ratio([plain, mixed, row("cascade_plain", 1.0, 1)])["ratio"]
    assert found == {"case": mixed["case"], "ratio": 1.5}
    assert benchmark.ratio([plain]) == {}


def test_what_is_measured_is_kept_at_once(monkeypatch, tmp_path, capsys):
    path, kept = tmp_path / "found.json", []

    def measured(case, flags):
        if case == "machine":
            return {"machine": "here", "accelerator": False}
        kept.append(json.loads(path.read_text()) if path.exists() else None)
        if case == "swin":
            raise UserError("it failed")
        return {"milliseconds": [{"case": "one", "median_ms": 1.0}]}

    monkeypatch.setattr(benchmark, "in_own_process", measured)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--cases=ops,swin", f"--json={path}"])
    assert benchmark.main() == 2
    assert kept[0] is None and kept[1]["tables"]["milliseconds"][0]["case"] == "one"
    assert json.loads(path.read_text())["failed"] == ["swin"]
    assert "| one | 1.00 |" in capsys.readouterr().out
