import itertools

import jax
import numpy as np
import pytest

from mixtrain_jax.data.input import plan
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.data.views import geometry


def _steps(dataset, config, start_step=0):
    switch = plan.first_mixed_step(config.mixtraining)
    return plan.steps(_stream(dataset, config), config.batch_size, switch, start_step)


def _stream(dataset, config):
    return plan.Stream(dataset, config.seed, config.data.train, config.batch_size)


def _same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _take(iterator, count):
    return list(itertools.islice(iterator, count))


def test_plan_is_pure_and_starts_anywhere(dataset, config, monkeypatch):
    steps = _take(_steps(dataset, config), 60)
    monkeypatch.setattr(plan, "_BLOCK", 1)  # plan epoch by epoch
    for start in (0, 1, 7, 59):
        for one, other in zip(steps[start:], _steps(dataset, config, start), strict=False):
            assert one.bucket == other.bucket
            _same(one, other)
    config.seed = 1
    assert [s.normal.tolist() for s in steps] != [
        s.normal.tolist() for s in _take(_steps(dataset, config), 60)
    ]


def test_plan_switches_to_mixed_steps(dataset, config):
    config.mixtraining.start_step = 5
    steps = _take(_steps(dataset, config), 40)
    assert [len(s.normal) for s in steps] == [4] * 5 + [2] * 35
    assert [len(s.mixed) for s in steps] == [0] * 5 + [2] * 35
    for start in (3, 5, 20):
        _same(steps[start:], _take(_steps(dataset, config, start), 40 - start))
    places = np.concatenate([np.concatenate([s.normal, s.mixed]) for s in steps])
    assert len(places) == len(np.unique(places))


@pytest.mark.parametrize("enabled", [False, True])
def test_every_place_is_used_once(dataset, config, enabled):
    """No place twice, and none forgotten but for those skipped by rule or still waiting in line."""
    config.mixtraining.enabled = enabled
    steps = _take(_steps(dataset, config), 300)
    normal = np.concatenate([s.normal for s in steps])
    mixed = np.concatenate([s.mixed for s in steps])
    used = np.concatenate([normal, mixed])
    assert len(used) == len(np.unique(used)) == 300 * 4
    stream = _stream(dataset, config)
    epochs = used.max() // 9 + 1
    assert all(
        sorted(stream.row(9 * e + i) for i in range(9)) == list(range(9)) for e in range(epochs)
    )
    assert 8 not in {stream.row(place) for place in normal}
    missing = set(range(epochs * 9)) - set(used.tolist())
    without_boxes = {place for place in missing if stream.row(place) == 8}
    assert len(missing - without_boxes) <= 4 * 4 + 9  # four buckets' lines, and the last epoch
    if enabled:
        assert 8 in {stream.row(place) for place in mixed}
        assert 0.35 < len(without_boxes) / epochs < 0.65
    else:
        assert len(mixed) == 0


def test_halves_are_drawn_evenly(coco_files, config):
    """With boxes: normal half of the time, else mixed; without: mixed half of the time, or out."""
    coco_files([(48, 48)] * 40, [[(4, 6, 20, 20)]] * 36 + [[]] * 4)
    dataset = load_dataset(config.data, "train")
    steps = _take(_steps(dataset, config), 4000)
    stream = _stream(dataset, config)
    epochs = max(step.mixed.max() for step in steps) / 40
    normal, mixed = (
        np.bincount([stream.row(p) for step in steps for p in getattr(step, half)], minlength=40)
        for half in ("normal", "mixed")
    )
    np.testing.assert_allclose((normal + mixed)[:36], epochs, rtol=0.02)  # all that may be waiting
    share = normal[:36].sum() / (normal + mixed)[:36].sum()
    assert 0.5 < share < 0.55  # partners of images without boxes are normal
    assert (normal[36:] == 0).all()
    np.testing.assert_allclose(mixed[36:] / epochs, 0.5, atol=0.08)


def test_short_sides_stay_uniform(dataset, config):
    """Sharing a bucket leaves the short side of each view uniform over the whole range."""
    low, high = config.data.train.scale[1:]
    stream = _stream(dataset, config)
    shorts = []
    for step in _take(_steps(dataset, config), 2000):
        bucket = stream.buckets.index(step.bucket)
        for place in np.concatenate([step.normal, step.mixed]):
            choices = stream.shorts_for(stream.row(place), bucket)
            shorts.append(np.random.default_rng([5, place]).choice(choices))
    counts = np.bincount(shorts, minlength=high + 1)[low:]
    expected = len(shorts) / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 64  # 32 degrees of freedom: 0.1% is 62.5


