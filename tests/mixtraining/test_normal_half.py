"""Targets of the normal half, and soft labels, with a detector that says what the test wants."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.mixtraining import step as stepping
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.mixtraining.criteria import Criteria
from mixtrain_jax.mixtraining.metrics import as_numbers
from mixtrain_jax.types import Targets
from tests.mixtraining.stub import Stub, config, detections, seen_from, view

CRITERIA = Criteria(jnp.float32(0.4))


def look(view):
    return teaching.teacher_predictions(None, None, view, view)


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
    supervision, told = stepping.normal_supervision(None, None, look(human), method, CRITERIA)
    targets = supervision.targets
    assert supervision.ask_teacher is None
    np.testing.assert_array_equal(targets.valid[0], [*kept, replaced_by, True, False])
    np.testing.assert_array_equal(targets.boxes[0, :2], human.boxes[0])
    np.testing.assert_array_equal(targets.labels[0, :2], human.labels[0])
    np.testing.assert_array_equal(targets.boxes[0, 3], [20, 40, 30, 50])
    told = as_numbers(told)
    assert told["boxes/missing_normal"] == 1
    assert told["boxes/kept_normal"] == sum(kept)
    assert told["boxes/replaced_normal"] == told["boxes/mending_normal"] == replaced_by


def test_soft_labels_are_what_the_teacher_says_of_the_same_place(detector):
    detector["probabilities"] = jnp.array([[[0.7, 0.2, 0.1], [0.3, 0.1, 0.6]]])
    seen = seen_from([[-2, 0, 80], [0, 2, 0], [0, 0, 1]])
    human = Targets(
        jnp.array([[[12.0, 10.0, 32.0, 30.0], [50.0, 50.0, 60.0, 60.0]]]),
        jnp.array([[0, 1]]),
        jnp.ones((1, 2), bool),
    )
    rois = jnp.array([[[10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 60.0, 60.0]]])
    nothing = Targets(human.boxes, human.labels, jnp.zeros((1, 2), bool))
    closer = Targets(rois, human.labels, jnp.ones((1, 2), bool))
    for alone, targets, share in (
        ([True, False], nothing, [0, 0.25]),
        ([False, False], nothing, [0.25, 0.25]),
        ([True, True], closer, [0.25, 0.25]),  # the second overlaps both alike
    ):
        others = Targets(human.boxes, human.labels, jnp.array([alone]))
        of_rois = teaching.make_ask_teacher(
            None, None, seen, jnp.float32(0.25), people=targets, others=others
        )
        answer = of_rois(2, rois)
        asked, stage = detector["asked"]  # the matrix mirrors and enlarges: 80 - 2x, 2y
        np.testing.assert_allclose(asked[0, 0], [25, 5, 35, 15])
        assert stage == 2
        np.testing.assert_array_equal(answer.probabilities, detector["probabilities"])
        np.testing.assert_allclose(answer.label_share[0], share)


def test_where_the_teacher_saw_nothing_the_label_is_whole(detector):
    """A RoI can lie where the weak view was cut off, be it on a pseudo box or not."""
    detector["probabilities"] = jnp.full((1, 4, 3), 1 / 3)
    seen = seen_from([[1, 0, 30], [0, 1, 0], [0, 0, 1]])  # 30 pixels stand left of the weak view
    rois = jnp.array([[[0.0, 0, 20, 10], [5, 20, 28, 40], [5, 0, 31, 10], [40, 0, 60, 10]]])
    labels = jnp.zeros((1, 4), jnp.int32)
    people = Targets(rois, labels, jnp.zeros((1, 4), bool))
    others = Targets(rois, labels, jnp.array([[True, False, False, False]]))
    of_rois = teaching.make_ask_teacher(
        None, None, seen, jnp.float32(0.25), people=people, others=others
    )
    np.testing.assert_allclose(of_rois(0, rois).label_share[0], [1, 1, 0.25, 0.25])


def test_found_boxes_have_balanced_scores(detector):
    detector["upright"] = detections([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1], [0.9, 0.9])
    detector["probabilities"] = jnp.full((1, 0, 3), 1 / 3)
    made = CRITERIA._replace(balance=jnp.array([1e-3, 1.0]))
    seen = look(view([], []))
    for fields in (dict(), dict(must_agree=True)):
        detector["mirrored"] = detections([[10, 20, 20, 30]], [1], [0.9])
        output, _ = stepping.teacher_supervision(
            None, None, seen, seen.view, config(**fields), made, rating_threshold=0.0, soften=False
        )
        assert output.detections.valid.tolist() == [[False, True]]


def test_a_pseudo_box_is_no_label_of_peoples(detector):
    """Of what stands on one the teacher alone says what it is, and its judgement counts once."""
    human = view([[0, 0, 10, 10]], [0])
    detector["upright"] = detections([[20, 20, 30, 30], [0, 50, 4, 54]], [1, 0], [0.9, 0.1])
    detector["probabilities"] = jnp.array([[[0.7, 0.2, 0.1]]])
    method = config(mend_normal=True, soften_normal=True, pseudo_score_threshold=0.5)
    soft = CRITERIA._replace(label_share=jnp.float32(0.25), score_threshold=jnp.float32(0.5))
    supervision, _ = stepping.normal_supervision(None, None, look(human), method, soft)
    assert supervision.targets.valid[0].tolist() == [True, True, False]
    rois = jnp.array([[[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 50, 4, 54]]])
    np.testing.assert_allclose(supervision.ask_teacher(0, rois).label_share[0], [0.25, 0, 0.25])


def test_a_pseudo_box_that_replaces_is_no_label_of_peoples_either(detector):
    """Nor is the human box that it replaces: what lies on either is the teacher's alone."""
    human = view([[20, 20, 30, 30], [0, 0, 10, 10]], [1, 0])
    detector["upright"] = detections([[20, 22, 30, 32]], [1], [0.9])
    detector["probabilities"] = jnp.array([[[0.2, 0.7, 0.1], [0.7, 0.2, 0.1]]])
    method = config(mend_normal=True, soften_normal=True)
    soft = CRITERIA._replace(label_share=jnp.float32(0.25), score_threshold=jnp.float32(0.5))
    supervision, _ = stepping.normal_supervision(None, None, look(human), method, soft)
    assert supervision.targets.valid[0].tolist() == [False, True, True]
    rois = jnp.array([[[20.0, 22, 30, 32], [20, 20, 30, 30], [0, 0, 10, 10]]])
    np.testing.assert_allclose(supervision.ask_teacher(0, rois).label_share[0], [0, 0, 0.25])


