"""Every rule of mixed targets on boxes laid out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.config import load as configs
from mixtrain_jax.mixtraining import targets as mixing
from mixtrain_jax.mixtraining.criteria import Criteria, rating_threshold_of
from mixtrain_jax.types import Targets

# Human boxes: two far apart, one a little off the pseudo box, one padding.
HUMAN = [[0, 0, 10, 10], [100, 100, 120, 120], [51, 50, 71, 70], [0, 0, 0, 0]]
LABELS = [1, 2, 3, 0]
VALID = [True, True, True, False]
# Pseudo boxes: over the third human box (of another class), alone, and padding over the first.
PSEUDO = [[50, 50, 70, 70], [200, 0, 230, 40], [0, 0, 10, 10]]
PSEUDO_LABELS = [7, 8, 1]
PSEUDO_VALID = [True, True, False]


def method(**changes):
    config = configs.load(str(configs.ROOT / "configs" / "cascade.py")).mixtraining
    config.update(**changes)
    return config


def combine(ratings, config, human=HUMAN, valid=VALID, pseudo=PSEUDO, pseudo_valid=PSEUDO_VALID):
    return mixing.combine(
        Targets(jnp.array([human], jnp.float32), jnp.array([LABELS]), jnp.array([valid])),
        jnp.array([ratings], jnp.float32),
        Targets(
            jnp.array([pseudo], jnp.float32), jnp.array([PSEUDO_LABELS]), jnp.array([pseudo_valid])
        ),
        config,
        rating_threshold_of(config, Criteria(jnp.float32(0.9)), config.gt_score_threshold),
    )


def listed(targets):
    valid = np.asarray(targets.valid[0])
    boxes, labels = np.asarray(targets.boxes[0])[valid], np.asarray(targets.labels[0])[valid]
    return {(*box.tolist(), int(label)) for box, label in zip(boxes, labels, strict=True)}


def entry(boxes, labels, i):
    return (*map(float, boxes[i]), labels[i])


@pytest.mark.parametrize("rating", [0.2, 0.4])
def test_a_box_that_is_left_out_does_not_take_its_pseudo_box_along(rating):
    """Rated above the limit of replacing or below it: the teacher's box stands in for it."""
    config = method(gt_score_threshold=0.5, replace_score_threshold=0.3)
    targets, assignment = combine([0.95, 0.95, rating, 0], config)
    assert assignment.dropped[0].tolist() == [False, False, True, False]
    assert assignment.mending[0].tolist() == [True, False, False]
    assert entry(PSEUDO, PSEUDO_LABELS, 0) in listed(targets)


def test_kept_dropped_replaced_and_found():
    targets, assignment = combine([0.95, 0.2, 0.99, 0.99], method())
    assert listed(targets) == {
        entry(HUMAN, LABELS, 0),
        entry(PSEUDO, PSEUDO_LABELS, 0),
        entry(PSEUDO, PSEUDO_LABELS, 1),
    }
    assert assignment.kept[0].tolist() == [True, False, False, False]
    assert assignment.dropped[0].tolist() == [False, True, False, False]
    assert assignment.replaced[0].tolist() == [False, False, True, False]
    assert assignment.mending[0].tolist() == [True, False, False]
    assert assignment.missing[0].tolist() == [False, True, False]


def test_a_rating_at_the_threshold_is_too_low():
    _, assignment = combine([0.5, 0.5001, 0.9, 0.9], method(gt_score_threshold=0.5))
    assert assignment.dropped[0].tolist() == [True, False, False, False]


