"""Targets of the normal half, and soft labels, with a detector that says what the test wants."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.mixtraining import step as stepping
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.mixtraining.criteria import Criteria
from mixtrain_jax.types import Detections, Targets
from tests.mixtraining.stub import Stub, config, detections, one, seen_from, view

CRITERIA = Criteria(jnp.float32(0.4))


@pytest.fixture
def detector(monkeypatch):
    """What the stub finds, to be filled in."""
    stub = Stub()
    monkeypatch.setattr(teaching, "bind", lambda model, params: stub)
    return stub.found


@pytest.mark.parametrize(
    ("fields", "kept", "replaced_by"),
    [
        (dict(normal_gt_score_threshold=0.0, replace_boxes=False), [True, True], False),
        (dict(normal_gt_score_threshold=0.2, replace_boxes=False), [True, False], False),
        (dict(normal_gt_score_threshold=0.2), [False, False], True),
        (dict(normal_gt_score_threshold=0.2, replace_score_threshold=0.6), [True, False], False),
        (dict(gt_score_threshold=0.95), [False, True], True),
    ],
)
def test_the_normal_half_is_mended_as_the_mixed_half_is(detector, fields, kept, replaced_by):
    human = view([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])
    detector["upright"] = detections(
        [[1, 0, 11, 10], [20, 40, 30, 50], [0, 50, 10, 60]], [1, 0, 0], [0.9, 0.5, 0.2]
    )
    detector["probabilities"] = jnp.array([[[0.7, 0.2, 0.1], [0.8, 0.1, 0.1]]])
    method = config(mend_normal=True, **fields)
    targets, say, told = stepping.normal_half(None, None, human, method, CRITERIA, one)
    assert say is None
    np.testing.assert_array_equal(targets.valid[0], [*kept, replaced_by, True, False])
    np.testing.assert_array_equal(targets.boxes[0, :2], human.boxes[0])
    np.testing.assert_array_equal(targets.labels[0, :2], human.labels[0])
    np.testing.assert_array_equal(targets.boxes[0, 3], [20, 40, 30, 50])
    assert told["boxes/missing_normal"] == 1
    assert told["boxes/kept_normal"] == sum(kept)
    assert told["boxes/replaced_normal"] == told["boxes/mending_normal"] == replaced_by


def test_soft_labels_are_what_the_teacher_says_of_the_same_place(detector):
    """In a view that is mirrored and twice as large, where its boxes move the other way."""
    detector["probabilities"] = jnp.array([[[0.7, 0.2, 0.1], [0.3, 0.1, 0.6]]])
    detector["moved"] = jnp.array([1.0, 2.0, 3.0, 4.0])
    seen = seen_from([[-2, 0, 80], [0, 2, 0], [0, 0, 1]])
    size = jnp.array([[128, 80]])
    human = Targets(
        jnp.array([[[12.0, 10.0, 32.0, 30.0], [50.0, 50.0, 60.0, 60.0]]]),
        jnp.array([[0, 1]]),
        jnp.ones((1, 2), bool),
    )
    rois = jnp.array([[[10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 60.0, 60.0]]])
    nothing = Targets(human.boxes, human.labels, jnp.zeros((1, 2), bool))
    closer = Targets(rois, human.labels, jnp.ones((1, 2), bool))
    for left_out, targets, share in (
        ([True, False], nothing, [0, 0.25]),
        ([False, False], nothing, [0.25, 0.25]),
        ([True, True], closer, [0.25, 0.25]),  # the second overlaps both alike
    ):
        others = Targets(human.boxes, human.labels, jnp.array([left_out]))
        say = teaching.say(None, None, seen, size, (0.25, 0.5), targets, others)
        opinion = say(0, rois)
        np.testing.assert_array_equal(opinion.probabilities, detector["probabilities"])
        np.testing.assert_allclose(opinion.soft.boxes - rois, [[[-6, 4, -2, 8]] * 2], atol=1e-4)
        np.testing.assert_allclose(opinion.soft.class_share[0], share)
        np.testing.assert_allclose(opinion.soft.box_share[0], 2 * np.array(share))


def test_soft_boxes_are_the_teachers_as_pseudo_boxes_are(detector):
    """In a turned view too, where the RoI it is asked about is smaller than the student's."""
    detector["probabilities"] = jnp.ones((1, 2, 2))
    drawn = jnp.array([[[18.0, 17.0, 33.0, 30.0], [-9.0, -9.0, -2.0, -2.0]]])
    detector["drawn"] = drawn
    a = np.pi / 9
    seen = seen_from([[np.cos(a), -np.sin(a), 8], [np.sin(a), np.cos(a), -8], [0, 0, 1]])
    rois = jnp.array([[[15.0, 15.0, 31.0, 29.0], [0.0, 0.0, 9.0, 9.0]]])
    size, none = jnp.array([[64, 40]]), Targets(rois, None, jnp.zeros((1, 2), bool))
    boxes = teaching.soften_labels(None, None, seen, size, (0.5, 0.5), none, none)(
        0, rois
    ).soft.boxes
    found = Detections(drawn, None, None, jnp.ones((1, 2), bool))
    pseudo = teaching.pseudo_boxes(found, seen, size)
    assert pseudo.valid.tolist() == [[True, False]]
    np.testing.assert_allclose(boxes[0, 0], pseudo.boxes[0, 0], atol=1e-4)
    np.testing.assert_array_equal(boxes[0, 1], rois[0, 1])  # what is out of view has no say


def test_without_a_share_the_opinion_is_the_soft_background(detector):
    detector["probabilities"] = jnp.array([[[0.7, 0.2, 0.1]]])
    human = view([[0, 0, 10, 10]], [0])
    targets, say, told = stepping.normal_half(
        None, None, human, config(soften_normal=True), CRITERIA, one
    )
    opinion = say(0, human.boxes)
    assert opinion.soft is None and told == {}
    np.testing.assert_array_equal(opinion.probabilities, detector["probabilities"])
    np.testing.assert_array_equal(targets.valid, human.valid)


def test_switched_off_the_normal_half_is_the_human_boxes():
    human = view([[0, 0, 10, 10]], [0])
    targets, say, told = stepping.normal_half(None, None, human, config(), CRITERIA, one)
    assert say is None and told == {}
    np.testing.assert_array_equal(targets.boxes, human.boxes)
