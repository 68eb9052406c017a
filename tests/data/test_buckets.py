import numpy as np
import pytest

from mixtrain_jax.data import buckets
from mixtrain_jax.runtime.errors import UserError


def test_resized():
    sizes = np.array([[220, 300], [480, 640], [640, 480], [1, 5000], [100, 100]])
    shorts = np.array([300, 800, 1200, 400, 50])
    long = 1333
    for (h, w), short, new in zip(
        sizes, shorts, buckets.resized(sizes, long, shorts).tolist(), strict=True
    ):
        factor = min(long / max(h, w), short / min(h, w))
        assert new == [max(1, int(h * factor + 0.5)), max(1, int(w * factor + 0.5))]


def test_fitting_bucket():
    choice = [(96, 96), (64, 96), (96, 64), (64, 64)]
    sizes = np.array([[64, 64], [65, 64], [64, 65], [65, 65], [97, 1], [1, 1]])
    assert buckets.fitting(sizes, choice).tolist() == [3, 2, 1, 0, -1, 3]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (((64, 65),), r"config.data.val.buckets must be"),
        (((0, 64),), r"config.data.val.buckets must be"),
        (((64, 64),), r"height 65 and width 3 fits in none of config.data.val.buckets"),
    ],
)
def test_bad_buckets(config, choice, message):
    config.data.val.buckets = choice
    with pytest.raises(UserError, match=message):
        buckets.of(config, "val", np.array([[65, 3]]), np.ones(1))


def test_chosen_buckets_hold_everything_and_pad_little():
    rng = np.random.default_rng(0)
    sizes = rng.choice([(480, 640), (640, 480), (427, 640), (640, 640), (333, 500)], 500)
    resized = buckets.resized(sizes, 1333, 800)
    chosen = buckets.choose(resized, np.ones(len(resized)))
    assert len(chosen) <= 8
    assert all(side % 32 == 0 for bucket in chosen for side in bucket)
    kind = buckets.fitting(resized, chosen)
    assert (kind >= 0).all()
    waste = np.array(chosen).prod(axis=1)[kind].sum() / resized.prod(axis=1).sum()
    assert waste < 1.06


def test_no_single_bucket_could_be_better_elsewhere():
    """Against a search over all places of each bucket, the others staying where they are."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(30, 260, (60, 2))
    weights = rng.integers(1, 5, 60)
    chosen = buckets.choose(sizes, weights)

    def padded(choice):
        kind = buckets.fitting(sizes, choice)
        return (
            (np.array(choice).prod(axis=1)[kind] * weights).sum() if (kind >= 0).all() else np.inf
        )

    sides = range(32, 257 + 31, 32)
    for number in range(len(chosen)):
        others = chosen[:number] + chosen[number + 1 :]
        best = min(padded([*others, (h, w)]) for h in sides for w in sides)
        assert padded(chosen) == best


def test_many_sizes_become_few_buckets():
    resized = np.random.default_rng(0).integers(100, 1300, (400, 2))
    chosen = buckets.choose(resized, np.ones(400))
    assert 2 < len(chosen) <= 8
    assert (buckets.fitting(resized, chosen) >= 0).all()
    one = buckets.choose(np.array([[90, 64]]), np.ones(1))
    assert one == [(96, 64)]
