"""config.json gives back what was asked and what was used; what differs between two configs."""

import json

import pytest
from ml_collections import FrozenConfigDict

from mixtrain_jax.config import load, saved, schema
from mixtrain_jax.config.compare import differences
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.errors import UserError


@pytest.fixture
def asked():
    return load.load("quickstart", {"batch_size": "4"})


def test_it_reads_back_as_it_was(asked, tmp_path):
    resolved = resolve(asked, classes=3)
    origin = saved.Origin("quickstart", {"batch_size": "4"})
    saved.save(tmp_path, asked, resolved, origin)
    found = saved.read(tmp_path)
    assert found.asked.to_dict() == asked.to_dict()
    assert found.resolved.to_dict() == resolved.to_dict()
    assert isinstance(found.resolved, FrozenConfigDict)
    assert found.origin == origin
    # Fields that are not set have kept their types.
    changed = load.override_all(found.asked, {"steps": "7", "data.train.scale": "64,32,64"})
    assert (changed.steps, changed.data.train.scale) == (7, (64, 32, 64))
    with pytest.raises(UserError, match="config.steps=x: expected a whole number"):
        load.override_all(found.asked, {"steps": "x"})
    assert found.asked.steps is None


def test_fields_newer_than_the_run_have_their_defaults(asked, tmp_path):
    saved.save(tmp_path, asked, resolve(asked, classes=3), saved.Origin())
    content = json.loads((tmp_path / "config.json").read_text())
    for fields in (content["asked"]["fields"], content["resolved"]):
        del fields["data"]["test"], fields["data"]["exif"], fields["data"]["train"]["list"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    found = saved.read(tmp_path)
    assert found.asked.to_dict() == asked.to_dict()
    assert differences(found.resolved, resolve(asked, classes=3)) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"asked": 1}', '{"asked": {"fields": {}}}'])
def test_a_damaged_file_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json is not the config of a run"):
        saved.read(tmp_path)


def test_a_missing_file_and_a_place_that_cannot_be_written(asked, tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*config.json: No such file"):
        saved.read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        saved.save(tmp_path / "file", asked, resolve(asked, classes=3), saved.Origin())


def test_a_run_is_found_from_its_parts(asked, tmp_path):
    run = tmp_path / "run"
    saved.save(run, asked, resolve(asked, classes=3), saved.Origin())
    for name in ("", ":best", "/checkpoints", "/checkpoints/500"):
        assert saved.workdir_of(f"{run}{name}") == run
    assert saved.workdir_of(tmp_path / "elsewhere") is None


def test_differences_are_named_with_their_kind(asked):
    now = load.override_all(asked, {"seed": "3", "steps": "10", "log.every": "7"})
    found = differences(asked, now)
    assert [(each.name, each.kind) for each in found] == [
        ("seed", schema.IDENTITY),
        ("steps", schema.SCHEDULE),
        ("log.every", schema.FREE),
    ]
    assert str(found[1]) == "config.steps: None before, 10 now"
    assert differences(asked, asked) == []
