"""Which photographs meet in which step, and the batches of views made of them.

Training reads an endless stream of photographs, a fresh permutation each epoch. Everything is a function of
the seed and a place in that stream: `plan` says, without touching a file, which places make up step k and
which bucket (height, width) its pictures are padded to; every host computes the same plan and prepares its
own share. So a run continues at any step, on any number of hosts, with no iterator state to save.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import os
import threading
from typing import Any, NamedTuple

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np
import tensorflow as tf

from mixtrain_jax.data import geometry, records, views
from mixtrain_jax.data.records import Dataset
from mixtrain_jax.runtime.errors import UserError
from mixtrain_jax.types import Batch, View

# What a generator seeded with (seed, place, purpose) is for.
_NORMAL, _WEAK, _STRONG, _ORDER, _STREAM, _KIND = range(6)
_BLOCK = 65536  # places of the stream planned at once
_SMALLEST_SIDE = 32  # photographs with a shorter side are not in the normal half
_FEW = 5  # so many unreadable photographs are always borne


class Step(NamedTuple):
    """One training step: places in the stream, and the bucket all of its views are padded to."""

    bucket: tuple[int, int]
    normal: np.ndarray
    mixed: np.ndarray


@dataclasses.dataclass
class Faults:
    """Photographs that could not be read; the training loop may look at `count` at any time.

    Attributes:
      max_share: of the photographs drawn, so many may be bad.
      drawn: photographs drawn so far on this host.
      count: how many of these were bad.
      reasons: why, by row of the data set.
      error: an exception raised while pictures were prepared, on its way to the training loop.
    """

    max_share: float
    drawn: int = 0
    count: int = 0
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    error: Exception | None = None
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def read(self, dataset: Dataset, row: int) -> np.ndarray | None:
        """The pixels [h, w, 3] uint8 of a row, or None, noted and named, if it cannot be used."""
        image, reason = None, self.reasons.get(row)
        if reason is None:
            try:
                height, width = dataset.sizes[row]
                image = records.decode(dataset.read(row), (int(height), int(width)))
            except (records.Unreadable, OSError) as error:
                reason = str(error)
        with self._lock:
            self.drawn += 1
            if reason is None:
                return image
            self.count += 1
            if row not in self.reasons:
                self.reasons[row] = reason
                logging.warning("%s: skipping %s: %s", dataset.name, dataset.names(row), reason)
            if self.count >= _FEW and self.count > self.max_share * self.drawn:
                raise UserError(
                    f"{dataset.name}: {self.count} of {self.drawn} images could not be read, more than "
                    f"config.data.max_bad_share = {self.max_share}; the last is {dataset.names(row)}: "
                    f"{reason}"
                )
        return None


class _Stream:
    """The photographs in the order training meets them, and what is decided before a file is read."""

    def __init__(self, dataset: Dataset, config: ConfigDict):
        part = config.data.train
        self.seed, self.count = config.seed, len(dataset)
        self._order = functools.lru_cache(maxsize=8)(self._permutation)
        self.long, low, high = part.scale
        if not 0 < low <= high:
            raise UserError("config.data.train.scale must be (long, shortest, longest short side)")
        self.buckets = views.buckets_of(config, "train")
        self.shorts = np.arange(low, high + 1)
        sizes, self.kind_of_size = np.unique(dataset.sizes, axis=0, return_inverse=True)
        self.kind_of_size = self.kind_of_size.reshape(-1)
        resized = geometry.resized(sizes[:, None], self.long, self.shorts[None])
        self.table = views.fitting_bucket(resized, self.buckets)
        if (self.table < 0).any():
            raise views.too_small(resized[self.table < 0][0], "train")
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
        return self.shorts[self.table[self.kind_of_size[row]] == bucket]

    def epochs(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all places of some epochs: the row, a coin in [0, 1), and the bucket."""
        rows = np.concatenate([self._order(epoch) for epoch in range(first, last)])
        coins, shorts = [], []
        for epoch in range(first, last):
            rng = np.random.default_rng([self.seed, epoch, _STREAM])
            coins.append(rng.random(self.count))
            shorts.append(rng.integers(len(self.shorts), size=self.count))
        return (
            rows,
            np.concatenate(coins),
            self.table[self.kind_of_size[rows], np.concatenate(shorts)],
        )


