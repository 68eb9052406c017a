"""Which images meet in which step: a pure function of the seed, with no state to save.

Training reads an endless stream of images, a fresh permutation each epoch. Steps are made of
places in that stream, by rules that look at declared sizes and numbers of boxes only. Every host
computes the same steps, and so does a run that resumes at any of them. Where too few images need a
bucket in an epoch to make a step, images of other buckets keep them company, or they go to another
bucket themselves: alone they would wait for long, and then meet copies of themselves.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mixtrain_jax.data.input import buckets
from mixtrain_jax.data.sources.dataset import SMALLEST_SIDE, Dataset
from mixtrain_jax.errors import UserError

_ORDER, _DRAWS = 100, 101  # what a generator seeded with (seed, epoch, this) is for
_BLOCK = 65536  # places of the stream looked at together


class Step(NamedTuple):
    """One training step: places in the stream, and the bucket all of its views are padded to."""

    bucket: tuple[int, int]
    normal: np.ndarray
    mixed: np.ndarray


class Stream:
    """The images in training's order, without end, and all that is decided before one is read.

    Attributes:
      seed: the run's.
      count: images in the data set, and places in an epoch.
      buckets: (height, width) to pad to.
      long: the longest a long side may be.
      shorts: the short sides to choose from.
      trainable: [count] bool by row, whether an image may be in the normal half.
    """

    def __init__(self, dataset: Dataset, seed: int, config: Any, batch_size: int = 1):
        """Looks at the data set once.

        Args:
          dataset: the training split.
          seed: the run's.
          config: `config.data.train`.
          batch_size: images per step, over all hosts.

        Raises:
          UserError: an image fits no bucket, or there is nothing to train on.
        """
        self.seed, self.count, self._batch = seed, len(dataset), batch_size
        self._order = functools.lru_cache(maxsize=8)(self._permutation)
        views = buckets.Views(dataset.sizes, config)
        self.long, self.shorts, self._kind = views.long, views.shorts, views.kind
        self.buckets = buckets.for_training(dataset.sizes, config)
        self._fits = views.fits(self.buckets)
        self._lonely = 2 * self._images() <= min(batch_size, self.count)
        self.trainable = dataset.trainable()
        if not self.trainable.any():
            left_out = dataset.report.left_out
            if small := int((dataset.sizes.min(axis=1) < SMALLEST_SIDE).sum()):
                left_out |= {f"images with a side below {SMALLEST_SIDE} pixels": small}
            reasons = ", ".join(f"{n} {why}" for why, n in left_out.items())
            raise UserError(
                f"{dataset.name}: no image has a box to train on"
                + (f"; left out are {reasons}" if reasons else "")
            )

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, _ORDER]).permutation(self.count)

    def row(self, place: int) -> int:
        """The image at a place of the stream."""
        return int(self._order(place // self.count)[place % self.count])

    def shorts_for(self, row: int, bucket: int) -> np.ndarray:
        """The short sides that put an image into a bucket, or if none does, all that fit there."""
        every = np.full(len(self.shorts), row)
        own = self._bucket(every, np.arange(len(self.shorts))) == bucket
        return self.shorts[own] if own.any() else self.shorts[: self._fits[self._kind[row]][bucket]]

    def _bucket(self, rows: np.ndarray, shorts: np.ndarray) -> np.ndarray:
        """The bucket [n] of views of these rows with these of the short sides."""
        fits = self._fits[self._kind[rows]] > shorts[:, None]
        return buckets.smallest(list(fits.T), self.buckets)

    def _images(self) -> np.ndarray:
        """How many images [buckets] have a short side that puts them into each bucket."""
        areas = np.array(self.buckets).prod(axis=1)
        by_area = np.lexsort((-np.arange(len(areas)), areas))  # as `buckets.smallest` has it
        fits = self._fits[:, by_area]
        smaller = np.maximum.accumulate(fits, axis=1)[:, :-1]  # what smaller buckets take first
        own = fits > np.pad(smaller, ((0, 0), (1, 0)))
        counts = np.bincount(self._kind) @ own
        return counts[np.argsort(by_area)]

    def epochs(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all places of some epochs: the row, a coin (bool), and the bucket."""
        parts = []
        for epoch in range(first, last):
            rows, rng = self._order(epoch), np.random.default_rng([self.seed, epoch, _DRAWS])
            coins = rng.random(self.count) < 0.5
            shorts = rng.integers(len(self.shorts), size=self.count)
            parts.append((rows, coins, self._with_company(rows, self._bucket(rows, shorts))))
        rows, coins, bucket = (np.concatenate(each) for each in zip(*parts))
        return rows, coins, bucket

    def _with_company(self, rows: np.ndarray, bucket: np.ndarray) -> np.ndarray:
        """The buckets [n] of an epoch's places, so that each that is needed makes a step.

        The company are the first places of full buckets that fit with the smallest short side.
        Where they do not suffice, and few images ever need the bucket, these go to the fullest of
        the other buckets that they fit.
        """
        bucket = bucket.copy()
        counts = np.bincount(bucket, minlength=len(self.buckets))
        for b in np.flatnonzero((counts > 0) & (counts < self._batch)):
            now = np.bincount(bucket, minlength=len(self.buckets))
            fitting = (now >= 2 * self._batch)[bucket] & (self._fits[self._kind[rows], b] > 0)
            company = np.flatnonzero(fitting)[: self._batch - counts[b]]
            if self._lonely[b] and counts[b] + len(company) < self._batch:
                own = np.flatnonzero(bucket == b)
                fits = self._fits[self._kind[rows[own]]] > 0
                fullness = np.where(fits & ~self._lonely, now, 0)
                bucket[own] = np.where(fullness.any(axis=1), fullness.argmax(axis=1), b)
            else:
                bucket[company] = b
        return bucket


