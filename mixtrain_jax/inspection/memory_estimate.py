"""How much memory a training step will take on one device, estimated before anything is compiled.

The step's function is traced, not compiled, for one image: what it keeps for the backward pass can
then be counted array by array, whatever the backbone, the bucket, the dtype, and with or without
remat. The compiler keeps a part of that, as it computes cheap arrays again. That part was fitted
to what XLA says of a few compiled steps, see tools/fit_memory.py.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from mixtrain_jax.mixtraining.step import human_supervision, student_loss
from mixtrain_jax.models import detector, pixels
from mixtrain_jax.runtime import parallel
from mixtrain_jax.types import Batch, View

GIB = 2**30
# Fitted by tools/fit_memory.py: of the arrays that the backward pass asks for, the share that is
# held at once, without and with remat (which asks for few, and computes the others block by block).
KEPT, KEPT_WITH_REMAT = 0.5, 0.9
# On GPUs, between a ResNet-50 as it was measured (0.67) and Swin-S as it is compiled (0.52):
# docs/benchmarks.md, "On a GPU".
KEPT_ON_GPU = 0.6
WARN = 1.0  # share of the free memory above which a warning is logged


class Estimate(NamedTuple):
    """Bytes that a training step takes on one device.

    Attributes:
      state: student, teacher and optimizer.
      batch: the views of the step.
      gradients: of the student, twice where they are accumulated.
      activations: what is held for the backward pass.
      waiting: the batches of the next steps, which are on the device already.
    """

    state: int
    batch: int
    gradients: int
    activations: int
    waiting: int

    @property
    def step(self) -> int:
        """What one compiled step holds: XLA's arguments and temporaries."""
        return self.total - self.waiting

    @property
    def total(self) -> int:
        """What the device holds while it takes a step."""
        return sum(self)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in self._asdict().items())
        return f"{self.total / GIB:.2f} GiB ({parts})"


def of_training(
    config: Any, bucket: tuple[int, int], devices: int, platform: str = "cpu"
) -> Estimate:
    """Estimates the memory of one device for a step in a bucket.

    Args:
      config: the whole config, resolved.
      bucket: height and width that views are padded to.
      devices: of all hosts.
      platform: "cpu", "gpu" or "tpu".
    """
    images = max(1, config.batch_size // devices)
    mixing = config.mixtraining.enabled
    views = images // 2 * 3 if mixing else images
    parameters, state = _state(config.model, config.optimizer.name)
    part = max(1, images // config.accumulate)
    kept = KEPT_ON_GPU if platform == "gpu" else KEPT
    if config.model.remat:
        kept = KEPT_WITH_REMAT
    batch = views * _bytes_of_view(bucket, config.data.max_boxes)
    an_image = _kept_of_image(config.model, tuple(bucket), config.data.max_boxes)
    return Estimate(
        state=state,
        batch=batch,
        gradients=parameters * (2 if config.accumulate > 1 else 1),
        activations=round(kept * part * an_image),
        waiting=parallel.AHEAD * batch,
    )


def largest(buckets: Any) -> tuple[int, int]:
    """The bucket that takes most memory: the one of most pixels."""
    height, width = max(buckets, key=lambda bucket: bucket[0] * bucket[1])
    return int(height), int(width)


def _bytes_of_view(bucket: tuple[int, int], max_boxes: int) -> int:
    return math.prod(bucket) * 25 // 8 + 4 * (2 + 9 + 5 * max_boxes + 2) + max_boxes


@functools.lru_cache(maxsize=64)
def _state(model: FrozenConfigDict, optimizer: str) -> tuple[int, int]:
    """Bytes of the parameters, and of the whole train state: student, teacher, moments."""
    network = detector.build(model)
    shapes = jax.eval_shape(lambda: detector.init(network, 0))
    parameters = sum(_bytes(leaf) for leaf in jax.tree.leaves(shapes))
    moments = 2 if optimizer == "adamw" else 1
    return parameters, parameters * (2 + moments)


@functools.lru_cache(maxsize=64)
def _kept_of_image(model: FrozenConfigDict, bucket: tuple[int, int], max_boxes: int) -> int:
    """Bytes that the backward pass of one image asks for, parameters left out."""
    network = detector.build(model)
    params = jax.eval_shape(lambda: detector.init(network, 0))

    def backward(params: Any, batch: Batch, key: Any) -> Any:
        batch = pixels.normalise(batch, mean=(0.0,) * 3, std=(1.0,) * 3)

        def loss(student: Any) -> Any:
            return student_loss(
                student,
                batch,
                human_supervision(batch.normal),
                None,
                key,
                network,
                None,
                lambda tree: tree,
            )[0]

        return jax.vjp(loss, params)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    kept = jax.eval_shape(backward, params, Batch(shapes_of_view((1,), bucket, max_boxes)), key)
    ours: dict[tuple[Any, ...], int] = {}
    for leaf in jax.tree.leaves(params):
        ours[leaf.shape] = ours.get(leaf.shape, 0) + 1
    total = 0
    for leaf in jax.tree.leaves(kept):
        if ours.get(leaf.shape, 0) > 0:  # a parameter, or its copy in another dtype
            ours[leaf.shape] -= 1
        else:
            total += _bytes(leaf)
    return total


def _bytes(leaf: Any) -> int:
    return int(math.prod(leaf.shape) * leaf.dtype.itemsize)


def shapes_of_view(leading: tuple[int, ...], bucket: tuple[int, int], max_boxes: int) -> View:
    """The shapes and types of a view's arrays, whose first sides are `leading`."""

    def array(*shape: int, dtype: Any = np.float32) -> Any:
        return jax.ShapeDtypeStruct((*leading, *shape), dtype)

    return View(
        image=array(*bucket, 3, dtype=np.uint8),
        shown=array(bucket[0], bucket[1] // 8, dtype=np.uint8),
        size=array(2, dtype=np.int32),
        matrix=array(3, 3),
        boxes=array(max_boxes, 4),
        labels=array(max_boxes, dtype=np.int32),
        valid=array(max_boxes, dtype=bool),
        index=array(dtype=np.int32),
        place=array(dtype=np.int32),
    )
