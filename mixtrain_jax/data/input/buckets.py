"""Buckets: the few sizes that batches are padded to.

A bucket is a (height, width), multiples of 32; each one is compiled once. They stand in the config,
or are chosen so that a data set's images are padded little.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mixtrain_jax.data.views.geometry import resized
from mixtrain_jax.errors import UserError

Bucket = tuple[int, int]

_MOST, _MOST_LONG = 8, 11  # buckets chosen for a data set; for a long training
# Three more save 4% of the pixels of images like COCO's. A compilation takes as long as a thousand
# steps or so on accelerators, so they pay from here on.
_LONG = 100_000  # steps
_AT_ONCE = 256  # sizes whose views are looked at together
_CHEAP = 0.003  # share of all pixels that one bucket less may cost


class Views:
    """All views that training makes of some images: one for each short side, equally often.

    Attributes:
      sizes: [D, 2] int64 height and width of the images, each once.
      counts: [D] int64, how many images have them.
      kind: [N] int64, which of them each image has.
      long: the longest a long side may become.
      shorts: [S] int64 short sides, ascending.
    """

    def __init__(self, sizes: np.ndarray, config: Any):
        """Looks at the sizes [N, 2] of images; `config` is `config.data.train`."""
        height, width = sizes.astype(np.int64).T
        both, self.kind, self.counts = np.unique(
            (height << 32) + width, return_inverse=True, return_counts=True
        )
        self.sizes = np.stack([both >> 32, both & (2**32 - 1)], axis=1)
        self.long, self.shorts = config.scale[0], short_sides(config)

    def blocks(self) -> Iterator[tuple[np.ndarray, slice]]:
        """The views [d, S, 2] of a few of the sizes at a time, and of which; never all at once."""
        for start in range(0, len(self.sizes), _AT_ONCE):
            chosen = slice(start, start + _AT_ONCE)
            yield resized(self.sizes[chosen, None], self.long, self.shorts[None]), chosen

    def fits(self, buckets: Sequence[Bucket]) -> np.ndarray:
        """How many of the short sides, from the lowest on, make views that fit into each bucket.

        Larger short sides make larger views, so that these numbers say which of all views fit.

        Returns:
          [D, len(buckets)] int64.
        """
        room = np.array(buckets)
        low = np.zeros([len(self.sizes), len(room)], np.int64)
        high = np.full_like(low, len(self.shorts))
        while (low < high).any():  # between `low` that fit and `high` that may
            middle = (low + high) // 2
            short = self.shorts[np.minimum(middle, len(self.shorts) - 1)]
            inside = (resized(self.sizes[:, None], self.long, short) <= room).all(axis=-1)
            inside &= low < high
            high = np.where(inside, high, middle)
            low = np.where(inside, middle + 1, low)
        return low


def for_training(sizes: np.ndarray, config: Any, steps: int = 0) -> tuple[Bucket, ...]:
    """The buckets of training views: the config's, or else chosen for the images.

    Args:
      sizes: [N, 2] height and width of the images.
      config: `config.data.train`; every short side of its scale is met equally often.
      steps: of the training; a long one is given more buckets.

    Raises:
      UserError: a view fits in none of the config's buckets.
    """
    views = Views(sizes, config)
    given = _integers(config.buckets)
    if given:
        most = views.fits(given).max(axis=1)
        without = np.flatnonzero(most < len(views.shorts))
        if len(without):
            short = views.shorts[most[without[0]]]
            raise too_small(resized(views.sizes[without[0]], views.long, short), "train")
        return given
    largest = resized(views.sizes, views.long, views.shorts[-1]).max()
    return _chosen(
        ((block, views.counts[which, None]) for block, which in views.blocks()),
        int(largest),
        _MOST_LONG if steps >= _LONG else _MOST,
    )


def for_evaluation(sizes: np.ndarray, config: Any) -> tuple[Bucket, ...]:
    """The buckets of evaluation views, likewise; `config` is `config.data.val`."""
    views = resized(sizes, *config.scale)
    given = _integers(config.buckets)
    if not given:
        return choose(views, np.ones(len(views)))
    without = fitting(views, given) < 0
    if without.any():
        raise too_small(views[without][0], "val")
    return given


def of_any(config: Any) -> tuple[Bucket, ...]:
    """The buckets for images nobody has seen yet: those of `config.data.val`, or its scale's."""
    long, short = (-(-side // 32) * 32 for side in config.scale)
    return _integers(config.buckets) or ((short, long), (long, short), (long, long))


def short_sides(config: Any) -> np.ndarray:
    """The short sides that training views may have, of `config.data.train`."""
    _, low, high = config.scale
    return np.arange(low, high + 1)


def _integers(given: Sequence[Bucket]) -> tuple[Bucket, ...]:
    return tuple((int(height), int(width)) for height, width in given)


def choose(sizes: np.ndarray, weights: np.ndarray) -> tuple[Bucket, ...]:
    """Chooses buckets that hold all sizes and pad them little.

    Buckets are added one by one, each where it saves most; after each, all move in turn to where
    they do best beside the others. It ends when one more would save less than its compilation
    costs.

    Args:
      sizes: [..., 2] height and width.
      weights: [...] how often each is met, more than 0.
    """
    return _chosen([(sizes, weights)], int(sizes.max()), _MOST)


def _chosen(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], largest: int, most: int
) -> tuple[Bucket, ...]:
    """At most so many buckets for sizes that come in blocks; `largest` is the largest side."""
    step = 32 * -(-largest // 2048)  # huge images in coarser steps: at most 64 a side
    columns = -(-largest // step) + 1
    often = np.zeros(columns**2)
    for sizes, weights in blocks:
        cells = -(-sizes // step) @ [columns, 1]
        often += np.bincount(
            cells.reshape(-1), np.broadcast_to(weights, cells.shape).reshape(-1), len(often)
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
    while len(chosen) < most:
        place, less = best(chosen)
        if total - less < cheap:
            break
        chosen.append(place)
        while less < total:
            total = less
            for number in range(len(chosen)):
                chosen[number], less = best(chosen[:number] + chosen[number + 1 :])
    return tuple((int(height), int(width)) for height, width in places[chosen])


def fitting(sizes: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """The index of the smallest bucket that contains each size [..., 2]; -1 if none does."""
    fits = [np.asarray((sizes <= np.array(bucket)).all(axis=-1)) for bucket in buckets]
    return smallest(fits, buckets)


def smallest(fits: Sequence[np.ndarray], buckets: Sequence[Bucket]) -> np.ndarray:
    """The smallest bucket [...] that fits, by one mask [...] for each bucket; -1 if none does."""
    found = np.full(fits[0].shape, -1, np.int16)
    for index in sorted(range(len(buckets)), key=lambda i: -buckets[i][0] * buckets[i][1]):
        found[fits[index]] = index
    return found


def too_small(size: np.ndarray, split: str) -> UserError:
    """The error for an image that no bucket contains."""
    return UserError(
        f"an image resized to height {size[0]} and width {size[1]} fits in none of "
        f"config.data.{split}.buckets; add a bucket (height, width) that contains it"
    )