def test_peoples_boxes_are_those_drawn_anew(detector):
    """A RoI between the human box and a pseudo box is nearer the human box once it is drawn."""
    human = view([[0, 0, 10, 10]], [0])
    # Of its class and .67 from it: the human box moves there. The pseudo box is of another class.
    detector["upright"] = detections([[2, 0, 12, 10], [6, 0, 16, 10]], [0, 1], [0.1, 0.9])
    detector["probabilities"] = jnp.array([[[0.7, 0.2, 0.1]]])
    method = config(mend_normal=True, soften_normal=True)
    roi = jnp.array([[[3.5, 0, 13.5, 10]]])  # 3.5 from the human box, 2.5 from the pseudo box
    for box_share, expected in ((None, 0), (0.25, 0.25)):  # then 2 from the human box
        share = None if box_share is None else jnp.float32(box_share)
        soft = CRITERIA._replace(
            label_share=jnp.float32(0.25), box_share=share, score_threshold=jnp.float32(0.5)
        )
        supervision, _ = stepping.normal_supervision(None, None, look(human), method, soft)
        np.testing.assert_allclose(supervision.ask_teacher(0, roi).label_share[0], [expected])


def test_a_threshold_of_0_leaves_out_none_and_one_of_1_replaces_all(detector):
    """Also where rounding takes a rating to 0, or beyond 1."""
    human = view([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])
    detector["upright"] = detections([[20, 21, 30, 31]], [1], [0.9])
    detector["probabilities"] = jnp.array([[[0.0, 0.5, 0.5], [0.0, 1.0000001, 0.0]]])
    supervision, told = stepping.normal_supervision(
        None, None, look(human), config(mend_normal=True), CRITERIA
    )
    assert supervision.targets.valid[0].tolist() == [True, False, True]
    told = as_numbers(told)
    assert told["boxes/dropped_normal"] == 0 and told["boxes/replaced_normal"] == 1