def plan(dataset: Dataset, config: ConfigDict, start_step: int = 0) -> Iterator[Step]:
    """The steps of training from start_step on, without end.

    A coin sends each photograph of the stream to the normal or the mixed half; one without boxes is
    skipped where it would be normal. A first draw of its short side fixes its bucket. Photographs wait
    in line by bucket and half, and a step is made as soon as there are enough of both halves. Before
    `mixtraining.start_step`, and without MixTraining, steps are all normal.

    Raises:
      UserError: a photograph fits no bucket, there is nothing to train on, or an odd batch size.
    """
    stream = _Stream(dataset, config)
    return _steps(stream, config, start_step)


def first_mixed_step(config: ConfigDict) -> float:
    """The step from which batches have a mixed half; infinite in plain training."""
    return config.mixtraining.start_step if config.mixtraining.enabled else np.inf


def _steps(stream: _Stream, config: ConfigDict, start_step: int) -> Iterator[Step]:
    switch = first_mixed_step(config)
    waiting = {
        (b, half): np.zeros(0, np.int64) for b in range(len(stream.buckets)) for half in (0, 1)
    }
    step = place = 0
    while True:
        mixing = step >= switch
        need = (config.batch_size // 2,) * 2 if mixing else (config.batch_size, 0)
        first = place // stream.count
        last = first + max(1, _BLOCK // stream.count)
        rows, coin, bucket = (
            each[place - first * stream.count :] for each in stream.epochs(first, last)
        )
        places = np.arange(place, last * stream.count)
        half = np.where(stream.trainable[rows], 0, -1)
        if mixing:
            half = np.where(coin < 0.5, half, 1)

        made = []  # (place at which the step is complete, its bucket, its number within the bucket)
        for b, h in waiting:
            arrived = places[(bucket == b) & (half == h)]
            waiting[b, h] = np.concatenate([waiting[b, h], arrived])
        for b in range(len(stream.buckets)):
            lines = [(waiting[b, h], need[h]) for h in (0, 1) if need[h]]
            count = min(len(line) // n for line, n in lines)
            complete = np.max([line[n - 1 : count * n : n] for line, n in lines], axis=0)
            made.append(np.stack([complete, np.full(count, b), np.arange(count)]))
        order = np.concatenate(made, axis=1)
        order = order[:, np.argsort(order[0])]

        place = last * stream.count
        if not mixing and step + order.shape[1] >= switch:
            order = order[:, : int(switch) - step]
            place = int(order[0, -1]) + 1
        for _, b, number in order[:, max(0, start_step - step) :].T:
            yield Step(
                stream.buckets[b],
                *(waiting[b, h][number * n : (number + 1) * n] for h, n in enumerate(need)),
            )
        step += order.shape[1]
        for b in range(len(stream.buckets)):
            used = int((order[1] == b).sum())
            for h in (0, 1):
                rest = waiting[b, h][used * need[h] :]
                waiting[b, h] = rest[rest < place]


def train_batches(
    dataset: Dataset,
    config: ConfigDict,
    *,
    start_step: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    faults: Faults | None = None,
) -> Iterator[Batch]:
    """This host's share of the batches of step start_step, start_step + 1, ... without end.

    Args:
      dataset: the training split.
      config: the whole config.
      start_step: the first step.
      host_index: this host's number.
      host_count: hosts, each of which takes a contiguous share of either half.
      faults: where unreadable photographs are counted.

    Yields:
      Batch of NumPy arrays; `weak` and `strong` are None in plain steps.

    Raises:
      UserError: see `plan`; or the batch cannot be divided; or too many photographs cannot be read.
    """
    stream = _Stream(dataset, config)
    faults = faults or Faults(config.data.max_bad_share)
    switch = first_mixed_step(config)
    halves = 1 if switch == np.inf else 2
    if config.batch_size % (halves * host_count):
        raise UserError(
            f"config.batch_size = {config.batch_size} must be a multiple of {halves * host_count}: "
            f"{host_count} hosts{', each with a normal and a mixed half' if halves == 2 else ''}"
        )

    def half(name: str, first: int, stop: float) -> tf.data.Dataset:
        """The pictures of one half ('normal' or 'mixed') for the steps first..stop - 1."""

        def jobs() -> Iterator[tuple[int, int, int]]:
            for step, planned in enumerate(_steps(stream, config, first), first):
                if step >= stop:
                    return
                places = getattr(planned, name)
                share = len(places) // host_count
                bucket = stream.buckets.index(planned.bucket)
                for place in places[host_index * share : (host_index + 1) * share]:
                    yield (place, bucket)

        load = functools.partial(_load, stream, dataset, config, faults, name)
        size = config.batch_size // (1 if first < switch else 2) // host_count
        count = 1 if name == "normal" else 2
        return _pictures(jobs, load, dataset, count, stream.buckets, config, size, faults)

    def batches() -> Iterator[Batch]:
        if start_step < switch:
            for (normal,) in _run(half("normal", start_step, switch), faults):
                yield Batch(normal)
        first = max(start_step, int(switch))
        both = tf.data.Dataset.zip((half("normal", first, np.inf), half("mixed", first, np.inf)))
        for (normal,), (weak, strong) in _run(both, faults):
            yield Batch(normal, weak, strong)

    return batches()


def _load(
    stream: _Stream,
    dataset: Dataset,
    config: ConfigDict,
    faults: Faults,
    half: str,
    place: int,
    bucket: int,
) -> tuple[np.ndarray, int, list[views.Draw]]:
    """Pixels, row and draws of the photograph at a place of the stream.

    In place of one that cannot be read comes the next in the stream that could have been there.
    """
    for other in range(place, place + stream.count):
        row = stream.row(other)
        shorts = stream.shorts_for(row, bucket)
        if len(shorts) == 0 or (half == "normal" and not stream.trainable[row]):
            continue
        image = faults.read(dataset, row)
        if image is not None:
            break
    else:
        raise UserError(f"{dataset.name}: no readable image fits bucket {stream.buckets[bucket]}")
    if half == "mixed":
        kinds = [("weak", _WEAK), ("strong", _STRONG)]
    else:
        kind = config.data.train.augmentation
        if kind == "random":
            kind = np.random.default_rng([stream.seed, place, _KIND]).choice(["normal", "strong"])
        kinds = [(kind, _NORMAL)]
    drawn = [
        views.draw(
            np.random.default_rng([stream.seed, place, purpose]),
            kind,
            dataset.sizes[row],
            (stream.long, shorts),
            config.data.augment,
        )
        for kind, purpose in kinds
    ]
    return image, row, drawn


def eval_batches(
    dataset: Dataset,
    config: ConfigDict,
    batch_size: int,
    *,
    host_index: int = 0,
    host_count: int = 1,
    rows: np.ndarray | None = None,
    faults: Faults | None = None,
) -> Iterator[View]:
    """Every photograph once, in batches of one bucket each.

    Args:
      dataset: the split to look at.
      config: the whole config; its val scale and buckets are used.
      batch_size: photographs a batch over all hosts.
      host_index: this host's number; it gets a contiguous share of each batch.
      host_count: hosts; all see the same buckets in the same order.
      rows: only these rows; all if None.
      faults: where unreadable photographs are counted.

    Yields:
      View of NumPy arrays. `index` is -1 for fillers and for photographs that cannot be read.

    Raises:
      UserError: a photograph fits no bucket, batch_size does not divide, or too many are unreadable.
    """
    if batch_size % host_count:
        raise UserError(f"config.eval.batch_size must be a multiple of the {host_count} hosts")
    faults = faults or Faults(config.data.max_bad_share)
    part = config.data.val
    buckets = views.buckets_of(config, "val")
    chosen = np.arange(len(dataset)) if rows is None else np.asarray(rows)
    resized = geometry.resized(dataset.sizes[chosen], *part.scale)
    bucket_of = views.fitting_bucket(resized, buckets)
    if (bucket_of < 0).any():
        raise views.too_small(resized[bucket_of < 0][0], "val")
    share = batch_size // host_count

    def jobs() -> Iterator[tuple[int, int]]:
        for bucket in range(len(buckets)):
            members = chosen[bucket_of == bucket]
            filled = np.full(-(-len(members) // batch_size) * batch_size, -1)
            filled[: len(members)] = members
            for row in filled.reshape(-1, host_count, share)[:, host_index].reshape(-1):
                yield row, bucket

    def load(row: int, bucket: int) -> tuple[np.ndarray, int, list[views.Draw]]:
        image = faults.read(dataset, row) if row >= 0 else None
        if image is None:  # a black picture
            blank, size = np.zeros([1, 1, 3], np.uint8), np.array(buckets[bucket])
            return blank, -1, [views.undisturbed(np.array([1, 1]), size)]
        size = dataset.sizes[row]
        drawn = views.undisturbed(size, geometry.resized(size, *part.scale))
        return image, row, [drawn]

    pictures = _pictures(jobs, load, dataset, 1, buckets, config, share, faults)
    return (view for (view,) in _run(pictures, faults))


def _pictures(
    jobs: Callable[[], Iterator[tuple[int, int]]],
    load: Callable[[int, int], tuple[np.ndarray, int, list[views.Draw]]],
    dataset: Dataset,
    count: int,
    buckets: list[tuple[int, int]],
    config: ConfigDict,
    batch: int,
    faults: Faults,
) -> tf.data.Dataset:
    """Batches of `count` views of each photograph.

    Args:
      jobs: yields what to load and the number of the bucket it goes into.
      load: gives pixels, row (-1: a filler) and draws of a job.
      dataset: where rows have their boxes.
      count: draws, and views, of each photograph.
      buckets: (height, width) to pad to.
      config: the whole config.
      batch: photographs a batch.
      faults: takes the exceptions of `load`.

    Returns:
      a tf.data.Dataset of tuples of `count` dictionaries of View's fields.
    """
    max_boxes = config.data.max_boxes
    workers = config.data.workers or os.cpu_count() or 1

    def numbers(what: np.ndarray, bucket: np.ndarray) -> list[np.ndarray]:
        try:
            image, row, drawn = load(int(what), int(bucket))
            boxes, labels = np.zeros([0, 4]), np.zeros([0])
            if row >= 0:
                boxes, labels = dataset.boxes[row], dataset.labels[row]
            flat = [image, np.asarray(row, np.int32)]
            for each in drawn:
                flat += [*each, *views.targets(boxes, labels, each, max_boxes).values()]
            return flat
        except Exception as error:
            faults.error = error  # TensorFlow would keep only its text
            raise

    def picture(what: tf.Tensor, bucket: tf.Tensor) -> tuple[dict[str, tf.Tensor], ...]:
        types = [dtype for dtype, _ in _DRAW + _TARGETS]
        shapes = [shape(max_boxes) for _, shape in _DRAW + _TARGETS]
        flat = tf.numpy_function(numbers, [what, bucket], [tf.uint8, tf.int32] + types * count)
        for tensor, shape in zip(flat, [[None, None, 3], []] + shapes * count, strict=True):
            tensor.set_shape(shape)
        height, width = tf.unstack(tf.gather(tf.constant(buckets), bucket))
        image, index, *flat = flat
        made = []
        for start in range(0, len(flat), len(types)):
            drawn = views.Draw(*flat[start : start + len(_DRAW)])
            boxes, labels, valid = flat[start + len(_DRAW) : start + len(types)]
            made.append(
                dict(
                    image=views.render(image, drawn, height, width, config.data),
                    size=drawn.size,
                    matrix=drawn.matrix,
                    boxes=boxes,
                    labels=labels,
                    valid=valid,
                    index=index,
                )
            )
        return tuple(made)

    signature = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int32))
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    options.autotune.enabled = False
    return (
        tf.data.Dataset.from_generator(jobs, output_signature=signature)
        .map(picture, num_parallel_calls=workers, deterministic=True)
        .batch(batch, drop_remainder=True)
        .prefetch(2)
        .with_options(options)
    )


_DRAW = (  # types and shapes of a Draw's fields
    (tf.int32, lambda _: [2]),
    (tf.float32, lambda _: [3, 3]),
    (tf.int32, lambda _: []),
    (tf.int32, lambda _: []),
    (tf.int32, lambda _: [None, 4]),
)
_TARGETS = (  # of a view's boxes
    (tf.float32, lambda n: [n, 4]),
    (tf.int32, lambda n: [n]),
    (tf.bool, lambda n: [n]),
)


def _run(dataset: tf.data.Dataset, faults: Faults) -> Iterator[Any]:
    """Iterates over a dataset of views as NumPy; what went wrong in it comes out as it went in."""

    def is_view(part: Any) -> bool:
        return isinstance(part, dict)

    try:
        for element in dataset.as_numpy_iterator():
            yield jax.tree.map(lambda fields: View(**fields), element, is_leaf=is_view)
    except Exception:
        if faults.error is None:
            raise
        raise faults.error from None
