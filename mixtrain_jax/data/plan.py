"""Which photographs meet in which step: a pure function of the seed, with no state to save.

Training reads an endless stream of photographs, a fresh permutation each epoch. Steps are made of
places in that stream, by rules that look at declared sizes and numbers of boxes only. Every host
computes the same steps, and so does a run that continues at any of them.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mixtrain_jax.data import buckets
from mixtrain_jax.data.records import Dataset
from mixtrain_jax.runtime.errors import UserError

_ORDER, _DRAWS = 100, 101  # what a generator seeded with (seed, epoch, this) is for
_BLOCK = 65536  # places of the stream looked at together
_SMALLEST_SIDE = 32  # photographs with a shorter side are not in the normal half


class Step(NamedTuple):
    """One training step: places in the stream, and the bucket all of its views are padded to."""

    bucket: tuple[int, int]
    normal: np.ndarray
    mixed: np.ndarray


class Stream:
    """The photographs in training's order, without end, and all that is decided before one is read.

    Attributes:
      seed: the run's.
      count: photographs in the data set, and places in an epoch.
      buckets: (height, width) to pad to.
      long: the longest a long side may be.
      shorts: the short sides to choose from.
      trainable: [count] bool by row, whether a photograph may be in the normal half.
    """

    def __init__(self, dataset: Dataset, config: ConfigDict):
        """Raises UserError if a photograph fits no bucket, or there is nothing to train on."""
        if config.seed < 0:
            raise UserError("config.seed must not be negative")
        self.seed, self.count = config.seed, len(dataset)
        self._order = functools.lru_cache(maxsize=8)(self._permutation)
        self.long, low, high = config.data.train.scale
        if not 0 < low <= high:
            raise UserError("config.data.train.scale must be (long, shortest, longest short side)")
        self.shorts = np.arange(low, high + 1)
        sizes, self._kind, counts = np.unique(
            dataset.sizes, axis=0, return_inverse=True, return_counts=True
        )
        self._kind = self._kind.reshape(-1)
        resized = buckets.resized(sizes[:, None], self.long, self.shorts[None])
        self.buckets = buckets.of(config, "train", resized, counts[:, None])
        self._bucket = buckets.fitting(resized, self.buckets)
        has_boxes = np.array([len(boxes) > 0 for boxes in dataset.boxes])
        self.trainable = has_boxes & (dataset.sizes.min(axis=1) >= _SMALLEST_SIDE)
        if not self.trainable.any():
            raise UserError(f"{dataset.name}: no image has a box to train on")

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, _ORDER]).permutation(self.count)

    def row(self, place: int) -> int:
        """The photograph at a place of the stream."""
        return int(self._order(place // self.count)[place % self.count])

    def shorts_for(self, row: int, bucket: int) -> np.ndarray:
        """The short sides that put a photograph into a bucket."""
        return self.shorts[self._bucket[self._kind[row]] == bucket]

    def epochs(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all places of some epochs: the row, a coin (bool), and the bucket."""
        rows = np.concatenate([self._order(epoch) for epoch in range(first, last)])
        coins, shorts = [], []
        for epoch in range(first, last):
            rng = np.random.default_rng([self.seed, epoch, _DRAWS])
            coins.append(rng.random(self.count) < 0.5)
            shorts.append(rng.integers(len(self.shorts), size=self.count))
        return (
            rows,
            np.concatenate(coins),
            self._bucket[self._kind[rows], np.concatenate(shorts)],
        )


def first_mixed_step(config: ConfigDict) -> float:
    """The step from which batches have a mixed half; infinite in plain training."""
    return config.mixtraining.start_step if config.mixtraining.enabled else np.inf


def steps(stream: Stream, config: ConfigDict, start_step: int = 0) -> Iterator[Step]:
    """The steps of training from start_step on, without end.

    A first draw of its short side sends each photograph of the stream to a bucket. There every two
    in a row make a pair, and a coin says which is normal and which mixed. A photograph without
    boxes is never normal: a coin drops one half of these, the others are mixed, and a pair of two
    of them is dropped. A step is made as soon as its bucket has enough pairs. Before
    `mixtraining.start_step`, and without MixTraining, steps are all normal, and photographs without
    boxes are left out.
    """
    switch = first_mixed_step(config)
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
            count = len(line) // config.batch_size
            full = line[: count * config.batch_size, 0].reshape(count, config.batch_size)
            complete = full.max(axis=1)
            made.append(np.stack([complete, np.full(count, b), np.arange(count)]))
        order = np.concatenate(made, axis=1)
        order = order[:, np.argsort(order[0])]

        place = last * stream.count
        if not mixing and step + order.shape[1] >= switch:
            order = order[:, : int(switch) - step]
            place = int(order[0, -1]) + 1
        for _, b, number in order[:, max(0, start_step - step) :].T:
            chosen = lines[b][0][number * config.batch_size :][: config.batch_size, 0]
            if mixing:
                yield Step(stream.buckets[b], chosen[0::2], chosen[1::2])
            else:
                yield Step(stream.buckets[b], chosen, chosen[:0])
        step += order.shape[1]
        for b, (line, lone) in enumerate(lines):
            used = int((order[1] == b).sum()) * config.batch_size
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
