"""Arithmetic on boxes: area, overlap, delta coding, clipping and mapping between views.

Boxes are x1 y1 x2 y2 in continuous pixel coordinates, float32; sizes are (height, width).
Everything is differentiable and stays finite, in value and gradient, on padded boxes (all zeros).
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

# COCO's sizes of objects: areas from ... to below ..., in pixels of the original image.
COCO_SIZES = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, math.inf),
}
_MAX_LOG_RATIO = abs(math.log(16 / 1000))
_MIN_UNION = 1e-6
_MIN_SIDE = 1e-6


def area(boxes: Array) -> Array:
    """Returns the areas [...] of boxes [..., 4], 0 where a side is negative."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(a: Array, b: Array) -> Array:
    """Returns the intersection over union [..., N, M] of boxes [..., N, 4] and [..., M, 4].

    The union is floored at 1e-6, as in the released code, so two empty boxes overlap by 0.
    """
    ax1, ay1, ax2, ay2 = jnp.moveaxis(a[..., :, None, :], -1, 0)
    bx1, by1, bx2, by2 = jnp.moveaxis(b[..., None, :, :], -1, 0)
    width = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), 0)
    height = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), 0)
    intersection = width * height
    union = area(a)[..., :, None] + area(b)[..., None, :] - intersection
    return intersection / jnp.maximum(union, _MIN_UNION)


def encode(anchors: Array, targets: Array, stds: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """Returns the deltas (dx, dy, dw, dh) that take anchors to targets (Faster R-CNN, eq. 2).

    Args:
      anchors: [..., 4] boxes, in pixels.
      targets: [..., 4] boxes in the same pixels.
      stds: the deltas are divided by these.

    Returns:
      [..., 4] float32. Sides are floored at 1e-6 pixels, so empty boxes give finite deltas.
    """
    center, sides = _center_and_sides(anchors)
    target_center, target_sides = _center_and_sides(targets)
    sides, target_sides = jnp.maximum(sides, _MIN_SIDE), jnp.maximum(target_sides, _MIN_SIDE)
    deltas = ((target_center - center) / sides, jnp.log(target_sides / sides))
    return jnp.concatenate(deltas, axis=-1) / jnp.asarray(stds, jnp.float32)


def decode(
    anchors: Array, deltas: Array, stds: Sequence[float] = (1, 1, 1, 1), size: Array | None = None
) -> Array:
    """Applies deltas to anchors; the inverse of `encode`.

    Args:
      anchors: [..., 4] boxes, in pixels; broadcast against deltas.
      deltas: [..., 4] in units of stds; dw and dh are clamped to +-log(1000/16).
      stds: what `encode` divided by.
      size: if given, the result is clipped to it; see `clip` for its shape.

    Returns:
      [..., 4] float32 boxes.
    """
    deltas = deltas * jnp.asarray(stds, jnp.float32)
    center, sides = _center_and_sides(anchors)
    center = center + sides * deltas[..., :2]
    half = 0.5 * sides * jnp.exp(jnp.clip(deltas[..., 2:], -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    boxes = jnp.concatenate([center - half, center + half], axis=-1)
    return boxes if size is None else clip(boxes, size)


def clip(boxes: Array, size: Array) -> Array:
    """Clips boxes to their image.

    Args:
      boxes: [..., N, 4] in pixels; further axes may stand between size's axes and the last one.
      size: [..., 2] height and width; its leading axes are the boxes' leading axes.

    Returns:
      boxes of the same shape.
    """
    size = jnp.asarray(size, boxes.dtype)
    size = size.reshape(size.shape[:-1] + (1,) * (boxes.ndim - size.ndim) + (2,))
    limit = jnp.concatenate([size[..., ::-1], size[..., ::-1]], axis=-1)
    return jnp.clip(boxes, 0, limit)


def transform(boxes: Array, matrix: Array, size: Array) -> tuple[Array, Array]:
    """Maps boxes to another view: the box around the four mapped edge mid-points.

    Mid-points instead of corners keep boxes tight under rotation and shear (as the released code
    does).

    Args:
      boxes: [..., N, 4] in pixels of the source view.
      matrix: [..., 3, 3] float32, affine, takes homogeneous (x, y, 1) of the source to the target.
      size: [..., 2] height and width of the target view, to which the boxes are clipped.

    Returns:
      boxes [..., N, 4] in pixels of the target view, and a mask [..., N] that is False where
      nothing of the box is left in view.
    """
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    points = jnp.stack([jnp.stack([x, x1, x2, x], -1), jnp.stack([y1, y, y, y2], -1)], -1)
    # Written out: a matrix product may run in lower precision, and boxes must not.
    m = matrix[..., None, None, :, :]
    mapped = points[..., :1] * m[..., :2, 0] + points[..., 1:] * m[..., :2, 1] + m[..., :2, 2]
    mapped = jnp.concatenate([mapped.min(-2), mapped.max(-2)], axis=-1)
    mapped = clip(mapped, size)
    return mapped, jnp.all(mapped[..., 2:] > mapped[..., :2], axis=-1)


def inverse(matrix: Array) -> Array:
    """Returns the inverses [..., 3, 3] of affine matrices [..., 3, 3], whose last row is 0 0 1.

    Written out: a general inverse is a dozen kernels on accelerators, and rounds more.
    """
    a, b, x = jnp.moveaxis(matrix[..., 0, :], -1, 0)
    c, d, y = jnp.moveaxis(matrix[..., 1, :], -1, 0)
    rows = (
        jnp.stack([d, -b, b * y - d * x], axis=-1),
        jnp.stack([-c, a, c * x - a * y], axis=-1),
    )
    first, second = (row / (a * d - b * c)[..., None] for row in rows)
    return jnp.stack([first, second, matrix[..., 2, :]], axis=-2)


def _center_and_sides(boxes: Array) -> tuple[Array, Array]:
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]
