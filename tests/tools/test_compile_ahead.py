"""What is compiled for absent TPUs is what training would run. The compiler itself is optional."""

import jax
import pytest

from mixtrain_jax import cli
from mixtrain_jax.data.input import batches, plan
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.runtime import parallel
from tests import tiny
from tools import compile_ahead
from tools.compiled import targets


@pytest.mark.parametrize("mixing", [True, False])
def test_batches_are_those_of_training(shapes, mixing):
    config = compile_ahead.assumed(tiny.get_config(shapes, mixtraining__enabled=mixing))
    dataset = load_dataset(config.data, "train")
    stream = batches.train_batches(
        dataset,
        config.data,
        seed=config.seed,
        batch_size=config.batch_size,
        first_mixed_step=plan.first_mixed_step(config.mixtraining),
    )
    given = parallel.shard(next(iter(stream)))
    assumed = compile_ahead._batch(config, (64, 64), devices=1)
    assert jax.tree.structure(assumed) == jax.tree.structure(given)
    for ours, theirs in zip(jax.tree.leaves(assumed), jax.tree.leaves(given), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "v5e:2x2",
            "the compiler for v5e is not installed: pip install 'mixtrain_jax[tpu-compiler]'",
        ),
        ("h100", "the compiler for h100 is not installed: pip install 'mixtrain_jax[gpu]'"),
        ("k80", "--target=k80: begin with one of h100, h200, a100, l4, v4, v5e, v5p, v6e"),
        ("v5e", "--target=v5e: write a TPU with its devices, such as v5e:4x4, a GPU without"),
        ("h100:8", "--target=h100:8: write a TPU with its devices, such as v5e:4x4, a GPU without"),
    ],
)
def test_without_the_compiler_it_says_what_to_install(monkeypatch, capsys, target, message):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    flags = ["--config=configs/faster.py", f"--target={target}"]
    with pytest.raises(SystemExit, match="2"):
        cli.run(compile_ahead.main, compile_ahead.parse(), flags)
    assert capsys.readouterr().err == f"error: {message}\n"


def test_loops_are_named_by_regular_expressions():
    assert compile_ahead._rounds(["roi_head=2"]) == {"roi_head": 2}
    for odd, message in (("roi_head(=2", "no regular expression"), ("2", "write PATTERN=COUNT")):
        with pytest.raises(compile_ahead.UserError, match=message):
            compile_ahead._rounds([odd])


def test_a_batch_of_no_image_is_refused():
    with pytest.raises(compile_ahead.UserError, match="batch_size"):
        compile_ahead.assumed(tiny.get_config("folder"), 0)


def test_a_bucket_has_two_sides():
    with pytest.raises(compile_ahead.UserError, match=r"--bucket=800: write HEIGHTxWIDTH"):
        compile_ahead._buckets(tiny.get_config("folder"), ["800"])
    for odd in ("800x1333", "801x1344", "0x32"):
        with pytest.raises(compile_ahead.UserError, match=f"--bucket={odd}: .*multiples of 32"):
            compile_ahead._buckets(tiny.get_config("folder"), [odd])
    assert compile_ahead._buckets(tiny.get_config("folder"), ["800x1344"]) == [(800, 1344)]


def test_quick_is_an_option_of_every_jax(monkeypatch):
    asked = {}
    monkeypatch.setattr(compile_ahead.jax.config, "update", asked.__setitem__)
    compile_ahead._optimize_little()
    ((name, value),) = asked.items()
    assert hasattr(jax.config, name) and value in (-1.0, "O1")
