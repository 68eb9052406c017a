"""The switches beyond the paper, with a detector that says what the test wants."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.config import recipes
from mixtrain_jax.mixtraining import mending
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.types import Batch, Detections, Targets, View

CRITERIA = mending.Criteria(jnp.float32(0.4))


def one(x):
    return x


def config(**fields):
    options = recipes.base().mixtraining
    options.update(fields)
    return options


def view(boxes, labels, width=40, side=64):
    """One image, `width` of its `side` columns used, every column its own grey."""
    image = np.zeros((1, side, side, 3), np.float32)
    image[:, :, :width] = np.arange(1, width + 1)[:, None]
    count = len(boxes)
    return View(
        image=jnp.asarray(image),
        size=jnp.array([[side, width]]),
        matrix=jnp.eye(3)[None],
        boxes=jnp.asarray(boxes, jnp.float32).reshape(1, count, 4),
        labels=jnp.asarray(labels, jnp.int32)[None],
        valid=jnp.ones((1, count), bool),
        index=jnp.zeros(1, jnp.int32),
    )


def detections(boxes, labels, scores):
    return Detections(
        jnp.asarray(boxes, jnp.float32)[None],
        jnp.asarray(scores, jnp.float32)[None],
        jnp.asarray(labels, jnp.int32)[None],
        jnp.ones((1, len(boxes)), bool),
    )


class Stub:
    """Stands in for the detector: `upright` and `mirrored` are what it finds in either view."""

    def __init__(self):
        self.found, self.seen = {}, []

    def features(self, image, size, keys=None):
        self.seen.append(np.asarray(image))
        return (image,)

    def proposals(self, pyramid, size):
        return None

    def detect(self, pyramid, size, proposals):
        upright = float(pyramid[0][0, 0, 0, 0]) == 1
        return self.found["upright" if upright else "mirrored"], jnp.ones(1, bool)

    def score_boxes(self, pyramid, size, boxes, stage=None):
        return self.found["probabilities"]

    def rate_boxes(self, pyramid, size, boxes, stage=None):
        drawn = self.found["drawn"] if "drawn" in self.found else boxes + self.found["moved"]
        return self.found["probabilities"], drawn


@pytest.fixture
def detector(monkeypatch):
    """What the stub finds, to be filled in."""
    stub = Stub()
    monkeypatch.setattr(teaching, "bind", lambda model, params: stub)
    return stub.found


def least_score(config, *views):
    weak, normal = views if len(views) == 2 else (*views, None)
    return mending.least_score(None, None, Batch(normal, weak, weak), config, one)


def test_threshold_is_the_constant_or_where_the_mirrored_view_agrees(detector):
    assert least_score(config(pseudo_score_threshold=0.25), None) == np.float32(0.25)
    places = [[0, 3 * n, 4, 3 * n + 3] for n in range(20)]
    mirrored = [[36, 3 * n, 40, 3 * n + 3] for n in range(20)]
    scores = [0.955 - 0.04 * n for n in range(20)]
    detector["upright"] = detections(places, [0] * 20, scores)
    labels = [1 if n in (8, 12, 13, 14, 15, 16, 17, 18, 19) else 0 for n in range(20)]
    detector["mirrored"] = detections(mirrored, labels, [0.1] * 20)
    # 11 of the first 12 agree and no more after: 11 of 13, 11 of 14, ..., 11 of 20
    for share, expected in ((0.9, 0.48), (0.8, 0.44), (0.55, 0.0), (1.0, 1.0)):
        least = least_score(config(auto_agreement=share), view([], []))
        assert least == pytest.approx(expected)
    human = view(places[:11], [0] * 11)  # the others are nine, too few to tell
    assert least_score(config(auto_agreement=0.1), human) == 1
    both = config(auto_agreement=0.1, mend_normal=True)  # nine in each half are enough
    assert least_score(both, human, human) < 1


def test_threshold_by_count_finds_at_most_a_share_of_what_people_drew(detector):
    scores = [0.955 - 0.05 * n for n in range(15)]
    detector["upright"] = detections([[0, 0, 4, 4]] * 15, [0] * 15, scores)
    human = view([[0, 0, 4, 4]] * 4, [0] * 4)  # overlapped or not, and whatever is found
    for count, found in ((0.5, 2), (0.7, 2), (1.0, 4), (2.0, 8), (10.0, 15)):
        least = least_score(config(auto_count=count), human)
        assert sum(score > least for score in scores) == found
    both = least_score(config(auto_count=0.5, mend_normal=True), human, view([], []))
    assert both == pytest.approx(0.91)  # what the first half finds, the other finds too
    assert least_score(config(auto_count=0.5), view([], [])) == 0.96


def test_threshold_by_count_is_of_balanced_scores(detector):
    detector["upright"] = detections([[0, 0, 4, 4]] * 2, [0, 1], [0.5, 0.4])
    batch = Batch(None, view([[0, 0, 4, 4]], [0]), None)
    least = mending.least_score(
        None, None, batch, config(auto_count=1.0), one, jnp.array([0.5, 2.0])
    )
    assert least == np.float32(0.34)
    found, _ = teaching.find(
        None, None, teaching.TeacherView((jnp.ones((1, 1, 1, 1)),), *[None] * 3), least,
        jnp.array([0.5, 2.0]),
    )  # fmt: skip
    np.testing.assert_allclose(found.scores[0], [1 / 3, 4 / 7], rtol=1e-6)  # odds of 1/2 and 4/3
    np.testing.assert_array_equal(found.valid[0], [False, True])


def test_balanced_scores_are_probabilities(detector):
    detector["upright"] = detections([[0, 0, 4, 4]] * 3, [0] * 3, [1.0, 0.9, 0.0])
    seen = teaching.TeacherView((jnp.ones((1, 1, 1, 1)),), *[None] * 3)
    for balance in (0.1, 1.0, 9.0):
        found, _ = teaching.find(None, None, seen, 0.0, jnp.array([balance]))
        odds = 9 * balance
        np.testing.assert_allclose(found.scores[0], [1, odds / (odds + 1), 0], rtol=1e-6)
    none = mending.least_score(
        None, None, Batch(None, view([], []), None), config(auto_count=1.0), one, jnp.array([9.0])
    )
    assert not (found.scores > none).any()


def test_labels_are_as_hard_as_the_teacher_agrees(detector):
    """Of three boxes it names two; one it draws with IoU .8, two with .6; one is padding."""
    detector["probabilities"] = jnp.array(
        [[[0.3, 0.1, 0.6], [0.1, 0.2, 0.7], [0.1, 0.2, 0.7], [0.9, 0.1, 0.0]]]
    )
    human = view([[0, 0, 10, 10], [20, 20, 30, 30], [0, 20, 10, 30], [0, 0, 0, 0]], [0, 1, 0, 0])
    human = human.replace(valid=jnp.array([[True, True, True, False]]))
    detector["moved"] = jnp.array([[[0.0, 0, 0, -2], [0, 4, 0, 0], [0, 0, -4, 0], [0, 0, 0, 0]]])
    model = SimpleNamespace(num_classes=2)
    both = Batch(human, human, human)
    made = mending.criteria(model, None, both, config(auto_share=True), one)
    np.testing.assert_allclose(made.shares, [2 / 3, 1 / 3], rtol=1e-6)
    unnamed = human.replace(labels=1 - human.labels)
    made = mending.criteria(
        model, None, Batch(unnamed, unnamed, None), config(auto_share=True), one
    )
    np.testing.assert_allclose(made.shares, [1 / 3, 1 / 3], rtol=1e-6)
    shares = mending.agreement(model, None, both, one, jnp.array([0.1, 1.0]))
    np.testing.assert_allclose(shares[0], 1 / 3, rtol=1e-6)  # all are named the second class
    nothing = human.replace(valid=jnp.zeros((1, 4), bool))
    made = mending.criteria(
        model, None, Batch(nothing, nothing, None), config(auto_share=True), one
    )
    np.testing.assert_array_equal(made.shares, [1, 1])
    made = mending.criteria(model, None, both, config(label_share=0.25), one)
    np.testing.assert_array_equal(made.shares, [0.25, 0.25])
    made = mending.criteria(model, None, both, config(balance_classes=True), one)
    assert made.shares is None
    expected = mending.class_balance(model, None, both, one)
    np.testing.assert_array_equal(made.balance, expected)


def test_labels_are_left_out_where_they_are_more_likely_wrong(detector):
    """Against a count of cases: 40% of the labels are right, the teacher is calibrated."""
    rng = np.random.default_rng(0)
    classes, share, cases = 6, 0.4, 400_000
    chances = rng.dirichlet(np.full(classes, 0.5), cases)
    truth = (chances.cumsum(1) > rng.random((cases, 1))).argmax(1)
    other = (truth + rng.integers(1, classes, cases)) % classes
    labels = np.where(rng.random(cases) < share, truth, other)
    rating = chances[np.arange(cases), labels]
    limit = float(mending.even_rating(jnp.float32(share), classes))
    near = np.abs(rating - limit) < 0.02
    assert near.sum() > 3000
    assert (labels == truth)[near].mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("auto_rating", "kept"), [(False, (1, 0)), (True, (3, 1))])
def test_the_rating_that_leaves_out_may_be_found(detector, auto_rating, kept):
    """Of three labels the teacher agrees with two, so 1/3 is the limit of two classes."""
    detector["probabilities"] = jnp.array([[[0.8, 0.2, 0], [0.25, 0.75, 0], [0.6, 0.4, 0]]])
    detector["moved"] = 0.0
    human = view([[0, 0, 10, 10], [20, 20, 30, 30], [0, 20, 10, 30]], [0, 1, 1])
    detector["upright"] = detections([[0, 50, 4, 54]], [0], [0.1])
    method = config(
        auto_rating=auto_rating, rate_given_object=True, mend_normal=True,
        normal_gt_score_threshold=0.75,
    )  # fmt: skip
    both = Batch(human, human, human)
    made = mending.criteria(SimpleNamespace(num_classes=2), None, both, method, one)
    assert (made.hard is not None) == auto_rating and made.shares is None
    if auto_rating:
        assert float(made.hard) == pytest.approx(1 / 3)
    other = human.replace(labels=jnp.array([[1, 0, 1]]))
    for half, count in zip((human, other), kept, strict=True):
        _, _, told = mending.normal_half(None, None, half, made, method, one)
        assert told["boxes/kept_normal"] == count


def test_classes_are_balanced_by_what_people_say_of_the_same_boxes(detector):
    detector["probabilities"] = jnp.array([[[0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.9, 0.1, 0.0]]])
    human = view([[0, 0, 9, 9], [20, 20, 30, 30], [0, 0, 0, 0]], [1, 1, 0])
    human = human.replace(valid=jnp.array([[True, True, False]]))
    model = SimpleNamespace(num_classes=2)
    balance = mending.class_balance(model, None, Batch(human, human, None), one)
    said = 1 + 2 * np.array([0.75 + 0.5, 0.25 + 0.5])  # either view, given that there is an object
    np.testing.assert_allclose(balance, np.array([1, 1 + 4]) / said, rtol=1e-6)


@pytest.mark.parametrize(
    ("given_object", "balance", "expected"),
    [
        (False, None, [0.6, 0.1]),
        (True, None, [0.75, 0.5]),
        (False, [0.5, 2.0], [0.3 / 0.9, 0.2 / 1.05]),
        (True, [0.5, 2.0], [0.3 / 0.7, 0.2 / 0.25]),
    ],
)
def test_ratings(detector, given_object, balance, expected):
    detector["probabilities"] = jnp.array([[[0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.5, 0.5, 0.0]]])
    human = Targets(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 0]]), jnp.array([[True, True, False]]))
    balance = None if balance is None else jnp.array(balance)
    seen = seen_from(np.eye(3))
    rated = teaching.rate(None, None, seen, human, given_object=given_object, balance=balance)
    np.testing.assert_allclose(rated[0], [*expected, 0], rtol=1e-6)


def test_agrees_keeps_what_the_mirrored_view_has_too(detector):
    upright = [[0, 10, 10, 20], [20, 10, 30, 20], [5, 40, 15, 50], [30, 50, 40, 60]]
    found = detections(upright, [0, 1, 0, 1], [0.9, 0.8, 0.7, 0.6])
    # mirrored in 40 columns: the first is there, the second in another class, the third shifted
    # by 4 of 10 pixels (IoU .43), the fourth is not
    detector["mirrored"] = detections(
        [[30, 10, 40, 20], [10, 10, 20, 20], [29, 40, 39, 50]], [0, 0, 0], [0.1, 0.9, 0.9]
    )
    for iou, expected in ((0.4, [True, False, True, False]), (0.5, [True, False, False, False])):
        kept = teaching.agrees(None, None, view([], []), found, iou)
        np.testing.assert_array_equal(kept[0], expected)


def test_agrees_mirrors_within_the_image_and_leaves_the_padding(monkeypatch):
    stub = Stub()
    stub.found["mirrored"] = detections(np.zeros((1, 4)), [0], [0.0])
    monkeypatch.setattr(teaching, "bind", lambda model, params: stub)
    teaching.agrees(None, None, view([], []), detections([[0, 0, 1, 1]], [0], [1.0]), 0.5)
    np.testing.assert_array_equal(stub.seen[0][0, 0, :40, 0], np.arange(40, 0, -1))
    np.testing.assert_array_equal(stub.seen[0][0, 0, 40:, 0], 0)


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
    targets, say, told = mending.normal_half(None, None, human, CRITERIA, method, one)
    assert say is None
    np.testing.assert_array_equal(targets.valid[0], [*kept, replaced_by, True, False])
    np.testing.assert_array_equal(targets.boxes[0, :2], human.boxes[0])
    np.testing.assert_array_equal(targets.labels[0, :2], human.labels[0])
    np.testing.assert_array_equal(targets.boxes[0, 3], [20, 40, 30, 50])
    assert told["boxes/missing_normal"] == 1
    assert told["boxes/kept_normal"] == sum(kept)
    assert told["boxes/replaced_normal"] == told["boxes/mending_normal"] == replaced_by


def seen_from(matrix, size=(64, 40)):
    """A teacher's view of which the student's is the view by the matrix."""
    there = jnp.asarray(matrix, jnp.float32)[None]
    size = jnp.array([size])
    return teaching.TeacherView((jnp.ones((1, 1, 1, 1)),), size, there, jnp.linalg.inv(there))


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
        say = mending.teachers_say(
            None, None, seen, human, jnp.array([left_out]), targets, size, (0.25, 0.5)
        )
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
    targets, say, told = mending.normal_half(
        None, None, human, CRITERIA, config(soften_normal=True), one
    )
    opinion = say(0, human.boxes)
    assert opinion.soft is None and told == {}
    np.testing.assert_array_equal(opinion.probabilities, detector["probabilities"])
    np.testing.assert_array_equal(targets.valid, human.valid)


def test_switched_off_the_normal_half_is_the_human_boxes():
    human = view([[0, 0, 10, 10]], [0])
    targets, say, told = mending.normal_half(None, None, human, CRITERIA, config(), one)
    assert say is None and told == {}
    np.testing.assert_array_equal(targets.boxes, human.boxes)
