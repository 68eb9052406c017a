import numpy as np
import pytest

from mixtrain_jax.auditing import noise
from mixtrain_jax.ops.numpy_boxes import paired_iou
from tests.auditing import simulated

CLEAN, SIZES = simulated.truth(seed=0, images=200)


def inside(planted):
    boxes, sizes = planted.labels.boxes, SIZES[planted.labels.image]
    return (
        (boxes >= 0).all()
        and (boxes <= sizes[:, [1, 0, 1, 0]]).all()
        and (boxes[:, 2:] > boxes[:, :2]).all()
    )


def test_the_four_errors_have_equal_shares_and_never_meet():
    planted = noise.plant(CLEAN, SIZES, simulated.CLASSES, share=0.05, seed=3)
    count = round(0.05 * len(CLEAN))
    flipped, moved = planted.flipped(CLEAN), planted.moved(CLEAN)
    assert len(planted.dropped(CLEAN)) == count
    assert flipped.sum() == moved.sum() == planted.spawned().sum() == count
    assert not (flipped & moved).any()
    assert len(planted.labels) == len(CLEAN)
    assert inside(planted)
    assert (np.diff(planted.labels.image) >= 0).all()


def test_a_shifted_box_overlaps_its_own_by_04_to_07():
    planted = noise.plant(CLEAN, SIZES, simulated.CLASSES, share=0.1, seed=0)
    moved = planted.moved(CLEAN)
    overlap = paired_iou(planted.labels.boxes[moved], CLEAN.boxes[planted.source[moved]])
    assert overlap.min() >= 0.4
    assert overlap.max() < 0.7


def test_a_spawned_box_copies_a_box_of_another_image():
    planted = noise.plant(CLEAN, SIZES, simulated.CLASSES, share=0.1, seed=0)
    spawned = planted.labels.take(planted.spawned())
    for box, label, image in zip(spawned.boxes, spawned.labels, spawned.image):
        twin = (CLEAN.boxes == box).all(axis=1) & (CLEAN.labels == label)
        assert (CLEAN.image[twin] != image).any()


def test_flipped_classes_are_uniform_over_the_others():
    planted = noise.plant(CLEAN, SIZES, simulated.CLASSES, share=1 / 3, seed=0)
    flipped = planted.flipped(CLEAN)
    step = planted.labels.labels[flipped] - CLEAN.labels[planted.source[flipped]]
    counts = np.bincount(step % simulated.CLASSES, minlength=simulated.CLASSES)
    assert counts[0] == 0
    assert counts[1:].min() > 0.7 * counts[1:].mean()


def test_the_same_seed_plants_the_same_errors_and_nothing_is_touched():
    before = CLEAN.boxes.copy(), CLEAN.labels.copy()
    one, two, other = (noise.plant(CLEAN, SIZES, 4, 0.05, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.labels.boxes, two.labels.boxes)
    np.testing.assert_array_equal(one.source, two.source)
    assert set(one.dropped(CLEAN)) != set(other.dropped(CLEAN))
    np.testing.assert_array_equal(CLEAN.boxes, before[0])
    np.testing.assert_array_equal(CLEAN.labels, before[1])


def test_without_errors_all_stays_as_it_was():
    for planted in (
        noise.plant(CLEAN, SIZES, 4, 0.0, 0),
        noise.una(CLEAN, SIZES, 4, 0.0, 0),
        noise.box_noise(CLEAN, SIZES, 0.0, 0),
    ):
        np.testing.assert_allclose(planted.labels.boxes, CLEAN.boxes, atol=1e-4)
        np.testing.assert_array_equal(planted.source, np.arange(len(CLEAN)))


def test_una_counts_as_the_paper_does():
    ratio, total = 0.3, len(CLEAN)
    planted = noise.una(CLEAN, SIZES, simulated.CLASSES, ratio, seed=0)
    dropped = round(ratio * total)
    assert len(planted.dropped(CLEAN)) == dropped
    assert planted.moved(CLEAN).sum() == dropped
    assert planted.spawned().sum() == round(ratio / (1 - ratio) * total)
    # Classes are drawn over all classes, so one in four stays.
    expected = dropped * (1 - 1 / simulated.CLASSES)
    assert abs(planted.flipped(CLEAN).sum() - expected) < 4 * np.sqrt(expected)
    assert inside(planted)


def test_a_relocated_box_stays_in_the_box_doubled_about_its_centre():
    planted = noise.una(CLEAN, SIZES, simulated.CLASSES, 0.2, seed=1)
    moved = planted.moved(CLEAN)
    old, new = CLEAN.boxes[planted.source[moved]], planted.labels.boxes[moved]
    side = old[:, 2:] - old[:, :2]
    assert (new[:, :2] >= old[:, :2] - side / 2 - 1).all()
    assert (new[:, 2:] <= old[:, 2:] + side / 2 + 1).all()


def test_box_noise_moves_every_box_within_its_bounds():
    level = 0.2
    planted = noise.box_noise(CLEAN, SIZES, level, seed=0)
    old, new = CLEAN.boxes, planted.labels.boxes
    free = (new > 0).all(axis=1) & (new < simulated.SIDE).all(axis=1)  # not clipped
    side, center = old[:, 2:] - old[:, :2], (old[:, 2:] + old[:, :2]) / 2
    new_side, new_center = new[:, 2:] - new[:, :2], (new[:, 2:] + new[:, :2]) / 2
    shift, scale = ((new_center - center) / side)[free], (new_side / side)[free]
    assert 0.95 * level < np.abs(shift).max() <= level + 1e-5
    assert 0.95 * level < np.abs(scale - 1).max() <= level + 1e-5
    assert abs(shift.mean()) < 0.02
    assert abs(scale.mean() - 1) < 0.02
    assert planted.moved(CLEAN).all()


def test_shares_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="share"):
        noise.plant(CLEAN, SIZES, 4, 0.4, 0)
    with pytest.raises(ValueError, match="two classes"):
        noise.plant(CLEAN, SIZES, 1, 0.1, 0)
    with pytest.raises(ValueError, match="ratio"):
        noise.una(CLEAN, SIZES, 4, 0.9, 0)
    with pytest.raises(ValueError, match="level"):
        noise.box_noise(CLEAN, SIZES, 1.0, 0)