def first_mixed_step(config: Any) -> float:
    """The step from which batches have a mixed half; infinite in plain training.

    Args:
      config: `config.mixtraining`.
    """
    return float(config.start_step) if config.enabled else math.inf


def steps(stream: Stream, batch_size: int, switch: float, start_step: int = 0) -> Iterator[Step]:
    """The steps of training from start_step on, without end.

    A first draw of its short side sends each image of the stream to a bucket. There every two in a
    row make a pair, and a coin says which is normal and which mixed. An image without boxes is
    never normal: a coin drops one half of these, the others are mixed, and a pair of two of them is
    dropped. A step is made as soon as its bucket has enough pairs. Before the step `switch` all are
    normal, and images without boxes are left out.

    Args:
      stream: the images in order.
      batch_size: images per step, over all hosts.
      switch: what `first_mixed_step` says.
      start_step: the first step yielded.
    """
    waiting = [np.zeros([0, 3], np.int64) for _ in stream.buckets]  # place, has boxes, coin
    step = place = 0
    while True:
        mixing = step >= switch
        first = place // stream.count
        last = first + max(1, _BLOCK // stream.count)
        rows, coin, bucket = stream.epochs(first, last)
        arriving = np.stack(
            [np.arange(first * stream.count, last * stream.count), stream.trainable[rows], coin],
            axis=1,
        )
        wanted = arriving[:, 1] == 1
        if mixing:
            wanted |= coin
        wanted &= arriving[:, 0] >= place

        lines = []
        made = []  # of each step: the place that completes it, its bucket, its number in the line
        for b, line in enumerate(waiting):
            line = np.concatenate([line, arriving[wanted & (bucket == b)]])
            line, lone = _paired(line) if mixing else (line, line[:0])
            lines.append((line, lone))
            count = len(line) // batch_size
            full = line[: count * batch_size, 0].reshape(count, batch_size)
            complete = full.max(axis=1)
            made.append(np.stack([complete, np.full(count, b), np.arange(count)]))
        order = np.concatenate(made, axis=1)
        order = order[:, np.argsort(order[0])]

        place = last * stream.count
        if not mixing and step + order.shape[1] >= switch:
            order = order[:, : int(switch) - step]
            place = int(order[0, -1]) + 1
        for _, b, number in order[:, max(0, start_step - step) :].T:
            chosen = lines[b][0][number * batch_size :][:batch_size, 0]
            if mixing:
                yield Step(stream.buckets[b], chosen[0::2], chosen[1::2])
            else:
                yield Step(stream.buckets[b], chosen, chosen[:0])
        step += order.shape[1]
        for b, (line, lone) in enumerate(lines):
            used = int((order[1] == b).sum()) * batch_size
            rest = np.concatenate([line[used:], lone])
            waiting[b] = rest[rest[:, 0] < place]


def _paired(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orders each pair of a bucket's line [n, 3], see `steps`: normal, mixed, normal, mixed, ...

    Returns:
      the pairs, less those in which neither has boxes, and the [0 or 1, 3] without a partner yet.
    """
    pairs = line[: len(line) // 2 * 2].reshape(-1, 2, 3)
    earlier_first = np.argsort(pairs[..., :1], axis=1)  # a pair may have been ordered before
    pairs = np.take_along_axis(pairs, earlier_first, axis=1)
    boxes, coin = pairs[..., 1], pairs[:, 0, 2]
    swap = np.where(boxes[:, 0] == boxes[:, 1], coin, boxes[:, 1])
    pairs = np.where(swap[:, None, None] == 1, pairs[:, ::-1], pairs)
    return pairs[boxes.any(axis=1)].reshape(-1, 3), line[len(pairs) * 2 :]
