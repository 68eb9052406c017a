"""Sizes of views: how photographs are resized, and the few sizes that batches are padded to.

A bucket is a (height, width), multiples of 32; each one is compiled once. They stand in the config,
or are chosen so that a data set's pictures are padded little.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from mixtrain_jax.runtime.errors import UserError

Bucket = tuple[int, int]

_MOST = 8  # buckets chosen for a data set
_CHEAP = 0.003  # share of all pixels that one bucket less may cost


def resized(sizes: np.ndarray, long: int, short: np.ndarray | int) -> np.ndarray:
    """Sizes after a resize that keeps the aspect.

    Args:
      sizes: [..., 2] height and width.
      long: the longest the long side may become.
      short: [...] what the short side becomes if the long side allows it.

    Returns:
      [..., 2] int64: int(side * factor + 0.5), at least 1.
    """
    sizes = np.asarray(sizes)
    factor = np.minimum(long / sizes.max(axis=-1), np.asarray(short) / sizes.min(axis=-1))
    return np.maximum((sizes * factor[..., None] + 0.5).astype(np.int64), 1)


def of(config: ConfigDict, split: str, sizes: np.ndarray, weights: np.ndarray) -> list[Bucket]:
    """The buckets of a split ('train' or 'val'): the config's, or else chosen for the pictures.

    Args:
      config: the whole config.
      split: whose buckets.
      sizes: [..., 2] all resized sizes that will be met.
      weights: [...] how often.

    Raises:
      UserError: the config's are no multiples of 32, or a size fits in none of them.
    """
    buckets = [tuple(bucket) for bucket in config.data[split].buckets]
    if not buckets:
        return choose(sizes, weights)
    if any(side <= 0 or side % 32 for bucket in buckets for side in bucket):
        raise UserError(f"config.data.{split}.buckets must be (height, width), multiples of 32")
    homeless = fitting(sizes, buckets) < 0
    if homeless.any():
        raise too_small(sizes[homeless][0], split)
    return buckets


def for_evaluation(sizes: np.ndarray, config: ConfigDict) -> tuple[list[Bucket], np.ndarray]:
    """The buckets of the val split, and which of them each photograph goes to.

    Args:
      sizes: [N, 2] height and width of the photographs.
      config: the whole config; its val scale and buckets are used.

    Returns:
      the buckets, and [N] the index of each photograph's.

    Raises:
      UserError: see `of`.
    """
    small = resized(sizes, *config.data.val.scale)
    buckets = of(config, "val", small, np.ones(len(small)))
    return buckets, fitting(small, buckets)


def choose(sizes: np.ndarray, weights: np.ndarray) -> list[Bucket]:
    """Chooses buckets that hold all sizes and pad them little.

    Buckets are added one by one, each where it saves most; after each, all move in turn to where
    they do best beside the others. It ends when one more would save less than its compilation
    costs.

    Args:
      sizes: [..., 2] height and width.
      weights: [...] how often each is met, more than 0.
    """
    step = 32 * -(-int(sizes.max()) // 2048)  # huge pictures in coarser steps: at most 64 a side
    rounded = -(-sizes.reshape(-1, 2) // step)
    columns = rounded.max() + 1
    often = np.bincount(
        rounded @ [columns, 1], np.broadcast_to(weights, sizes.shape[:-1]).reshape(-1)
    )
    met = np.flatnonzero(often)
    cells, counts = step * np.stack(np.divmod(met, columns), axis=1), often[met]
    places = np.array(list(itertools.product(np.unique(cells[:, 0]), np.unique(cells[:, 1]))))
    holds = (cells <= places[:, None]).all(axis=-1)
    area = np.where(holds, places.prod(axis=1)[:, None], np.inf)  # of each cell at each place

    def best(others: list[int]) -> tuple[int, float]:
        """The place that pads least beside others, and the area of everything then."""
        total = np.minimum(area, area[others].min(axis=0, initial=np.inf)) @ counts
        return int(total.argmin()), float(total.min())

    chosen: list[int] = []
    total, cheap = np.inf, _CHEAP * (cells.prod(axis=1) * counts).sum()
    while len(chosen) < _MOST:
        place, less = best(chosen)
        if total - less < cheap:
            break
        chosen.append(place)
        while less < total:
            total = less
            for number in range(len(chosen)):
                chosen[number], less = best(chosen[:number] + chosen[number + 1 :])
    return [(int(height), int(width)) for height, width in places[chosen]]


def of_any(config: ConfigDict) -> list[Bucket]:
    """The buckets for pictures nobody has seen yet: the config's for evaluation, or the scale's."""
    long, short = (-(-side // 32) * 32 for side in config.data.val.scale)
    return [tuple(bucket) for bucket in config.data.val.buckets] or [
        (short, long),
        (long, short),
        (long, long),
    ]


def fitting(sizes: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The index of the smallest bucket that contains each size [..., 2]; -1 if none does."""
    found = np.full(sizes.shape[:-1], -1, np.int16)
    for index in sorted(range(len(buckets)), key=lambda i: -buckets[i][0] * buckets[i][1]):
        found[(sizes <= np.array(buckets[index])).all(axis=-1)] = index
    return found


def too_small(size: np.ndarray, split: str) -> UserError:
    """The error for a picture that no bucket contains."""
    return UserError(
        f"a picture resized to height {size[0]} and width {size[1]} fits in none of "
        f"config.data.{split}.buckets; add a bucket (height, width) that contains it"
    )
