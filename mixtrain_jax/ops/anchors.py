"""Anchors of the region proposal network: where they lie, and which of them an image may use.

Anchors are centred at multiples of the stride (no half-pixel offset) and ordered y, x, ratio
within a level, finest level first. They depend on shapes alone, so they are numpy constants.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from mixtrain_jax.ops import padding

RATIOS = (0.5, 1.0, 2.0)


def level_anchors(
    height: int, width: int, stride: int, scale: float = 8, ratios: Sequence[float] = RATIOS
) -> np.ndarray:
    """Returns the anchors of one level.

    Args:
      height: rows of the level.
      width: columns of the level.
      stride: pixels of the image per cell.
      scale: side of the square anchor, in cells.
      ratios: height / width; all ratios have the same area.

    Returns:
      [height * width * len(ratios), 4] float32, in pixels of the image.
    """
    root = np.sqrt(np.asarray(ratios, np.float32))
    half_height, half_width = 0.5 * stride * scale * root, 0.5 * stride * scale / root
    base = np.stack([-half_width, -half_height, half_width, half_height], axis=-1)
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1).astype(np.float32)
    return (shifts[:, :, None] + base).reshape(-1, 4)


def pyramid_anchors(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    scale: float = 8,
    ratios: Sequence[float] = RATIOS,
) -> np.ndarray:
    """Returns the anchors [A, 4] float32 of all levels, one level after the other.

    Args:
      shapes: (height, width) of each level.
      strides: pixels per cell of each level.
      scale: see `level_anchors`.
      ratios: see `level_anchors`.
    """
    levels = [
        level_anchors(height, width, stride, scale, ratios)
        for (height, width), stride in zip(shapes, strides, strict=True)
    ]
    return np.concatenate(levels)


def inside(anchors: Array | np.ndarray, size: Array, border: float = -1) -> Array:
    """Tells which anchors an image may use.

    An anchor counts when its cell lies in the image padded to multiples of 32; with border >= 0 it
    must also lie in the image itself, give or take `border` pixels.

    Args:
      anchors: [A, 4] as returned by `level_anchors` or `pyramid_anchors`.
      size: [2] int32 height and width before padding.
      border: how far an anchor may reach out of the image, in pixels; negative: as far as it likes.

    Returns:
      [A] bool.
    """
    x1, y1, x2, y2 = anchors[:, 0], anchors[:, 1], anchors[:, 2], anchors[:, 3]
    height, width = size[0], size[1]
    padded_height, padded_width = padding.padded_size(height), padding.padded_size(width)
    # Centres are integers up to rounding: half a pixel off the limit decides every one safely.
    mask = ((x1 + x2) / 2 < padded_width - 0.5) & ((y1 + y2) / 2 < padded_height - 0.5)
    if border >= 0:
        mask &= (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)
    return jnp.asarray(mask)
