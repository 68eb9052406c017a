"""The watch over losses: one step behind, named images, and an end after so many in a row."""

import types

import numpy as np
import pytest

from mixtrain_jax.errors import UserError
from mixtrain_jax.training import loop
from mixtrain_jax.training.guard import BadNumbers, BadSteps
from mixtrain_jax.types import Batch

DATASET = types.SimpleNamespace(image_ids=np.array([11, 22, 33]))


def watch_over(limit, proven=0):
    checkpoints = types.SimpleNamespace(proven=proven, note_all_proven=lambda step: None)
    return BadSteps(limit, DATASET, checkpoints), checkpoints


def batch(*rows):
    view = types.SimpleNamespace(index=np.array(rows))
    return Batch(normal=view)


def metrics(bad):
    return {"update/bad": float(bad), "loss": np.nan if bad else 1.0, "lr": 0.1, "normal/x": 2.0}


def test_only_steps_in_a_row_count(caplog):
    guard, _ = watch_over(2)
    for step, bad in enumerate((1, 0, 1, 0, 1), 1):
        guard.check(step, metrics(bad), batch(0))
    assert guard.consecutive == 0
    assert caplog.text.count("is left out") == 2  # the fifth is looked at after the sixth


def test_the_last_of_a_row_is_named_with_losses_and_images():
    guard, _ = watch_over(2)
    guard.check(1, metrics(1), batch(0))
    guard.check(2, metrics(1), batch(1, 2))
    with pytest.raises(UserError) as told:
        guard.check(3, metrics(0), batch(0))
    message = str(told.value)
    assert message.startswith("step 2 has a loss or gradient that is not finite")
    assert "{'loss': nan, 'normal/x': 2.0}, images [22, 33]" in message
    assert "number 2 in a row" in message


def test_a_finite_step_proves_what_was_saved_before_it_and_not_itself():
    guard, checkpoints = watch_over(3)
    for step, bad in enumerate((0, 0, 1, 1), 1):
        guard.check(step, metrics(bad), batch(0))
    assert checkpoints.proven == 2  # so checkpoint 1 is good, and of 2 nobody knows
    assert guard.consecutive == 1


def test_what_was_good_before_a_restart_stays_so():
    guard, checkpoints = watch_over(3, proven=7)
    for step in (9, 10, 11):
        guard.check(step, metrics(1), batch(0))
        assert checkpoints.proven == 7


def test_the_last_step_counts():
    guard, _ = watch_over(10)
    guard.check(1, metrics(0), batch(0))
    guard.check(2, metrics(1), batch(0))
    with pytest.raises(BadNumbers, match=r"step 2 has a loss .* number 1 in a row"):
        guard.finish()


def test_a_last_step_that_spoils_the_weights_does_not_put_those_before_it_in_doubt():
    """The step more is bad: only what the last step made is suspect, what it began with is not."""
    guard, checkpoints = watch_over(10)
    guard.check(16, metrics(0), batch(0))
    guard.check(17, metrics(0), batch(0))
    state = types.SimpleNamespace(step=17)
    with pytest.raises(BadNumbers):
        loop.prove_last(
            lambda *_: (None, metrics(1), None), state, None, guard, batch(0), checkpoints
        )
    assert checkpoints.proven == 17
