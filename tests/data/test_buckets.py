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


@pytest.mark.parametrize("choice", [(), ((64, 65),), ((0, 64),)])
def test_bad_buckets(config, choice):
    config.data.val.buckets = choice
    with pytest.raises(UserError, match=r"config.data.val.buckets must be"):
        buckets.of(config, "val")
