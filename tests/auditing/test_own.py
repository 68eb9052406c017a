"""An audit that learns from errors planted into the labels at hand, on simulated detectors."""

import numpy as np
import pytest

from mixtrain_jax.auditing import findings as finding
from mixtrain_jax.auditing import measure, noise, own, ranking
from mixtrain_jax.auditing.labels import Labels
from mixtrain_jax.errors import UserError
from tests.auditing import simulated

SEEDS = (100, 200)  # of the looks


def looks(clean, labels, sizes, timid):
    """Two looks; a timid detector gives all scores and probabilities of objects a fifth."""
    made = []
    for seed in SEEDS:
        look = simulated.look(clean, labels, sizes, seed)
        if timid:
            look.detections.scores[:] *= 0.2
            look.probabilities[:, :-1] *= 0.2
            look.probabilities[:, -1] = 1 - look.probabilities[:, :-1].sum(axis=1)
        made.append(look)
    return made


def audited(seed, share, images=400, timid=False, planted_into=None):
    """Errors in the labels, and rankings of them: by the labels themselves, by the package."""
    clean, sizes = simulated.truth(seed, images)
    noisy = noise.plant(clean, sizes, simulated.CLASSES, share, seed)
    errors = measure.planted(noisy, clean, images)
    human = noisy.labels
    first, second = looks(clean, human, sizes, timid)
    may = np.ones(images, bool)
    if planted_into is not None:
        may[planted_into:] = False
    planted, taken = own.plant(human, sizes, simulated.CLASSES, may)
    assert may[taken].all()
    third, fourth = looks(clean, planted.labels, sizes, timid)
    known = own.example(planted, human, np.isin(np.arange(images), taken), third, [fourth])
    by_own = own.rank(human, first, [second], images, known)
    return errors, by_own, ranking.rank(human, first, [second], images)


def numbers(errors, ranked):
    """Average precision, and the error of calibration."""
    verdicts = measure.judge(ranked.findings, errors)
    return (
        measure.average_precision(verdicts.right, verdicts.errors()),
        measure.calibration_error(verdicts.score, verdicts.right),
    )


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_scores_are_calibrated_though_the_labels_have_errors_of_their_own(share):
    errors, by_own, by_package = audited(3, share, images=800)
    precision, off = numbers(errors, by_own)
    assert precision > 0.9 and off < 0.06
    assert precision > numbers(errors, by_package)[0] + 0.1  # of detectors that it never saw
    for name in ("class", "place", "spurious"):
        assert by_own.shares[name] == pytest.approx(share, abs=0.3 * share + 0.01)


def test_a_detector_unlike_those_of_the_package_is_judged_by_itself():
    """Its best scores are below .2: nothing that the package's models have seen."""
    errors, by_own, by_package = audited(3, 0.1, timid=True)
    (mine, off), (packages, _) = numbers(errors, by_own), numbers(errors, by_package)
    assert mine > 0.9 and mine > packages + 0.1
    assert off < 0.1


def test_missing_boxes_count_by_which_more_is_missing(monkeypatch):
    """The timid detector's are found by planted ones; others may be of a sort nobody drew."""
    errors, by_own, by_package = audited(3, 0.1, timid=True)
    assert by_package.shares["missing"] < 0.01
    assert by_own.missing == pytest.approx(len(errors.missing), rel=0.4)
    monkeypatch.setattr(own, "FEWEST", 10_000)
    every = np.arange(400)
    monkeypatch.setattr(own, "plant", lambda *args: (noise.plant(*args[:3], own.SHARE, 0), every))
    _, by_own, by_package = audited(3, 0.1)
    assert by_own.missing == by_package.missing > 0


def test_good_labels_have_few_findings():
    errors, by_own, _ = audited(3, 0.0)
    assert (by_own.findings.score >= 0.5).sum() < 0.02 * len(errors.human)


def test_of_many_images_a_part_is_enough(monkeypatch):
    errors, by_own, _ = audited(3, 0.1, images=600, planted_into=300)
    assert numbers(errors, by_own)[0] > 0.9
    assert by_own.shares["class"] == pytest.approx(0.1, abs=0.04)
    monkeypatch.setattr(own, "IMAGES", 50)
    clean, sizes = simulated.truth(1, 200)
    planted, taken = own.plant(clean, sizes, simulated.CLASSES, np.arange(200) >= 20)
    assert len(taken) == 50 and taken.min() >= 20
    assert np.isin(planted.labels.image, taken).all()