@pytest.mark.parametrize(("least", "kept"), [(None, [1, 0]), (0.25, [1, 1]), (0.75, [0, 0])])
def test_the_steps_rating_counts_over_the_configs(detector, least, kept):
    human = view([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])
    detector["upright"] = detections([[0, 50, 4, 54]], [0], [0.1])
    detector["probabilities"] = jnp.array([[[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]])
    made = CRITERIA._replace(rating_threshold=None if least is None else jnp.float32(least))
    method = config(mend_normal=True, normal_gt_score_threshold=0.5)
    supervision, _ = stepping.normal_supervision(None, None, look(human), method, made)
    np.testing.assert_array_equal(supervision.targets.valid[0, :2], kept)


def test_kept_boxes_are_drawn_anew_where_the_teacher_finds_them(detector):
    """By any score; in the normal half as in the mixed one, here a mirrored and enlarged view."""
    human = view([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])
    detector["upright"] = detections([[2, 0, 12, 10], [22, 20, 32, 30]], [0, 0], [0.1, 0.9])
    detector["probabilities"] = jnp.array([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]])
    anew = CRITERIA._replace(label_share=jnp.float32(0.5), box_share=jnp.float32(0.25))
    method = config(mend_normal=True)
    supervision, _ = stepping.normal_supervision(None, None, look(human), method, anew)
    targets = supervision.targets
    np.testing.assert_allclose(targets.boxes[0, 0], [1.5, 0, 11.5, 10])
    np.testing.assert_array_equal(targets.boxes[0, 1], human.boxes[0, 1])  # of another class

    matrix = np.array([[-2, 0, 80], [0, 2, 0], [0, 0, 1]], np.float32)
    strong = human.replace(
        matrix=jnp.asarray(matrix)[None],
        boxes=jnp.array([[[60.0, 0, 80, 20], [20, 40, 40, 60]]]),
        size=jnp.array([[128, 80]]),
    )
    seen = teaching.teacher_predictions(None, None, human, strong)
    output, _ = stepping.teacher_supervision(
        None, None, seen, strong, method, anew, rating_threshold=0.0, soften=False
    )
    np.testing.assert_allclose(output.targets.boxes[0, 0], [57, 0, 77, 20], atol=1e-4)
    np.testing.assert_array_equal(output.human.boxes, strong.boxes)  # as people drew them


def test_without_a_share_the_answer_is_the_soft_background(detector):
    detector["probabilities"] = jnp.array([[[0.7, 0.2, 0.1]]])
    human = view([[0, 0, 10, 10]], [0])
    detector["upright"] = detections(np.zeros((0, 4)), [], [])
    supervision, told = stepping.normal_supervision(
        None, None, look(human), config(soften_normal=True), CRITERIA
    )
    answer = supervision.ask_teacher(0, human.boxes)
    assert answer.label_share is None and told == {}
    np.testing.assert_array_equal(answer.probabilities, detector["probabilities"])
    np.testing.assert_array_equal(supervision.targets.valid, human.valid)


def test_switched_off_the_normal_half_is_the_human_boxes(detector):
    human = view([[0, 0, 10, 10]], [0])
    detector["upright"] = detections(np.zeros((0, 4)), [], [])
    supervision, told = stepping.normal_supervision(None, None, look(human), config(), CRITERIA)
    assert supervision.ask_teacher is None and told == {}
    np.testing.assert_array_equal(supervision.targets.boxes, human.boxes)
