"""Batches of views from files: training's endless stream, and each photograph once for evaluation.

tf.data runs the work on threads: Python reads, decodes and draws, TensorFlow renders. What it makes
is fixed by file and seed alone, so a run continues at any step, on any number of hosts, with no
iterator state.
"""

import dataclasses
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mixtrain_jax.data import buckets, plan, records, views
from mixtrain_jax.data.records import Dataset
from mixtrain_jax.data.tensorflow import tf
from mixtrain_jax.runtime.errors import UserError
from mixtrain_jax.types import Batch, View

# What a generator seeded with (seed, place, purpose) is for.
_NORMAL, _WEAK, _STRONG, _KIND = range(4)
_FEW = 5  # fewer unreadable photographs than this are always borne

# A job is what to load, in each of one or two ways, and the number of its bucket; loading gives
# pixels, row (-1: a filler), draws.
Jobs = Callable[[], Iterator[tuple[Sequence[int], int]]]
Load = Callable[[int, int], tuple[np.ndarray, int, list[views.Draw]]]


@dataclasses.dataclass
class Faults:
    """Photographs that could not be read; the training loop may look at `count` at any time.

    Attributes:
      max_share: the share of the photographs drawn that may be bad.
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
                    f"{dataset.name}: {self.count} of {self.drawn} images could not be read, more "
                    f"than config.data.max_bad_share = {self.max_share}; the last is "
                    f"{dataset.names(row)}: {reason}"
                )
        return None


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
      UserError: see `plan.Stream`; or the batch cannot be divided; or too many photographs cannot
      be read.
    """
    stream = plan.Stream(dataset, config)
    faults = faults or Faults(config.data.max_bad_share)
    switch = plan.first_mixed_step(config)
    halves = 1 if switch == np.inf else 2
    if config.batch_size % (halves * host_count):
        raise UserError(
            f"config.batch_size = {config.batch_size} must be a multiple of {halves * host_count}: "
            f"{host_count} hosts{', each with a normal and a mixed half' if halves == 2 else ''}"
        )

    pictures = _Pictures(dataset, config, stream.buckets, faults)
    steps = plan.steps(stream, config, start_step)  # one pass for both halves, and past the switch

    def pipeline(count: int | None, halves: Mapping[str, int]) -> tf.data.Dataset:
        """The pictures of the next `count` steps (None: all), of halves with so many views each."""
        share = config.batch_size // len(halves) // host_count

        def jobs() -> Iterator[tuple[Sequence[int], int]]:
            for step in itertools.islice(steps, count):
                bucket = stream.buckets.index(step.bucket)
                of_halves = (getattr(step, name) for name in halves)
                pairs = list(zip(*of_halves, strict=True))
                for places in pairs[host_index * share : (host_index + 1) * share]:
                    yield places, bucket

        loads = [functools.partial(_load, stream, dataset, config, faults, n) for n in halves]
        return pictures.batches(jobs, list(zip(loads, halves.values())), share)

    def batches() -> Iterator[Batch]:
        if start_step < switch:
            count = None if switch == np.inf else int(switch) - start_step
            for ((normal,),) in _run(pipeline(count, {"normal": 1}), faults):
                yield Batch(normal)
        for (normal,), (weak, strong) in _run(pipeline(None, {"normal": 1, "mixed": 2}), faults):
            yield Batch(normal, weak, strong)

    return batches()