def test_where_boxes_are_rare_images_with_some_are_taken_first(monkeypatch):
    """Of 3,000 images 300 have a box: a tenth of what is drawn by chance would be too few."""
    rng = np.random.default_rng(0)
    image = np.sort(rng.choice(3000, 300, replace=False)).astype(np.int32)
    corner = rng.uniform(0, 100, (300, 2))
    boxes = np.concatenate([corner, corner + 50], axis=1).astype(np.float32)
    human = Labels(image, boxes, rng.integers(0, simulated.CLASSES, 300).astype(np.int32))
    sizes = np.full((3000, 2), simulated.SIDE, np.int32)
    monkeypatch.setattr(own, "IMAGES", 500)
    planted, taken = own.plant(human, sizes, simulated.CLASSES, np.ones(3000, bool))
    assert np.isin(image, taken).all() and len(taken) == len(np.unique(taken)) == 500
    # An image whose only label was taken away is among those that were planted into.
    dropped = planted.dropped(human)
    looked = np.isin(np.arange(3000), taken)
    known = own.example(planted, human, looked, *_nothing(planted.labels, sizes))
    assert len(known.errors.missing) == len(dropped) == 30


@pytest.mark.parametrize("images", [90, 400])
def test_boxes_that_people_drew_twice_are_found(images):
    """Few or many, and exact copies: the labels' own twins look right to models fitted to them."""
    clean, sizes = simulated.truth(3, images)
    twins = np.arange(0, len(clean), 20)
    order = np.sort(np.concatenate([np.arange(len(clean)), twins]))
    human = clean.take(order)
    first, second = looks(clean, human, sizes, False)
    planted, taken = own.plant(human, sizes, simulated.CLASSES, np.ones(images, bool))
    third, fourth = looks(clean, planted.labels, sizes, False)
    known = own.example(planted, human, np.isin(np.arange(images), taken), third, [fourth])
    found = own.rank(human, first, [second], images, known).findings
    double = found.human[(found.kind == finding.DUPLICATE) & (found.score >= 0.5)]
    right = set(order[double].tolist()) & set(twins.tolist())
    assert len(right) > 0.8 * len(twins) and set(order[double].tolist()) <= set(twins.tolist())


def test_what_is_planted_names_where_it_came_from():
    clean, sizes = simulated.truth(1, 120)
    images = np.arange(120) % 2 == 0
    planted, taken = own.plant(clean, sizes, simulated.CLASSES, images)
    assert taken.tolist() == np.flatnonzero(images).tolist()
    known = own.example(planted, clean, images, *_nothing(planted.labels, sizes))
    kinds = known.errors.kinds
    count = round(own.SHARE * images[clean.image].sum())
    for kind in ("class", "place", "spurious"):
        assert (kinds == finding.KINDS.index(kind)).sum() == count
    assert len(known.errors.missing) == count and images[known.errors.missing.image].all()
    rest = (planted.source >= 0) & ~planted.moved(clean) & ~planted.flipped(clean)
    np.testing.assert_array_equal(planted.labels.boxes[rest], clean.boxes[planted.source[rest]])
    assert (known.errors.images == images).all()


def _nothing(labels, sizes):
    look = simulated.look(labels, labels, sizes, 0)
    return look, [look]


def test_of_one_class_none_is_another():
    clean, sizes = simulated.truth(1, 100)
    one = Labels(clean.image, clean.boxes, np.zeros_like(clean.labels))
    planted, _ = own.plant(one, sizes, 1, np.ones(100, bool))
    assert not planted.labels.labels.any() and planted.moved(one).any()


def test_too_few_boxes_are_one_line():
    clean, sizes = simulated.truth(1, 20)
    with pytest.raises(UserError, match=r"--calibration=own .* boxes are too few \(200 are needed"):
        own.plant(clean, sizes, simulated.CLASSES, np.ones(20, bool))


def test_how_common_errors_are_is_counted_where_hardly_anything_else_is():
    """Half as many of the rows' own as are planted; their odds are those of planted ones."""
    rng = np.random.default_rng(0)
    planted = rng.lognormal(3, 1, 1000)
    rows = np.concatenate([rng.lognormal(3, 1, 500), rng.lognormal(-2, 1, 9000)])
    assert own.times_as_common(planted, rows) == pytest.approx(0.5, abs=0.05)
    assert own.times_as_common(planted, rng.lognormal(-3, 1, 9000)) == pytest.approx(0, abs=0.01)
    assert own.times_as_common(planted[:19], rows) == 0