@pytest.mark.parametrize("standing", [1, 3])
@pytest.mark.parametrize("enabled", [False, True])
def test_images_of_a_rare_shape_are_trained_once_an_epoch_beside_others(
    coco_files, config, standing, enabled
):
    """A few standing photographs among lying ones: no step of copies, no image that waits long."""
    count = 60
    coco_files([(96, 64)] * standing + [(64, 96)] * (count - standing), [[(4, 6, 20, 20)]] * count)
    config.batch_size = 8
    config.mixtraining.enabled = enabled
    config.data.train.buckets = ((64, 96), (96, 64), (64, 64))
    dataset = load_dataset(config.data, "train")
    stream = _stream(dataset, config)
    steps = _take(_steps(dataset, config), 30 * count // 8)
    uses = np.zeros(count, int)
    for step in steps:
        places = np.concatenate([step.normal, step.mixed])
        rows = np.array([stream.row(place) for place in places])
        np.add.at(uses, rows, 1)
        assert np.ptp(places) <= 3 * count  # nothing waited for longer than epochs
        assert np.unique(rows, return_counts=True)[1].max() <= 3
        bucket = stream.buckets.index(step.bucket)
        for row in rows:
            shorts = stream.shorts_for(row, bucket)
            height, width = geometry.resized(dataset.sizes[[row]], stream.long, shorts[-1])[0]
            assert len(shorts) and height <= step.bucket[0] and width <= step.bucket[1]
    assert uses[:standing].min() >= 27 and uses[:standing].max() <= 32
    assert abs(uses[standing:].mean() - 30) < 1


@pytest.mark.parametrize("enabled", [False, True])
def test_a_lone_shape_that_none_can_accompany_goes_to_another_bucket(coco_files, config, enabled):
    """One very wide image among few others: no others fit its own bucket, so it joins theirs."""
    count = 20
    coco_files([(40, 192)] + [(64, 64)] * (count - 1), [[(4, 6, 10, 10)]] * count)
    config.batch_size = 8
    config.mixtraining.enabled = enabled
    config.data.train.scale = (96, 48, 64)
    config.data.train.buckets = ((32, 96), (64, 64), (96, 96))
    dataset = load_dataset(config.data, "train")
    stream = _stream(dataset, config)
    assert stream._images().tolist() == [1, count - 1, 0]
    rows, _, bucket = stream.epochs(0, 30)
    assert set(bucket[rows == 0]) == {0}  # the largest bucket is in no other image's use
    config.data.train.buckets = ((32, 96), (48, 48), (64, 96))
    stream = _stream(dataset, config)
    assert stream._images().tolist() == [1, count - 1, count - 1]
    rows, _, bucket = stream.epochs(0, 30)
    assert set(bucket[rows == 0]) == {2}
    uses = 0
    for step in _take(_steps(dataset, config), 200):
        places = np.concatenate([step.normal, step.mixed])
        rows = [stream.row(place) for place in places]
        assert rows.count(0) <= 2
        uses += rows.count(0)
        if 0 in rows:
            shorts = stream.shorts_for(0, stream.buckets.index(step.bucket))
            assert len(shorts) == len(stream.shorts)  # of the wide image all are alike
    assert uses > 200 * 8 / count * 0.7


@pytest.mark.parametrize("many", [False, True])
def test_images_of_all_buckets_are_counted(coco_files, config, many):
    sizes = [(64, 96), (96, 64), (64, 64), (40, 192)][: None if many else 1] * 3
    coco_files(sizes, [[(4, 6, 10, 10)]] * len(sizes))
    config.data.train.scale = (96, 32, 64)
    config.data.train.buckets = ((64, 96), (96, 64), (64, 64), (32, 96), (96, 96))
    dataset = load_dataset(config.data, "train")
    stream = _stream(dataset, config)
    every = np.arange(len(dataset)).repeat(len(stream.shorts))
    found = stream._bucket(every, np.tile(np.arange(len(stream.shorts)), len(dataset)))
    expected = [len(set(every[found == b])) for b in range(len(stream.buckets))]
    assert stream._images().tolist() == expected