def _load(
    stream: plan.Stream,
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
      UserError: a photograph fits no bucket, batch_size does not divide, or too many are
      unreadable.
    """
    if batch_size % host_count:
        raise UserError(f"config.eval.batch_size must be a multiple of the {host_count} hosts")
    faults = faults or Faults(config.data.max_bad_share)
    chosen = np.arange(len(dataset)) if rows is None else np.asarray(rows)
    sizes, bucket_of = buckets.for_evaluation(dataset.sizes[chosen], config)
    share = batch_size // host_count

    def jobs() -> Iterator[tuple[Sequence[int], int]]:
        for bucket in range(len(sizes)):
            members = chosen[bucket_of == bucket]
            filled = np.full(-(-len(members) // batch_size) * batch_size, -1)
            filled[: len(members)] = members
            for row in filled.reshape(-1, host_count, share)[:, host_index].reshape(-1):
                yield (row,), bucket

    def load(row: int, bucket: int) -> tuple[np.ndarray, int, list[views.Draw]]:
        image = faults.read(dataset, row) if row >= 0 else None
        if image is None:  # a black picture
            blank, size = np.zeros([1, 1, 3], np.uint8), np.array(sizes[bucket])
            return blank, -1, [views.undisturbed(np.array([1, 1]), size)]
        size = dataset.sizes[row]
        drawn = views.undisturbed(size, buckets.resized(size, *config.data.val.scale))
        return image, row, [drawn]

    pictures = _Pictures(dataset, config, sizes, faults)
    return (view for ((view,),) in _run(pictures.batches(jobs, [(load, 1)], share), faults))


_IMAGE = tf.TensorSpec([None, None, 3], tf.uint8)
_NUMBER = tf.TensorSpec([], tf.int32)
_DRAW = views.Draw(
    size=tf.TensorSpec([2], tf.int32),
    matrix=tf.TensorSpec([3, 3], tf.float32),
    color=_NUMBER,
    level=_NUMBER,
    holes=tf.TensorSpec([None, 4], tf.int32),
)


@dataclasses.dataclass
class _Pictures:
    """Makes tf.data pipelines of views, all with one traced `views.render`.

    Attributes:
      dataset: where rows have their boxes.
      config: the whole config.
      buckets: (height, width) to pad to.
      faults: takes the exceptions of loading.
    """

    dataset: Dataset
    config: ConfigDict
    buckets: list[tuple[int, int]]
    faults: Faults

    def __post_init__(self) -> None:
        self._render = tf.function(
            lambda image, drawn, height, width: views.render(
                image, drawn, height, width, self.config.data
            ),
            input_signature=(_IMAGE, _DRAW, _NUMBER, _NUMBER),
            autograph=False,
        )

    def batches(self, jobs: Jobs, loads: Sequence[tuple[Load, int]], batch: int) -> tf.data.Dataset:
        """Batches of `batch` jobs, each loaded in all the ways in `loads`.

        A load comes with the number of its views; it gives a tuple of so many dictionaries of
        View's fields.
        """
        workers = self.config.data.workers or os.cpu_count() or 1

        @tf.autograph.experimental.do_not_convert
        def pictures(what: tf.Tensor, bucket: tf.Tensor) -> tuple[Any, ...]:
            return tuple(
                self._views(load, views_each, what[number], bucket)
                for number, (load, views_each) in enumerate(loads)
            )

        options = tf.data.Options()
        options.threading.private_threadpool_size = workers
        options.autotune.enabled = False
        job = (tf.TensorSpec([len(loads)], tf.int64), tf.TensorSpec([], tf.int32))
        return (
            tf.data.Dataset.from_generator(jobs, output_signature=job)
            .map(pictures, num_parallel_calls=workers, deterministic=True)
            .batch(batch, drop_remainder=True)
            .prefetch(2)
            .with_options(options)
        )

    def _views(
        self, load: Load, views_each: int, what: tf.Tensor, bucket: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], ...]:
        """The views of one photograph."""
        max_boxes = self.config.data.max_boxes
        targets = (
            tf.TensorSpec([max_boxes, 4], tf.float32),
            tf.TensorSpec([max_boxes], tf.int32),
            tf.TensorSpec([max_boxes], tf.bool),
        )
        specs = [_IMAGE, _NUMBER] + [*_DRAW, *targets] * views_each
        numbers = functools.partial(self._numbers, load)
        flat = tf.numpy_function(numbers, [what, bucket], [spec.dtype for spec in specs])
        flat = [tf.ensure_shape(each, spec.shape) for each, spec in zip(flat, specs)]
        height, width = tf.unstack(tf.gather(tf.constant(self.buckets), bucket))
        image, index = flat[:2]
        made = []
        for places in np.split(np.arange(2, len(flat)), views_each):
            *drawn, boxes, labels, valid = (flat[place] for place in places)
            made.append(
                {
                    "image": self._render(image, views.Draw(*drawn), height, width),
                    "size": drawn[0],
                    "matrix": drawn[1],
                    "boxes": boxes,
                    "labels": labels,
                    "valid": valid,
                    "index": index,
                }
            )
        return tuple(made)

    def _numbers(self, load: Load, what: np.ndarray, bucket: np.ndarray) -> list[np.ndarray]:
        """Pixels, row, and the draws and targets of each view, in one flat list."""
        try:
            image, row, drawn = load(int(what), int(bucket))
            boxes, labels = np.zeros([0, 4]), np.zeros([0])
            if row >= 0:
                boxes, labels = self.dataset.boxes[row], self.dataset.labels[row]
            flat = [image, np.asarray(row, np.int32)]
            for each in drawn:
                fields = views.targets(boxes, labels, each, self.config.data.max_boxes)
                flat += [*each, fields["boxes"], fields["labels"], fields["valid"]]
            return flat
        except Exception as error:
            self.faults.error = error  # TensorFlow would keep only its text
            raise


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
