"""What one photograph looks like to the network: normal, weak, strong and evaluation views.

A view is first drawn, in NumPy from a seeded generator, as a handful of numbers (a `Draw`), then
rendered by TensorFlow from pixels and those numbers alone. So a picture is a deterministic function
of file and seed. The order of operations is MixTraining's: colour, resize, flip, geometry,
normalise, one warp, cut-out, pad.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mixtrain_jax.data import buckets, color, geometry
from mixtrain_jax.data.tensorflow import tf
from mixtrain_jax.types import View


class Draw(NamedTuple):
    """Everything that chance decides about one view.

    Attributes:
      size: [2] int32, height and width of the view.
      matrix: [3, 3] float32, photograph to view.
      color: [] int32, an index into color.NAMES.
      level: [] int32 of the colour operation.
      holes: [K, 4] int32, y1 x1 y2 x2 of the holes cut out; empty ones have no area.
    """

    size: np.ndarray
    matrix: np.ndarray
    color: np.ndarray
    level: np.ndarray
    holes: np.ndarray


def draw(
    rng: np.random.Generator,
    kind: str,
    size: np.ndarray,
    scale: tuple[int, Sequence[int] | np.ndarray],
    augment: ConfigDict,
) -> Draw:
    """Draws a training view.

    Args:
      rng: the source of chance.
      kind: 'normal', 'weak' or 'strong'.
      size: height and width of the photograph.
      scale: the longest long side, and the short sides to choose from.
      augment: the config's `data.augment`.
    """
    long, shorts = scale
    new_size = buckets.resized(size, long, int(rng.choice(np.asarray(shorts))))
    matrix = geometry.scale(size, new_size)
    if rng.random() < 0.5:
        matrix = geometry.flip(new_size[1]) @ matrix
    op, level = 0, 1
    if kind in ("normal", "strong"):
        op = int(rng.integers(len(color.NAMES)))
        level = int(rng.integers(1, color.LEVELS + 1))
    holes = np.zeros([augment.cutout_holes[1], 4], np.int32)
    if kind == "strong":
        moved = geometry.geometric(
            int(rng.integers(len(geometry.NAMES))),
            int(rng.integers(1, geometry.LEVELS + 1)),
            int(rng.choice([-1, 1])),
            new_size,
        )
        matrix = moved @ matrix
        low, high = augment.cutout_holes
        count = rng.integers(low, high + 1)
        corner = rng.integers(0, new_size, [count, 2])
        ratio = rng.choice(augment.cutout_ratios, [count, 1])
        end = np.minimum(corner + (new_size * ratio).astype(np.int64), new_size)
        holes[:count] = np.concatenate([corner, end], axis=1)
    return _draw(new_size, matrix, op, level, holes)


def undisturbed(size: np.ndarray, new_size: np.ndarray) -> Draw:
    """The view that is only resized, as in evaluation."""
    return _draw(new_size, geometry.scale(size, new_size), 0, 1, np.zeros([0, 4]))


def _draw(size, matrix, op, level, holes) -> Draw:
    return Draw(
        np.asarray(size, np.int32),
        np.asarray(matrix, np.float32),
        np.asarray(op, np.int32),
        np.asarray(level, np.int32),
        np.asarray(holes, np.int32),
    )


def targets(
    boxes: np.ndarray, labels: np.ndarray, drawn: Draw, max_boxes: int
) -> dict[str, np.ndarray]:
    """The boxes of a view, padded to N = max_boxes; box k is the photograph's k-th in every view.

    Args:
      boxes: [n, 4] in the photograph, n <= N.
      labels: [n] int32.

    Returns:
      boxes [N, 4] float32, labels [N] int32, valid [N] bool: False too where no area is left in the
      view.
    """
    moved, has_area = geometry.transform_boxes(boxes, drawn.matrix, drawn.size)
    fields = {
        "boxes": np.zeros([max_boxes, 4], np.float32),
        "labels": np.zeros([max_boxes], np.int32),
        "valid": np.zeros([max_boxes], bool),
    }
    count = len(boxes)
    fields["boxes"][:count] = np.where(has_area[:, None], moved, 0)
    fields["labels"][:count] = labels
    fields["valid"][:count] = has_area
    return fields


def render(
    image: tf.Tensor, drawn: Draw, height: tf.Tensor, width: tf.Tensor, config: ConfigDict
) -> tf.Tensor:
    """Makes the picture of a view.

    Args:
      image: [h, w, 3] uint8 RGB, the photograph.
      drawn: a Draw of tensors.
      height: [] int32, to pad to.
      width: [] int32, to pad to.
      config: the config's `data`.

    Returns:
      [height, width, 3] float32, normalised, its values from whole grey levels; 0 outside the
      photograph, in holes and in the padding.
    """
    image = color.apply(
        image,
        drawn.color,
        drawn.level,
        min_posterize_bits=config.augment.min_posterize_bits,
        released=config.augment.released_augmentation,
    )
    if config.channels == "bgr":
        image = tf.reverse(image, [2])
    pixels, seen = geometry.warp(image, drawn.matrix, drawn.size)
    h, w = drawn.size[0], drawn.size[1]
    # rows of w * 3 numbers, because broadcasting over a last axis of 3 is slow
    mean = tf.tile(tf.constant(config.mean, tf.float32), [w])
    std = tf.tile(tf.constant(config.std, tf.float32), [w])
    pixels = (tf.round(tf.reshape(pixels, [h, w * 3])) - mean) / std
    y1, x1, y2, x2 = tf.unstack(drawn.holes[..., None], axis=1)
    rows = tf.cast((tf.range(h) >= y1) & (tf.range(h) < y2), tf.float32)
    columns = tf.cast((tf.range(w) >= x1) & (tf.range(w) < x2), tf.float32)
    seen &= tf.matmul(rows, columns, transpose_a=True) == 0
    pixels = tf.cond(
        tf.reduce_all(seen),
        lambda: pixels,
        lambda: tf.where(tf.repeat(seen, 3, axis=1), pixels, 0.0),
    )
    padded = tf.pad(pixels, [[0, height - h], [0, (width - w) * 3]])
    return tf.reshape(padded, [height, width, 3])


def single_view(image: np.ndarray, config: ConfigDict) -> View:
    """The evaluation view of one picture in memory, as a batch of one without boxes.

    Args:
      image: [h, w, 3] uint8 RGB.
      config: the whole config; its val scale and buckets are used.

    Raises:
      UserError: no bucket is large enough.
    """
    size = np.array(image.shape[:2])
    drawn = undisturbed(size, buckets.resized(size, *config.data.val.scale))
    sizes = buckets.of_any(config)
    bucket = buckets.fitting(drawn.size, sizes)
    if bucket < 0:
        raise buckets.too_small(drawn.size, "val")
    height, width = sizes[int(bucket)]
    pixels = render(tf.constant(image), Draw(*map(tf.constant, drawn)), height, width, config.data)
    fields: dict[str, Any] = dict(
        image=pixels.numpy(),
        size=drawn.size,
        matrix=drawn.matrix,
        index=np.zeros([], np.int32),
        **targets(np.zeros([0, 4]), np.zeros([0]), drawn, config.data.max_boxes),
    )
    return View(**{key: value[None] for key, value in fields.items()})
