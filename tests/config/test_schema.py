"""The declaration of all fields: complete, consistent, and what the reference is written from."""

import pathlib

import pytest

from mixtrain_jax.config import load, rules, schema
from tools import config_reference

FIELDS = dict(schema.fields())


def test_every_field_of_the_base_is_declared_and_obeys_its_own_rule():
    base = schema.default()
    load.check(base)
    assert set(FIELDS) == set(load._fields(base))
    for name, field in FIELDS.items():
        assert (field.default is None) == (field.unset is not None), name
        assert field.kind in (schema.IDENTITY, schema.SCHEDULE, schema.FREE), name
        assert field.help and "\n" not in field.help, name


@pytest.mark.parametrize("recipe", ["cascade", "faster", "faster_r50", "quickstart"])
def test_recipes_know_no_other_fields(recipe):
    assert set(load._fields(load.load(recipe))) == set(FIELDS)


def test_what_a_restart_may_change():
    kinds = {name: field.kind for name, field in FIELDS.items()}
    for name in ("seed", "batch_size", "model.fpn.channels", "optimizer.learning_rate",
                 "data.train.scale", "mixtraining.enabled"):  # fmt: skip
        assert kinds[name] == schema.IDENTITY
    for name in ("steps", "epochs", "optimizer.drops", "optimizer.warmup_steps"):
        assert kinds[name] == schema.SCHEDULE
    for name in ("log.every", "checkpoint.keep", "eval.every", "data.workers", "model.remat",
                 "data.val.buckets"):  # fmt: skip
        assert kinds[name] == schema.FREE


def test_numbers_are_looked_for_at_any_depth():
    assert list(rules.numbers(((1, (2.5,)), True, "3"))) == [1, 2.5]
    assert not rules.finite(((1.0, float("nan")),))


def test_the_reference_in_the_docs_is_that_of_the_schema():
    written = pathlib.Path(load.ROOT / "docs" / "config.md").read_text()
    assert written == config_reference.reference()
    for name in FIELDS:
        assert f"`{name}`" in written
