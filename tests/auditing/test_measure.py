import numpy as np
import pytest

from mixtrain_jax.auditing import measure, noise
from mixtrain_jax.auditing.findings import (
    CLASS,
    DUPLICATE,
    KINDS,
    MISSING,
    PLACE,
    SPURIOUS,
    Findings,
)
from mixtrain_jax.auditing.labels import Labels
from tests.auditing import simulated


def table(*rows):
    """Labels from (image, class, x1, y1, x2, y2)."""
    numbers = np.array(rows, np.float32).reshape(-1, 6)
    return Labels(numbers[:, 0].astype(np.int32), numbers[:, 2:], numbers[:, 1].astype(np.int32))


HUMAN = table(
    (0, 0, 0, 0, 10, 10),  # right
    (0, 1, 20, 0, 30, 10),  # another class
    (0, 0, 44, 0, 54, 10),  # badly placed, IoU .43
    (1, 0, 0, 0, 10, 10),  # spurious
    (1, 1, 50, 50, 60, 60),  # right
    (1, 1, 51, 50, 61, 60),  # a duplicate
    (2, 0, 0, 0, 5, 5),  # of an image without truth
)
TRUTH = table(
    (0, 0, 0, 0, 10, 10),
    (0, 0, 20, 0, 30, 10),
    (0, 0, 40, 0, 50, 10),
    (1, 1, 50, 50, 60, 60),
    (1, 0, 80, 80, 90, 90),  # missing
)
KNOWN = np.array([True, True, False])


def findings(*rows):
    """Findings from (score, kind, human, image, label, box)."""
    score, kind, human, image, labels, boxes = zip(*rows)
    return Findings(
        np.array(image, np.int32),
        np.array(kind, np.int8),
        np.array(score, np.float32),
        np.array(human, np.int32),
        np.zeros(len(rows), np.int32),
        np.array(boxes, np.float32),
        np.array(labels, np.int32),
    )


def test_real_errors_are_read_off_better_labels():
    errors = measure.real(HUMAN, TRUTH, KNOWN)
    right = measure.RIGHT
    expected = [right, CLASS, PLACE, SPURIOUS, right, DUPLICATE, right]
    np.testing.assert_array_equal(errors.kinds, expected)
    np.testing.assert_array_equal(errors.missing.boxes, [[80, 80, 90, 90]])


def test_planted_errors_are_counted_by_kind():
    clean, sizes = simulated.truth(0)
    planted = noise.plant(clean, sizes, simulated.CLASSES, 0.1, seed=0)
    errors = measure.planted(planted, clean, len(sizes))
    count = round(0.1 * len(clean))
    assert np.bincount(errors.kinds + 1, minlength=6)[1:].tolist() == [count, count, 0, count, 0]
    assert len(errors.missing) == count


