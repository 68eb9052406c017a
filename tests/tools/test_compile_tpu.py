"""What is compiled for absent TPUs is what training would run. The compiler itself is optional."""

import jax
import pytest

from mixtrain_jax import cli
from mixtrain_jax.data import batches, sources
from mixtrain_jax.runtime import parallel
from tests import tiny
from tools import compile_tpu


@pytest.mark.parametrize("mixing", [True, False])
def test_batches_are_those_of_training(shapes, mixing):
    config = tiny.get_config(shapes, mixtraining__enabled=mixing)
    dataset = sources.load(config.data, "train")
    given = parallel.spread(next(iter(batches.train_batches(dataset, config))))
    assumed = compile_tpu._batch(config, (64, 64), devices=1)
    assert jax.tree.structure(assumed) == jax.tree.structure(given)
    for ours, theirs in zip(jax.tree.leaves(assumed), jax.tree.leaves(given), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def test_without_the_compiler_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(compile_tpu, "_LIBTPU", None)
    flags = ["--config=configs/faster.py", "--topology=v5e:2x2"]
    with pytest.raises(SystemExit, match="2"):
        cli.run(compile_tpu.main, compile_tpu.parse(), flags)
    assert capsys.readouterr().err == (
        "error: libtpu is not installed: pip install -r requirements-tpu.txt\n"
    )


def test_a_bucket_has_two_sides():
    with pytest.raises(compile_tpu.UserError, match=r"--bucket=800: write HEIGHTxWIDTH"):
        compile_tpu._buckets(tiny.get_config("folder"), ["800"])
