import numpy as np
import pytest

from mixtrain_jax.config import load
from mixtrain_jax.data.input import buckets
from mixtrain_jax.data.views import geometry
from mixtrain_jax.errors import UserError


def test_resized():
    sizes = np.array([[220, 300], [480, 640], [640, 480], [1, 5000], [100, 100]])
    shorts = np.array([300, 800, 1200, 400, 50])
    long = 1333
    for (h, w), short, new in zip(
        sizes, shorts, geometry.resized(sizes, long, shorts).tolist(), strict=True
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
        (((64, 65),), r"config.data.val.buckets is .*: give pairs \(height, width\) of multiples"),
        (((0, 64),), r"config.data.val.buckets is"),
        ((160, 160), r"config.data.val.buckets is \(160, 160\)"),
        (((64, 64),), r"height 65 and width 3 fits in none of config.data.val.buckets"),
    ],
)
def test_bad_buckets(config, choice, message):
    config.data.val.buckets = choice
    config.data.val.scale = (65, 3)

    def use():
        load.check(config)
        buckets.for_evaluation(np.array([[65, 3]]), config.data.val)

    with pytest.raises(UserError, match=message):
        use()


def test_chosen_buckets_hold_everything_and_pad_little():
    rng = np.random.default_rng(0)
    sizes = rng.choice([(480, 640), (640, 480), (427, 640), (640, 640), (333, 500)], 500)
    resized = geometry.resized(sizes, 1333, 800)
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
        others = [*chosen[:number], *chosen[number + 1 :]]
        best = min(padded([*others, (h, w)]) for h in sides for w in sides)
        assert padded(chosen) == best


def test_many_sizes_become_few_buckets():
    resized = np.random.default_rng(0).integers(100, 1300, (400, 2))
    chosen = buckets.choose(resized, np.ones(400))
    assert 2 < len(chosen) <= 8
    assert (buckets.fitting(resized, chosen) >= 0).all()
    one = buckets.choose(np.array([[90, 64]]), np.ones(1))
    assert one == ((96, 64),)


def test_views_that_fit_are_counted_without_making_them_all(config):
    """Against all views of all images, on random sizes, huge and tiny ones among them."""
    rng = np.random.default_rng(3)
    sizes = np.concatenate([rng.integers(1, 900, (60, 2)), [[1, 5000], [4000, 3], [100, 100]]])
    config.data.train.scale = (200, 30, 160)
    choice = ((96, 128), (128, 96), (224, 64), (160, 160), (224, 224))
    views = buckets.Views(sizes[rng.permutation(len(sizes)).repeat(2)], config.data.train)
    every = geometry.resized(views.sizes[:, None], 200, np.arange(30, 161)[None])
    inside = (every[:, :, None] <= np.array(choice)).all(axis=-1)
    np.testing.assert_array_equal(views.fits(choice), inside.sum(axis=1))
    assert (np.diff(inside.astype(int), axis=1) <= 0).all()  # those that fit come first
    assert views.counts.tolist() == [2] * len(views.sizes)
    np.testing.assert_array_equal(np.concatenate([block for block, _ in views.blocks()]), every)


def test_buckets_of_training_are_those_chosen_for_all_its_views(config):
    sizes = np.random.default_rng(4).integers(20, 90, (700, 2))
    config.data.train.buckets = ()
    scale = config.data.train.scale
    different, counts = np.unique(sizes, axis=0, return_counts=True)
    views = geometry.resized(different[:, None], scale[0], buckets.short_sides(config.data.train))
    expected = buckets.choose(views, np.broadcast_to(counts[:, None], views.shape[:2]))
    assert buckets.for_training(sizes, config.data.train) == expected


def test_a_long_training_is_given_more_buckets_that_pad_less(config):
    sizes = np.random.default_rng(5).integers(100, 500, (400, 2))
    config.data.train.update(buckets=(), scale=(800, 200, 600))
    views = buckets.Views(sizes, config.data.train)

    def padded(chosen):
        fits = views.fits(chosen)
        area = np.array(chosen).prod(axis=1)
        inside = fits[:, None] > np.arange(len(views.shorts))[:, None]
        return np.where(inside, area, np.inf).min(axis=-1).sum()

    short, long = (buckets.for_training(sizes, config.data.train, n) for n in (99_999, 100_000))
    assert short == buckets.for_training(sizes, config.data.train)
    assert len(short) == 8 and len(long) == 11
    assert padded(long) < 0.98 * padded(short)


def test_a_training_view_without_a_bucket_is_named(config):
    config.data.train.update(buckets=((64, 64),), scale=(200, 32, 70))
    with pytest.raises(UserError, match="height 65 and width 65 fits in none of config.data.train"):
        buckets.for_training(np.array([[40, 40], [40, 81]]), config.data.train)
