"""Batches of views from files: training's endless stream, and each image once for evaluation.

tf.data runs the work on threads: Python reads, decodes and samples, TensorFlow renders. What it
makes is fixed by file and seed alone, so a run resumes at any step, on any number of hosts, with no
iterator state.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mixtrain_jax.data.input import buckets, plan
from mixtrain_jax.data.input.read_errors import ReadErrors
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.tensorflow import tf
from mixtrain_jax.data.views import geometry, parameters, render
from mixtrain_jax.data.views.parameters import ViewParameters
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import machine
from mixtrain_jax.types import Batch, View

# What a generator seeded with (seed, place, purpose) is for.
_NORMAL, _WEAK, _STRONG, _KIND = range(4)
BYTES_OF_PIXEL = 64  # of an image whose views are rendered, from above: sharpness took 52

# A job is what to load (a place in training's order for each half, or a row) and the number of its
# bucket. Loading gives pixels, row (-1: a filler), and the parameters of each view.
Jobs = Callable[[], Iterator[tuple[Sequence[int], int]]]
Load = Callable[[int, int], tuple[np.ndarray, int, list[ViewParameters]]]


def train_batches(
    dataset: Dataset,
    data: Any,
    *,
    seed: int,
    batch_size: int,
    first_mixed_step: float = math.inf,
    start_step: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    read_errors: ReadErrors | None = None,
) -> Iterator[Batch]:
    """This host's share of the batches of step start_step, start_step + 1, ... without end.

    Args:
      dataset: the training split.
      data: `config.data`.
      seed: of order and views.
      batch_size: images per step, over all hosts.
      first_mixed_step: the step from which batches have a mixed half.
      start_step: the first step.
      host_index: this host's number.
      host_count: hosts, each of which takes a contiguous share of either half.
      read_errors: where unreadable images are counted.

    Yields:
      Batch of NumPy arrays; `weak` and `strong` are None in plain steps.

    Raises:
      UserError: see `plan.Stream`; or the batch cannot be divided; or too many images cannot
      be read.
    """
    stream = plan.Stream(dataset, seed, data.train, batch_size)
    errors = read_errors or ReadErrors(data.max_bad_share, again=True)
    plain = first_mixed_step == math.inf
    unit = host_count * (1 if plain else 2)
    if batch_size % unit:
        raise UserError(
            f"config.batch_size = {batch_size} must be a multiple of {unit}: "
            f"{host_count} hosts{'' if plain else ', each with a normal and a mixed half'}"
        )

    rendered = _Pipelines(dataset, data, stream.buckets, errors)
    # One pass over the steps for both halves, plain steps and mixed ones.
    steps = plan.steps(stream, batch_size, first_mixed_step, start_step)

    def pipeline(count: int | None, views_of: Mapping[str, int]) -> tf.data.Dataset:
        """The views of the next `count` steps (None: all); `views_of` each half so many."""
        share = batch_size // len(views_of) // host_count

        def jobs() -> Iterator[tuple[Sequence[int], int]]:
            for step in itertools.islice(steps, count):
                bucket = stream.buckets.index(step.bucket)
                halves = (getattr(step, name) for name in views_of)
                places = list(zip(*halves, strict=True))
                for place in places[host_index * share : (host_index + 1) * share]:
                    yield place, bucket

        loads = [functools.partial(_load, stream, dataset, data, errors, n) for n in views_of]
        return rendered.batches(jobs, list(zip(loads, views_of.values())), share)

    def batches() -> Iterator[Batch]:
        if start_step < first_mixed_step:
            count = None if plain else int(first_mixed_step) - start_step
            for ((normal,),) in _run(pipeline(count, {"normal": 1}), errors):
                yield Batch(normal)
        for (normal,), (weak, strong) in _run(pipeline(None, {"normal": 1, "mixed": 2}), errors):
            yield Batch(normal, weak, strong)

    return batches()


def _load(
    stream: plan.Stream,
    dataset: Dataset,
    data: Any,
    read_errors: ReadErrors,
    half: str,
    place: int,
    bucket: int,
) -> tuple[np.ndarray, int, list[ViewParameters]]:
    """Pixels and row of the image at a place of the stream, and the parameters of its views.

    In place of one that cannot be read comes the next in the stream that could have been there.
    """
    for other in range(place, place + stream.count):
        row = stream.row(other)
        shorts = stream.shorts_for(row, bucket)
        if len(shorts) == 0 or (half == "normal" and not stream.trainable[row]):
            continue
        image = read_errors.read(dataset, row)
        if image is not None:
            break
    else:
        raise UserError(f"{dataset.name}: no readable image fits bucket {stream.buckets[bucket]}")
    if half == "mixed":
        kinds = [("weak", _WEAK), ("strong", _STRONG)]
    else:
        kind = data.train.augmentation
        if kind == "random":
            kind = np.random.default_rng([stream.seed, place, _KIND]).choice(["normal", "strong"])
        kinds = [(kind, _NORMAL)]
    sampled = [
        parameters.sample(
            np.random.default_rng([stream.seed, place, purpose]),
            kind,
            dataset.sizes[row],
            (stream.long, shorts),
            data.augment,
        )
        for kind, purpose in kinds
    ]
    return image, row, sampled


def eval_batches(
    dataset: Dataset,
    data: Any,
    batch_size: int,
    *,
    host_index: int = 0,
    host_count: int = 1,
    rows: np.ndarray | None = None,
    read_errors: ReadErrors | None = None,
) -> Iterator[View]:
    """Every image once, in batches of one bucket each.

    Args:
      dataset: the split to look at.
      data: `config.data`; its val scale and buckets are used.
      batch_size: images per batch over all hosts.
      host_index: this host's number; it gets a contiguous share of each batch.
      host_count: hosts; all see the same buckets in the same order.
      rows: only these rows; all if None.
      read_errors: where unreadable images are counted.

    Yields:
      View of NumPy arrays. `index` is -1 for fillers and for images that cannot be read.

    Raises:
      UserError: an image fits no bucket, batch_size does not divide, or too many are
      unreadable.
    """
    if batch_size % host_count:
        raise UserError(f"config.eval.batch_size must be a multiple of the {host_count} hosts")
    chosen = np.arange(len(dataset)) if rows is None else np.asarray(rows)
    errors = read_errors or ReadErrors(data.max_bad_share, of=len(chosen))
    sizes = buckets.for_evaluation(dataset.sizes, data.val)
    resized = geometry.resized(dataset.sizes, *data.val.scale)
    bucket_of = buckets.fitting(resized[chosen], sizes)
    share = batch_size // host_count

    def jobs() -> Iterator[tuple[Sequence[int], int]]:
        for bucket in range(len(sizes)):
            members = chosen[bucket_of == bucket]
            filled = np.full(-(-len(members) // batch_size) * batch_size, -1)
            filled[: len(members)] = members
            for row in filled.reshape(-1, host_count, share)[:, host_index].reshape(-1):
                yield (row,), bucket

    def load(row: int, bucket: int) -> tuple[np.ndarray, int, list[ViewParameters]]:
        image = errors.read(dataset, row) if row >= 0 else None
        if image is None:  # a black image
            blank, size = np.zeros([1, 1, 3], np.uint8), np.array(sizes[bucket])
            return blank, -1, [parameters.evaluation_view(np.array([1, 1]), size)]
        return image, row, [parameters.evaluation_view(dataset.sizes[row], resized[row])]

    rendered = _Pipelines(dataset, data, sizes, errors)
    return (view for ((view,),) in _run(rendered.batches(jobs, [(load, 1)], share), errors))


def default_workers(sizes: np.ndarray) -> int:
    """As many as there are cores; fewer where as many of the largest images would fill the memory.

    Args:
      sizes: [N, 2] height and width of the images.
    """
    cores, free = machine.cores(), machine.free_memory()
    if free is None:
        return cores
    largest = np.sort(sizes.astype(np.float64).prod(axis=1))[::-1][:cores]
    fitting = int((BYTES_OF_PIXEL * np.cumsum(largest) <= free / 4).sum())
    if fitting == len(largest):
        return cores
    logging.warning(
        "The images are large: %d are prepared at once, where there are %d cores; "
        "config.data.workers sets another number.",
        max(1, fitting),
        cores,
    )
    return max(1, fitting)


_IMAGE = tf.TensorSpec([None, None, 3], tf.uint8)
_NUMBER = tf.TensorSpec([], tf.int32)
_PARAMETERS = ViewParameters(
    size=tf.TensorSpec([2], tf.int32),
    matrix=tf.TensorSpec([3, 3], tf.float32),
    color=_NUMBER,
    level=_NUMBER,
    holes=tf.TensorSpec([None, 4], tf.int32),
)


@functools.cache
def _traced(channels: str, min_posterize_bits: int, released: bool) -> Callable[..., Any]:
    """`render.render` as one graph, given what it reads of `config.data`.

    Once in a process: TensorFlow never frees a graph, and tracing takes longer than an image.
    """
    data = ConfigDict(
        {
            "channels": channels,
            "augment": {
                "min_posterize_bits": min_posterize_bits,
                "released_augmentation": released,
            },
        }
    )
    return tf.function(
        lambda image, sampled, height, width: render.render(image, sampled, height, width, data),
        input_signature=(_IMAGE, _PARAMETERS, _NUMBER, _NUMBER),
        autograph=False,
    )


@dataclasses.dataclass
class _Pipelines:
    """Makes tf.data pipelines of views, all with one traced `render.render`.

    Attributes:
      dataset: where rows have their boxes.
      data: `config.data`.
      buckets: (height, width) to pad to.
      read_errors: takes the exceptions of loading.
    """

    dataset: Dataset
    data: Any
    buckets: Sequence[tuple[int, int]]
    read_errors: ReadErrors

    def __post_init__(self) -> None:
        self._workers = self.data.workers or default_workers(self.dataset.sizes)
        augment = self.data.augment
        self._render = _traced(
            self.data.channels, augment.min_posterize_bits, augment.released_augmentation
        )

    def batches(self, jobs: Jobs, loads: Sequence[tuple[Load, int]], batch: int) -> tf.data.Dataset:
        """Batches of `batch` jobs, each loaded in all the ways in `loads`.

        A load comes with the number of its views; it gives a tuple of so many dictionaries of
        View's fields.
        """

        def views(what: tf.Tensor, bucket: tf.Tensor) -> tuple[Any, ...]:
            return tuple(
                self._views(load, views_each, what[number], bucket)
                for number, (load, views_each) in enumerate(loads)
            )

        options = tf.data.Options()
        options.threading.private_threadpool_size = self._workers
        options.autotune.enabled = False
        job = (tf.TensorSpec([len(loads)], tf.int64), tf.TensorSpec([], tf.int32))
        return (
            tf.data.Dataset.from_generator(jobs, output_signature=job)
            .map(
                tf.autograph.experimental.do_not_convert(views),
                num_parallel_calls=self._workers,
                deterministic=True,
            )
            .batch(batch, drop_remainder=True)
            .prefetch(2)
            .with_options(options)
        )

    def _views(
        self, load: Load, views_each: int, what: tf.Tensor, bucket: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], ...]:
        """The views of one image."""
        max_boxes = self.data.max_boxes
        targets = (
            tf.TensorSpec([max_boxes, 4], tf.float32),
            tf.TensorSpec([max_boxes], tf.int32),
            tf.TensorSpec([max_boxes], tf.bool),
        )
        specs = [_IMAGE, _NUMBER] + [*_PARAMETERS, *targets] * views_each
        numbers = functools.partial(self._numbers, load, views_each)
        flat = tf.numpy_function(numbers, [what, bucket], [spec.dtype for spec in specs])
        flat = [tf.ensure_shape(each, spec.shape) for each, spec in zip(flat, specs)]
        height, width = tf.unstack(tf.gather(tf.constant(self.buckets), bucket))
        image, index = flat[:2]
        place = tf.cast(what % 2**31, tf.int32)
        made = []
        for fields in np.split(np.arange(2, len(flat)), views_each):
            *sampled, boxes, labels, valid = (flat[number] for number in fields)
            pixels, shown = self._render(image, ViewParameters(*sampled), height, width)
            made.append(
                {
                    "image": pixels,
                    "shown": shown,
                    "size": sampled[0],
                    "matrix": sampled[1],
                    "boxes": boxes,
                    "labels": labels,
                    "valid": valid,
                    "index": index,
                    "place": place,
                }
            )
        return tuple(made)

    def _numbers(
        self, load: Load, views_each: int, what: np.ndarray, bucket: np.ndarray
    ) -> list[np.ndarray]:
        """Pixels, row, and the parameters and boxes of each view, in one flat list.

        An exception is kept for `_run`, and black images follow it: TensorFlow, if it went through
        there, would log its traceback, and hand on only its text.
        """
        if self.read_errors.error is None:
            try:
                return self._flat(*load(int(what), int(bucket)))
            except Exception as error:
                self.read_errors.error = error
        size = np.array(self.buckets[int(bucket)])
        blank = parameters.evaluation_view(np.array([1, 1]), size)
        return self._flat(np.zeros([1, 1, 3], np.uint8), -1, [blank] * views_each)

    def _flat(self, image: np.ndarray, row: int, sampled: list[ViewParameters]) -> list[np.ndarray]:
        boxes, labels = np.zeros([0, 4]), np.zeros([0])
        if row >= 0:
            boxes, labels = self.dataset.boxes[row], self.dataset.labels[row]
        flat = [image, np.asarray(row, np.int32)]
        for each in sampled:
            fields = parameters.padded_boxes(boxes, labels, each, self.data.max_boxes)
            flat += [*each, fields["boxes"], fields["labels"], fields["valid"]]
        return flat


def _run(dataset: tf.data.Dataset, read_errors: ReadErrors) -> Iterator[Any]:
    """Iterates over a dataset of views as NumPy; what went wrong in it comes out as it went in."""

    def is_view(part: Any) -> bool:
        return isinstance(part, dict)

    try:
        for element in dataset.as_numpy_iterator():
            if read_errors.error is not None:
                break
            yield jax.tree.map(lambda fields: View(**fields), element, is_leaf=is_view)
    except Exception:
        if read_errors.error is None:
            raise
    if read_errors.error is not None:
        raise read_errors.error
