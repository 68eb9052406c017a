"""A run started again with other fields: what is refused, what is told, what passes."""

import numpy as np
import pytest

from mixtrain_jax.config import load, saved
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.errors import UserError
from mixtrain_jax.training import restart
from tests.config.test_resolve import dataset


@pytest.fixture
def run(tmp_path):
    """A workdir with its config, and a function that checks it against changed fields."""
    asked = load.load("faster", {"steps": "1000"})
    saved.save(tmp_path, asked, resolve(asked, classes=3), saved.Origin())

    def check(changes, step=600, allow=False, classes=3):
        now = load.override_all(asked, changes)
        restart.check(tmp_path, now, resolve(now, classes=classes), step, allow)

    return check


def test_the_same_fields_pass_without_a_word(run, capsys):
    run({})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("seed", "3", "config.seed: 0 before, 3 now"),
        ("batch_size", "32", "config.batch_size: 16 before, 32 now"),
        ("mixtraining.enabled", "false", "config.mixtraining.enabled: True before, False now"),
        ("optimizer.learning_rate", "1e-3", "config.optimizer.learning_rate: 0.0001 before, 0.001"),
        ("data.train.scale", "800,400,600", r"config.data.train.scale: \(1333, 400, 1200\) before"),
    ],
)
def test_what_makes_it_another_run_is_refused_unless_allowed(
    run, tmp_path, capsys, field, value, told
):
    before = (tmp_path / saved.NAME).read_bytes()
    with pytest.raises(UserError, match=f"holds another run: {told}"):
        run({field: value, "log.every": "7"})
    assert (tmp_path / saved.NAME).read_bytes() == before
    assert capsys.readouterr().out == ""
    run({field: value}, allow=True)
    assert "changed since the last start: config." + field in capsys.readouterr().out


def test_other_labels_are_another_run(tmp_path, capsys):
    asked = load.load("faster", {"steps": "1000"})
    resolved = resolve(asked, classes=3)
    saved.save(tmp_path, asked, resolved, saved.Origin(), "9 boxes on 3 images (digest 1)")
    for labels in ("9 boxes on 3 images (digest 1)", ""):
        restart.check(tmp_path, asked, resolved, 600, False, labels)
    now = "10 boxes on 3 images (digest 2)"
    with pytest.raises(UserError, match=r"its labels: 9 boxes .* before, 10 boxes .* now; choose"):
        restart.check(tmp_path, asked, resolved, 600, False, now)
    restart.check(tmp_path, asked, resolved, None, False, now)  # nothing is saved yet
    restart.check(tmp_path, asked, resolved, 600, True, now)
    assert "changed since the last start: its labels: 9 boxes" in capsys.readouterr().out


def test_a_new_schedule_is_told_with_its_rates(run, capsys):
    run({"steps": "2000"})
    first, second = capsys.readouterr().out.splitlines()
    assert "config.steps: 1000 before, 2000 now" in first
    drops = "config.optimizer.drop_steps: (667, 917) before, (1333, 1833) now (follows from"
    assert drops in first
    assert second == "  learning rate at step 601: 0.0001 before, 0.0001 now"
    run({"optimizer.drops": "0.5"})
    assert capsys.readouterr().out.endswith("step 601: 0.0001 before, 1e-05 now\n")


def test_what_follows_from_the_data_is_told_apart(run):
    with pytest.raises(UserError, match=r"num_classes: 3 before, 4 now \(follows from"):
        run({}, classes=4)


def test_free_fields_pass_and_a_run_without_checkpoints_is_not_compared(run, capsys):
    run({"log.every": "7", "checkpoint.keep": "5"})
    assert "config.checkpoint.keep: 2 before, 5 now" in capsys.readouterr().out
    run({"seed": "3"}, step=None)
    assert capsys.readouterr().out == ""


def test_a_longer_run_keeps_the_buckets_that_were_chosen(tmp_path):
    """Above 100,000 steps more buckets would be chosen, and deal the images anew."""
    rng = np.random.default_rng(0)
    images = dataset(400)
    images.sizes = rng.integers((300, 500), (450, 900), (400, 2)).astype(np.int32)
    asked = load.load("faster", {"steps": "90000"})
    before = resolve(asked, train=images)
    longer = load.override_all(asked, {"steps": "110000"})
    others = resolve(longer, train=images).data.train.buckets
    assert others != before.data.train.buckets
    assert restart.with_chosen_buckets(tmp_path, longer, images) is longer  # nothing is there
    saved.save(tmp_path, asked, before, saved.Origin())
    assert restart.with_chosen_buckets(tmp_path, longer, images) is longer  # nor any step
    (tmp_path / "checkpoints" / "600").mkdir(parents=True)
    (tmp_path / "checkpoints" / "600" / "_CHECKPOINT_METADATA").touch()
    kept = restart.with_chosen_buckets(tmp_path, longer, images)
    now = resolve(kept, train=images)
    assert now.data.train.buckets == before.data.train.buckets
    restart.check(tmp_path, longer, now, 600, False)

    images.sizes = images.sizes[:, ::-1]  # standing images: what they need is chosen
    assert restart.with_chosen_buckets(tmp_path, longer, images) is longer
    smaller = load.override_all(longer, {"data.train.scale": "(640,320,480)"})
    assert restart.with_chosen_buckets(tmp_path, smaller, images) is smaller