def test_overlap_must_exceed_the_threshold():
    half = [[0, 0, 10, 10], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    pseudo = [[0, 0, 10, 5], [0, 0, 0, 0], [0, 0, 0, 0]]  # IoU exactly 0.5
    arguments = dict(human=half, valid=[True, False, False, False], pseudo=pseudo)
    arguments |= dict(pseudo_valid=[True, False, False])
    _, at = combine([1.0] * 4, method(), **arguments)
    _, below = combine([1.0] * 4, method(iou_threshold=0.49), **arguments)
    assert at.kept[0, 0] and at.missing[0, 0] and not at.mending[0, 0]
    assert below.replaced[0, 0] and below.mending[0, 0] and not below.missing[0, 0]


@pytest.mark.parametrize(
    ("changes", "human", "pseudo"),
    [
        (dict(mixed_augmentation=False), [0, 1], [0, 1]),
        (dict(add_missing=False), [0], [0]),
        (dict(replace_boxes=False), [0, 2], [1]),
        (dict(replace_boxes=False, add_missing=False), [0, 2], []),
        (dict(gt_score_threshold=1.0), [], [0, 1]),
    ],
)
def test_switches(changes, human, pseudo):
    targets, _ = combine([0.95, 0.2, 0.99, 0.99], method(**changes))
    expected = {entry(HUMAN, LABELS, i) for i in human}
    expected |= {entry(PSEUDO, PSEUDO_LABELS, i) for i in pseudo}
    assert listed(targets) == expected


@pytest.mark.parametrize(("highest", "replaced"), [(1.0, True), (0.96, True), (0.9, False)])
def test_a_box_rated_above_the_replace_threshold_stays_as_it_is(highest, replaced):
    ratings = [0.99, 0.99, 0.95, 0.99]
    targets, assignment = combine(ratings, method(replace_score_threshold=highest))
    assert assignment.replaced[0].tolist() == [False, False, replaced, False]
    assert assignment.mending[0].tolist() == [replaced, False, False]
    assert assignment.missing[0].tolist() == [False, True, False]
    over = entry(PSEUDO, PSEUDO_LABELS, 0) if replaced else entry(HUMAN, LABELS, 2)
    kept = {entry(HUMAN, LABELS, 0), entry(HUMAN, LABELS, 1)}
    assert listed(targets) == kept | {over, entry(PSEUDO, PSEUDO_LABELS, 1)}


@pytest.mark.parametrize(("rating", "left_out"), [(0.1, True), (0.5, False)])
def test_a_pseudo_box_over_a_box_that_is_trusted_stands_in_for_none(rating, left_out):
    """Else one object would be two targets: the trusted box, and the pseudo box beside it."""
    human = [[0, 0, 100, 100], [0, 0, 100, 90], [0, 0, 0, 0], [0, 0, 0, 0]]
    pseudo = [[0, 0, 100, 95], [0, 0, 0, 0], [0, 0, 0, 0]]
    targets, assignment = combine(
        [0.9, rating, 0, 0],
        method(gt_score_threshold=0.25, replace_score_threshold=0.6),
        human,
        [True, True, False, False],
        pseudo,
        [True, False, False],
    )
    kept = [0] if left_out else [0, 1]
    assert listed(targets) == {entry(human, LABELS, i) for i in kept}
    assert not assignment.mending.any() and not assignment.replaced.any()
    assert assignment.dropped[0].tolist() == [False, left_out, False, False]


def test_a_teacher_that_finds_nothing_leaves_the_easy_boxes():
    targets, assignment = combine([0.95, 0.2, 0.99, 0.99], method(), pseudo_valid=[False] * 3)
    assert listed(targets) == {entry(HUMAN, LABELS, 0), entry(HUMAN, LABELS, 2)}
    assert (
        not assignment.replaced.any()
        and not assignment.mending.any()
        and not assignment.missing.any()
    )


def test_padding_changes_nothing():
    few, _ = combine([0.95, 0.2, 0.99, 0.0], method())
    human, valid = [*HUMAN, [0, 0, 9, 9]], [*VALID, False]
    many, _ = mixing.combine(
        Targets(jnp.array([human], jnp.float32), jnp.array([[*LABELS, 5]]), jnp.array([valid])),
        jnp.array([[0.95, 0.2, 0.99, 0.0, 1.0]]),
        Targets(
            jnp.array([[*PSEUDO, [51, 50, 71, 70]]], jnp.float32),
            jnp.array([[*PSEUDO_LABELS, 3]]),
            jnp.array([[*PSEUDO_VALID, False]]),
        ),
        method(),
        0.9,
    )
    assert listed(few) == listed(many)


def test_boxes_are_drawn_anew_between_people_and_teacher():
    human = Targets(
        jnp.array([[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 0, 10, 10.0]]]),
        jnp.array([[0, 1, 0, 0]]),
        jnp.array([[True, True, True, False]]),
    )
    found = Targets(
        jnp.array([[[0, 0, 10, 6], [0, 0, 10, 8], [20, 0, 30, 9], [44.9, 0, 54.9, 10]]]),
        jnp.array([[0, 0, 0, 0]]),
        jnp.array([[True, True, True, True]]),
    )
    anew = mixing.draw_anew(human, found, jnp.float32(0.25))
    np.testing.assert_allclose(anew.boxes[0, 0], [0, 0, 10, 8.5])  # by the one that overlaps most
    for row in (1, 2, 3):  # another class, IoU below one half, padding
        np.testing.assert_array_equal(anew.boxes[0, row], human.boxes[0, row])
    hidden = Targets(found.boxes, found.labels, jnp.zeros((1, 4), bool))
    for other, share in ((found, 1.0), (hidden, 0.25)):
        same = mixing.draw_anew(human, other, jnp.float32(share))
        np.testing.assert_array_equal(same.boxes, human.boxes)
