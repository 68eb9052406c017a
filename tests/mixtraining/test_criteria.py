"""By what a step judges, with a detector that says what the test wants."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.mixtraining import criteria as judging
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.types import Targets
from tests.mixtraining.stub import Stub, config, detections, one, seen_from, view


@pytest.fixture
def detector(monkeypatch):
    """What the stub finds, to be filled in."""
    stub = Stub()
    monkeypatch.setattr(teaching, "bind", lambda model, params: stub)
    return stub.found


def looks(*views):
    return [teaching.teacher_predictions(None, None, view, view) for view in views]


def score_threshold(config, *views):
    return judging.find_score_threshold(None, None, looks(*views), config, one)


def test_threshold_is_the_constant_or_where_the_mirrored_view_agrees(detector):
    assert score_threshold(config(pseudo_score_threshold=0.25)) == np.float32(0.25)
    places = [[0, 3 * n, 4, 3 * n + 3] for n in range(20)]
    mirrored = [[36, 3 * n, 40, 3 * n + 3] for n in range(20)]
    scores = [0.955 - 0.04 * n for n in range(20)]
    detector["upright"] = detections(places, [0] * 20, scores)
    labels = [1 if n in (8, 12, 13, 14, 15, 16, 17, 18, 19) else 0 for n in range(20)]
    detector["mirrored"] = detections(mirrored, labels, [0.1] * 20)
    # 11 of the first 12 agree and no more after: 11 of 13, 11 of 14, ..., 11 of 20
    for share, expected in ((0.9, 0.48), (0.8, 0.44), (0.55, 0.0), (1.0, 1.0)):
        least = score_threshold(config(auto_agreement=share), view([], []))
        assert least == pytest.approx(expected)
    human = view(places[:11], [0] * 11)  # the others are nine, too few to tell
    assert score_threshold(config(auto_agreement=0.1), human) == 1
    ten = view(places[:10], [0] * 10)
    assert score_threshold(config(auto_agreement=0.1), ten) == 0
    both = human, human  # nine in each half are enough
    assert score_threshold(config(auto_agreement=0.1), *both) < 1


def test_threshold_by_count_finds_at_most_a_share_of_what_people_drew(detector):
    scores = [0.955 - 0.05 * n for n in range(15)]
    detector["upright"] = detections([[0, 0, 4, 4]] * 15, [0] * 15, scores)
    human = view([[0, 0, 4, 4]] * 4, [0] * 4)  # overlapped or not, and whatever is found
    for count, found in ((0.5, 2), (0.7, 2), (1.0, 4), (2.0, 8), (10.0, 15)):
        least = score_threshold(config(auto_count=count), human)
        assert sum(score > least for score in scores) == found
    both = score_threshold(config(auto_count=0.5), human, view([], []))
    assert both == pytest.approx(0.91)  # what the first half finds, the other finds too
    assert score_threshold(config(auto_count=0.5), view([], [])) == 0.96


@pytest.mark.parametrize("mend_normal", [True, False])
def test_the_normal_half_counts_for_the_threshold_where_it_is_mended(detector, mend_normal):
    detector["upright"] = detections([[0, 0, 4, 4]], [0], [0.9])
    both = looks(view([], []), view([[0, 0, 4, 4]] * 2, [0] * 2))
    fields = dict(auto_count=1.0, balance_classes=True, mend_normal=mend_normal)
    made = judging.compute_criteria(
        SimpleNamespace(num_classes=2), None, *both, config(**fields), one
    )
    # Two are found; none is drawn in the mixed half.
    assert (made.score_threshold < 0.9) == mend_normal


def test_threshold_by_count_is_of_balanced_scores(detector):
    detector["upright"] = detections([[0, 0, 4, 4]] * 2, [0, 1], [0.5, 0.4])
    seen, balance = looks(view([[0, 0, 4, 4]], [0])), jnp.array([0.5, 2.0])
    least = judging.find_score_threshold(None, None, seen, config(auto_count=1.0), one, balance)
    assert least == np.float32(0.34)
    found = teaching.keep_above(teaching.balance_scores(seen[0].detections, balance), least)
    np.testing.assert_allclose(found.scores[0], [1 / 3, 4 / 7], rtol=1e-6)  # odds of 1/2 and 4/3
    np.testing.assert_array_equal(found.valid[0], [False, True])


def test_balanced_scores_are_probabilities(detector):
    detector["upright"] = detections([[0, 0, 4, 4]] * 3, [0] * 3, [1.0, 0.9, 0.0])
    for balance in (0.1, 1.0, 9.0):
        found = teaching.balance_scores(detector["upright"], jnp.array([balance]))
        odds = 9 * balance
        np.testing.assert_allclose(found.scores[0], [1, odds / (odds + 1), 0], rtol=1e-6)
    seen = looks(view([], []))
    none = judging.find_score_threshold(
        None, None, seen, config(auto_count=1.0), one, jnp.array([9.0])
    )
    assert not (found.scores > none).any()


def test_labels_are_as_hard_as_the_teacher_agrees(detector):
    """Of three boxes it names two; of two that it finds it draws one alike; one is padding."""
    detector["probabilities"] = jnp.array(
        [[[0.3, 0.1, 0.6], [0.1, 0.2, 0.7], [0.1, 0.2, 0.7], [0.9, 0.1, 0.0]]]
    )
    human = view([[0, 0, 10, 10], [20, 20, 30, 30], [0, 20, 10, 30], [0, 0, 0, 0]], [0, 1, 0, 0])
    human = human.replace(valid=jnp.array([[True, True, True, False]]))
    detector["upright"] = detections(  # IoU .8, .6, and .9 of another class
        [[0, 0, 10, 8], [20, 24, 30, 30], [0, 21, 10, 30]], [0, 1, 1], [0.9, 0.2, 0.9]
    )
    model = SimpleNamespace(num_classes=2)

    def made(*views, **fields):
        return judging.compute_criteria(model, None, *looks(*views), config(**fields), one)

    def shares(*views, **fields):
        return made(*views, **fields)[2:4]

    both = human, human
    np.testing.assert_allclose(shares(*both, auto_share=True), [2 / 3, 1 / 2], rtol=1e-6)
    least = made(*both, auto_share=True).rating_threshold
    np.testing.assert_allclose(least, 1 / 3, rtol=1e-6)  # of two classes
    other = human.replace(labels=jnp.array([[1, 0, 1, 1]]))  # finds one, alike, and names one
    np.testing.assert_allclose(shares(other, other, auto_share=True), [1 / 3, 1 / 3], rtol=1e-6)
    balanced = judging.agreement(model, None, looks(*both), one, jnp.array([0.1, 1.0]))
    np.testing.assert_allclose(balanced[0], 1 / 3, rtol=1e-6)  # all are named the second class
    nothing = human.replace(valid=jnp.zeros((1, 4), bool))
    np.testing.assert_array_equal(shares(nothing, nothing, auto_share=True), [1, 1])
    np.testing.assert_array_equal(shares(*both, label_share=0.25), [0.25, 0.25])
    _, balance, *others = made(*both, balance_classes=True)
    assert others == [None, None, None]
    np.testing.assert_array_equal(balance, judging.class_balance(looks(*both), 2, one))


def test_the_balance_of_a_step_counts_for_all_that_it_judges_by(detector):
    detector["probabilities"] = jnp.array([[[0.5, 0.4, 0.1], [0.5, 0.4, 0.1]]])
    detector["upright"] = detections(
        [[0, 0, 10, 10], [20, 20, 30, 30], [0, 40, 10, 50]], [0, 0, 0], [0.8, 0.8, 0.7]
    )
    human = view([[0, 0, 10, 10], [20, 20, 30, 30]], [1, 1])
    model, both = SimpleNamespace(num_classes=2), looks(human, human)
    fields = config(auto_share=True, auto_count=1.0, balance_classes=True, mend_normal=True)
    made = judging.compute_criteria(model, None, *both, fields, one)
    balance = judging.class_balance(both, 2, one)
    for given, same in ((balance, True), (None, False)):
        shares = judging.agreement(model, None, both, one, given)
        least = judging.find_score_threshold(model, None, both, fields, one, given)
        assert (made.label_share == shares[0]) == same
        assert (made.score_threshold == least) == same


def test_no_rating_is_told_where_none_leaves_out(detector):
    detector["probabilities"] = jnp.array([[[0.5, 0.4, 0.1]]])
    detector["upright"] = detections([[0, 0, 10, 10]], [0], [0.8])
    both = looks(view([[0, 0, 10, 10]], [0]), view([[0, 0, 10, 10]], [0]))
    for mixed in (True, False):
        fields = config(auto_share=True, mixed_augmentation=mixed)
        made = judging.compute_criteria(SimpleNamespace(num_classes=2), None, *both, fields, one)
        assert (made.rating_threshold is not None) == mixed


def test_labels_are_left_out_where_they_are_more_likely_wrong():
    """Against a count of cases: 40% of the labels are right, the teacher is calibrated."""
    rng = np.random.default_rng(0)
    classes, share, cases = 6, 0.4, 400_000
    chances = rng.dirichlet(np.full(classes, 0.5), cases)
    truth = (chances.cumsum(1) > rng.random((cases, 1))).argmax(1)
    other = (truth + rng.integers(1, classes, cases)) % classes
    labels = np.where(rng.random(cases) < share, truth, other)
    rating = chances[np.arange(cases), labels]
    limit = float(judging.even_rating(jnp.float32(share), classes))
    near = np.abs(rating - limit) < 0.02
    assert near.sum() > 3000
    assert (labels == truth)[near].mean() == pytest.approx(0.5, abs=0.03)


def balance_of(detector, labels, scores, named, absent=0):
    """The factors where these are the detections, and those the classes that people name."""
    detector["upright"] = detections(np.zeros((len(labels), 4)), labels, scores)
    human = view(np.zeros((len(named), 4)), named)
    human = human.replace(valid=jnp.arange(len(named))[None] < len(named) - absent)
    return judging.class_balance(looks(human, human), 3, one)


def test_balanced_detections_are_as_common_as_people_name_their_classes(detector):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [550, 300, 150])
    scores = rng.uniform(0.05, 0.3, 1000)
    balance = balance_of(detector, labels, scores, [0] * 30 + [1] * 30 + [2] * 30)
    weighed = teaching.balance_scores(detector["upright"], balance).scores[0]
    sums = np.array([weighed[labels == c].sum() for c in range(3)])
    before = np.array([scores[labels == c].sum() for c in range(3)])
    assert before.max() / before.min() > 3
    np.testing.assert_allclose(sums / sums.sum(), np.full(3, 1 / 3), atol=0.02)
    assert sums.sum() == pytest.approx(before.sum(), rel=0.1)


def test_the_balance_counts_one_box_more_of_every_class(detector):
    """By a float64 loop; the last human box is padding, and the third class is nowhere."""
    labels, scores = np.array([0, 0, 1]), np.array([0.9, 0.5, 0.2])
    balance = balance_of(detector, labels, scores, [1, 1, 0, 2], absent=1)
    expected, factors = 2 * scores.sum() * np.array([1, 2, 0]) / 3, np.ones(3)
    for _ in range(judging.ROUNDS):
        odds = scores / (1 - scores) * factors[labels]
        weighed = odds / (1 + odds)
        said = 2 * np.array([weighed[labels == c].sum() for c in range(3)])  # of two views
        factors = factors * (expected + 1) / (said + factors)
    np.testing.assert_allclose(balance, factors, rtol=1e-5)
    assert balance[2] == 1


def test_a_class_that_is_never_found_gets_no_boundless_factor(detector):
    balance = balance_of(detector, np.array([0, 0]), np.array([0.9, 0.8]), [0, 1])
    assert balance[1] == pytest.approx(1 + 2 * 1.7 / 2)


def test_without_human_boxes_the_classes_stay_as_they_are(detector):
    balance = balance_of(detector, np.array([0, 1]), np.array([0.9, 0.2]), [0, 1], absent=2)
    np.testing.assert_array_equal(balance, np.ones(3))


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
    rated = teaching.rate_boxes(None, None, seen, human, given_object=given_object, balance=balance)
    np.testing.assert_allclose(rated[0], [*expected, 0], rtol=1e-6)


def test_given_an_object_classes_add_up_to_one_however_sure_the_teacher_is_of_background(detector):
    logits = jnp.array([[[0.0, -1.0, 25.0]]])
    detector["probabilities"] = jax.nn.softmax(logits)
    chances = teaching.class_probabilities(None, None, seen_from(np.eye(3)), jnp.zeros((1, 1, 4)))
    np.testing.assert_allclose(chances[0, 0], jax.nn.softmax(logits[0, 0, :2]), rtol=1e-5)


def test_found_in_mirror_keeps_what_the_mirrored_view_has_too(detector):
    upright = [[0, 10, 10, 20], [20, 10, 30, 20], [5, 40, 15, 50], [30, 50, 40, 60]]
    found = detections(upright, [0, 1, 0, 1], [0.9, 0.8, 0.7, 0.6])
    # mirrored in 40 columns: the first is there, the second in another class, the third shifted
    # by 4 of 10 pixels (IoU .43), the fourth is not
    detector["mirrored"] = detections(
        [[30, 10, 40, 20], [10, 10, 20, 20], [29, 40, 39, 50]], [0, 0, 0], [0.1, 0.9, 0.9]
    )
    for iou, expected in ((0.4, [True, False, True, False]), (0.5, [True, False, False, False])):
        kept = teaching.found_in_mirror(None, None, view([], []), found, iou)
        np.testing.assert_array_equal(kept[0], expected)


def test_found_in_mirror_mirrors_within_the_image_and_leaves_the_padding(monkeypatch):
    stub = Stub()
    stub.found["mirrored"] = detections(np.zeros((1, 4)), [0], [0.0])
    monkeypatch.setattr(teaching, "bind", lambda model, params: stub)
    teaching.found_in_mirror(None, None, view([], []), detections([[0, 0, 1, 1]], [0], [1.0]), 0.5)
    np.testing.assert_array_equal(stub.seen[0][0, 0, :40, 0], np.arange(40, 0, -1))
    np.testing.assert_array_equal(stub.seen[0][0, 0, 40:, 0], 0)