def test_verdicts():
    errors = measure.real(HUMAN, TRUTH, KNOWN)
    box = [80, 80, 90, 92]
    verdicts = measure.judge(
        findings(
            (0.9, MISSING, -1, 1, 0, box),
            (0.8, MISSING, -1, 1, 0, box),  # the same object again
            (0.7, MISSING, -1, 1, 1, box),  # of another class
            (0.6, SPURIOUS, 5, 1, 1, box),  # the duplicate: it should go, which is what counts
            (0.5, SPURIOUS, 2, 0, 0, box),  # badly placed, but it should not go
            (0.4, CLASS, 0, 0, 1, box),  # nothing is wrong
            (0.95, CLASS, 6, 2, 1, box),  # no truth: not judged
        ),
        errors,
    )
    np.testing.assert_allclose(verdicts.score, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    np.testing.assert_array_equal(verdicts.right, [1, 0, 0, 1, 0, 0])
    right = measure.RIGHT
    np.testing.assert_array_equal(verdicts.names, [MISSING, right, right, DUPLICATE, PLACE, right])
    assert sorted(KINDS[kind] for kind in verdicts.missed_kind) == ["class", "spurious"]
    assert verdicts.errors() == 5
    assert verdicts.errors((MISSING,)) == 1


def test_average_precision_and_auroc_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    score = np.sort(rng.random(500))[::-1]
    right = rng.random(500) < score**2
    ours = measure.average_precision(right, int(right.sum()))
    assert ours == pytest.approx(metrics.average_precision_score(right, score))
    assert measure.auroc(score, right) == pytest.approx(metrics.roc_auc_score(right, score))
    ties = np.round(score, 1)
    assert measure.auroc(ties, right) == pytest.approx(metrics.roc_auc_score(right, ties))


def test_errors_nobody_names_cost():
    right = np.array([True, True, False])
    assert measure.average_precision(right, 4) == 0.5
    assert measure.recall_at_precision(right, 4) == 0.5
    assert measure.auroc(np.array([0.9, 0.8, 0.1]), right, unnamed=2) == 0.5
    assert measure.precision_at(right, 10) == 0.2


def test_without_errors_there_is_no_number():
    right = np.zeros(3, bool)
    assert np.isnan(measure.average_precision(right, 0))
    assert np.isnan(measure.auroc(np.zeros(3), right))
    assert np.isnan(measure.recall_at_precision(right, 0))


def test_calibration_error_is_zero_for_a_calibrated_score_and_not_otherwise():
    rng = np.random.default_rng(0)
    score = rng.random(100_000)
    right = rng.random(100_000) < score
    assert measure.calibration_error(score, right) < 0.01
    assert measure.calibration_error(score**2, right) == pytest.approx(1 / 6, abs=0.01)
    assert [count for _, _, count in measure.reliability(score, right)] == [10_000] * 10


def test_bootstrap_counts_whole_images():
    clean, sizes = simulated.truth(0, images=30)
    planted = noise.plant(clean, sizes, simulated.CLASSES, 0.1, seed=0)
    errors = measure.planted(planted, clean, 30)
    rng = np.random.default_rng(0)
    rows = np.arange(len(planted.labels))
    wrong = errors.kinds >= 0
    found = Findings(
        planted.labels.image,
        np.where(wrong, errors.kinds, CLASS).astype(np.int8),
        np.where(wrong, 0.4, 0.2).astype(np.float32) + rng.random(len(rows)).astype(np.float32) / 2,
        rows.astype(np.int32),
        rows.astype(np.int32),
        planted.labels.boxes,
        planted.labels.labels,
    )
    verdicts = measure.judge(found, errors)

    def metric(v):
        return measure.average_precision(v.right, v.errors())

    twice = measure.resample(verdicts, np.full(30, 2))
    assert twice.errors() == 2 * verdicts.errors()
    once = measure.resample(verdicts, np.ones(30, int))
    assert metric(once) == pytest.approx(metric(verdicts))
    low, high = measure.bootstrap(verdicts, metric, 30, rounds=100)
    assert low < metric(verdicts) < high


def test_agreement_counts_pairs_of_one_class():
    """Of 6 labels and 5 true boxes two agree at IoU .5: one is of another class, one shifted."""
    assert measure.agreement(HUMAN, TRUTH, KNOWN, 0.5) == pytest.approx(2 * 2 / 11)
    assert measure.agreement(HUMAN, TRUTH, KNOWN, 0.4) == pytest.approx(2 * 3 / 11)
    assert measure.agreement(TRUTH, TRUTH, KNOWN, 0.9) == 1
    assert np.isnan(measure.agreement(HUMAN, TRUTH, np.zeros(3, bool), 0.5))


@pytest.mark.parametrize(("highest", "expected"), [(0.9, 0.5), (0.4, 0.0)])
def test_images_are_ranked_by_their_highest_finding(highest, expected):
    """Errors in the first image and, seen by no finding, in the third; none in the second."""
    verdicts = measure.Verdicts(
        score=np.array([highest, 0.2, 0.5]),
        right=np.array([True, False, False]),
        names=np.array([CLASS, measure.RIGHT, measure.RIGHT]),
        kind=np.array([CLASS, CLASS, CLASS]),
        image=np.array([0, 0, 1]),
        missed_image=np.array([2]),
        missed_kind=np.array([MISSING]),
    )
    assert measure.image_auroc(verdicts) == expected
