"""Evaluation during training: when it is due, and where the scores go."""

import contextlib
import types

import pytest

from mixtrain_jax.evaluation import coco
from mixtrain_jax.runtime import checkpoint
from mixtrain_jax.training import validation
from mixtrain_jax.training.validation import Validation
from tests.mixtraining import small


class Checkpoints:
    """Remembers what was recorded."""

    def __init__(self):
        self.recorded, self.scored = {}, ""

    def scores(self, scored=""):
        assert scored in ("", self.scored or scored)
        return self.recorded

    def record(self, step, metrics, scored):
        assert step in self.monitor.flushed  # else a kill here would lose the line for good
        self.recorded[step] = metrics["AP"]
        return 0


class Monitor:
    """Remembers what was logged, and how much of it was on disk when it was flushed."""

    def __init__(self):
        self.logged, self.flushed = {}, {}

    def flush(self):
        self.flushed = dict(self.logged)

    def pause(self):
        return contextlib.nullcontext()

    def scalars(self, step, metrics):
        self.logged[step] = metrics

    def page(self):
        pass


@pytest.fixture
def made(monkeypatch):
    """A validation every 40 of 100 steps of weights that "score" as they say, and its partners."""
    config = small.config(eval__every=40, eval__weights="both")
    monkeypatch.setattr(validation.detect, "predictor", lambda *_: None)
    monkeypatch.setattr(validation.agreement, "labels_of", str)

    def scores(predict, params, dataset, data, options):
        assert predict is None and dataset in ("val set", "val 1", "val 2")
        return dict.fromkeys(coco.KEYS, params) | {"per_class": {}}, []

    monkeypatch.setattr(validation.detect, "evaluate", scores)
    monitor, checkpoints = Monitor(), Checkpoints()
    checkpoints.monitor = monitor
    return Validation(config, "val set", monitor, checkpoints), monitor, checkpoints


def test_it_is_due_every_so_many_steps_and_at_the_end(made):
    each, _, checkpoints = made
    assert [step for step in range(1, 101) if each.due(step)] == [40, 80, 100]
    assert each.missed(80) and not each.missed(81)
    checkpoints.recorded[80] = 0.1
    assert not each.missed(80)


def test_without_a_val_set_nothing_is_due(made):
    each, *partners = made
    nothing = Validation(each._config, None, *partners)
    assert not any(nothing.due(step) or nothing.missed(step) for step in range(1, 101))


def test_both_sets_of_weights_are_logged_and_the_student_chooses_the_best(made, capsys):
    each, monitor, checkpoints = made
    each.run(40, types.SimpleNamespace(student=0.25, teacher=0.5))
    assert monitor.logged[40]["val_student/AP"] == 0.25
    assert monitor.logged[40]["val_teacher/AP50"] == 0.5
    assert checkpoints.recorded == {40: 0.25}
    said = capsys.readouterr().out
    assert "student after step 40" in said and "teacher after step 40" in said


@pytest.mark.parametrize(
    ("scores", "step", "passed"),
    [
        ({}, 10, 0),
        ({1: 0.1, 2: 0.2, 3: 0.3}, 3, 0),
        ({1: 0.1, 2: 0.3, 3: 0.2, 4: 0.3}, 4, 2),  # an equal score is no better
        ({1: 0.1, 2: 0.3, 3: 0.2, 4: 0.4}, 3, 1),  # step 4 is of a future that was given up
        ({4: 0.4}, 3, 0),
        ({1: -1.0, 2: -1.0, 3: -1.0}, 3, 0),  # nothing is there to be found
    ],
)
def test_evaluations_without_gain(scores, step, passed):
    assert validation.without_gain(scores, step) == passed


def test_training_ends_when_patience_does(made):
    each, monitor, checkpoints = made
    checkpoints.recorded.update({40: 0.3, 80: 0.2})
    assert each.ends_training(80) == ""  # the default is no limit
    config = small.config(eval__every=40, eval__patience=2)
    patient = Validation(config, "val set", monitor, checkpoints)
    assert patient.ends_training(80) == ""
    checkpoints.recorded[100] = 0.3
    assert "2 evaluations in a row found no AP above 0.300, that of step 40" in (
        patient.ends_training(100)
    )


@pytest.mark.parametrize(
    ("changes", "labels", "same"),
    [
        ({}, "val 1", True),
        (dict(eval__weights="both"), "val 1", True),  # the student's choose
        (dict(eval__batch_size=2, seed=3, eval__every=7), "val 1", True),
        (dict(eval__weights="teacher"), "val 1", False),
        (dict(eval__images=5), "val 1", False),
        (dict(data__val__scale=(32, 32)), "val 1", False),
        ({}, "val 2", False),
    ],
)
def test_scores_on_something_else_choose_no_best(
    made, tmp_path, monkeypatch, capsys, changes, labels, same
):
    """They are kept, for `RUN:best` too, until there is a new one."""
    _, monitor, _ = made
    monkeypatch.setattr(monitor, "flush", lambda: None)
    before, now = small.config(eval__patience=1), small.config(eval__patience=1, **changes)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        first = Validation(before, "val 1", monitor, checkpoints)
        for step, ap in ((100, 0.4), (200, 0.3)):
            first.run(step, types.SimpleNamespace(student=ap))
        assert first.ends_training(200)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        capsys.readouterr()
        second = Validation(now, labels, monitor, checkpoints)
        told = capsys.readouterr().out
        assert ("that of step 100: copy it" in told) != same
        assert bool(second.ends_training(200)) == same
        assert checkpoints.scores() == {100: 0.4, 200: 0.3} and not second.missed(200)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        third = Validation(now, labels, monitor, checkpoints)
        third.run(300, types.SimpleNamespace(student=0.2, teacher=0.2))
        expected = {100: 0.4, 200: 0.3, 300: 0.2} if same else {300: 0.2}
        assert checkpoints.scores() == expected
    with checkpoint.Checkpoints(tmp_path) as checkpoints:  # and nothing is forgotten again
        Validation(now, labels, monitor, checkpoints)
        assert checkpoints.scores() == expected


def test_scores_that_an_earlier_version_kept_stay(made, tmp_path, capsys):
    _, monitor, _ = made
    checkpoint.Checkpoints(tmp_path).close()
    (tmp_path / "checkpoints" / "scores.json").write_text('{"100": 0.4}')
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        Validation(small.config(), "val", monitor, checkpoints)
        assert checkpoints.scores("anything") == {100: 0.4}
        assert checkpoints.record(200, {"AP": 0.3}, "val") == 0
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.scores("val") == {100: 0.4, 200: 0.3}
