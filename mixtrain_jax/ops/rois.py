"""What RoIAlign knows of RoIs: the level each is pooled from, the cells it touches, their weights.

The mean over the samples of a bin and the bilinear taps are separable, so pooling a RoI is two
small matrices, rows to bins and columns to bins, applied to the cells it touches. All levels lie
in an atlas, one array, so that no level is pooled in vain. How the cells are brought together
differs by platform: `roi_tiles.py` and `roi_bins.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.ops import padding

FINEST = 56  # a RoI of twice this side, in pixels, is the first to leave the finest level
_MAX_SAMPLES = 4096  # of a bin, each way; a bound on the work that a wildly wrong box can ask for
_TOUCHING = 6  # samples lie more than half a cell apart: those that touch a cell are among so many


class Rois(NamedTuple):
    """R RoIs in cells of their level; axes are y, x.

    Attributes:
      image: [R] int32, row of the batch.
      origin: [R, 2] int32, where the level's first cell lies in the atlas.
      extent: [R, 2] int32, cells of the level that belong to the image.
      start: [R, 2] float32, top left corner; the centre of the first cell is 0.
      side: [R, 2] float32.
      first: [R, 2] int32, the first cell touched.
      touched: [R, 2] int32, cells touched each way; 0 for an empty RoI.
    """

    image: Array
    origin: Array
    extent: Array
    start: Array
    side: Array
    first: Array
    touched: Array


def pack(pyramid: Sequence[Array]) -> tuple[Array, list[tuple[int, int]]]:
    """Lays the levels out in one array: the finest on top, the others side by side below it.

    Returns:
      The atlas [B, H, W, C], and the row and column of each level's first cell in it.
    """
    finest, *others = pyramid
    origins = [(0, 0)]
    column = 0
    for level in others:
        origins.append((finest.shape[1], column))
        column += level.shape[2]
    if not others:
        return finest, origins
    width = max(finest.shape[2], column)
    below = max(level.shape[1] for level in others)

    def pad(level: Array, height: int, width: int) -> Array:
        missing = height - level.shape[1], width - level.shape[2]
        return jnp.pad(level, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))

    row = jnp.concatenate([pad(level, below, level.shape[2]) for level in others], axis=2)
    atlas = jnp.concatenate([pad(finest, finest.shape[1], width), pad(row, below, width)], axis=1)
    return atlas, origins


def locate(
    boxes: Array,
    size: Array,
    origins: Sequence[tuple[int, int]],
    shapes: Sequence[tuple[int, ...]],
    strides: Sequence[int],
) -> Rois:
    """Chooses the level of each box (FPN, eq. 1), and expresses the box in that level's cells.

    Args:
      boxes: [B, N, 4] float32 in pixels of the images.
      size: [B, 2] int32 height and width of the images before padding.
      origins: row and column of each level in the atlas.
      shapes: height and width of each level in cells.
      strides: of the levels, in pixels a cell.

    Returns:
      B * N RoIs.
    """
    scale = jnp.sqrt(box_ops.area(boxes)) / FINEST
    level = jnp.clip(jnp.floor(jnp.log2(scale + 1e-6)), 0, len(strides) - 1).astype(jnp.int32)
    image = jnp.broadcast_to(jnp.arange(len(boxes))[:, None], level.shape)
    stride = jnp.asarray(strides)
    extents = padding.extent(size[:, None], stride[:, None])
    extent = jnp.minimum(extents, jnp.asarray(shapes))[image, level]

    corners = boxes / stride[level][..., None] - 0.5
    start, end = corners[..., 1::-1], corners[..., :1:-1]
    side = end - start
    # No number of an empty or broken RoI may reach the loops it shares with others.
    solid = jnp.all(side > 0, axis=-1, keepdims=True)
    start, end, side = (jnp.where(solid, x, 0) for x in (start, end, side))
    first = jnp.floor(jnp.clip(start, 0, extent - 1)).astype(jnp.int32)
    last = jnp.floor(jnp.clip(end, 0, extent - 1)).astype(jnp.int32) + 1
    touched = jnp.where(solid, jnp.minimum(last, extent - 1) - first + 1, 0)
    rois = Rois(image, jnp.asarray(origins)[level], extent, start, side, first, touched)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rois)


def weights(rois: Rois, cells: Array, output: int, *, each_sample: bool) -> Array:
    """The mean, over the samples of each bin, of each cell's share in linear interpolation.

    Args:
      rois: R RoIs.
      cells: [R, 2, bins, T] int32, rows and columns of their level; bins is 1 where all share them.
      output: bins each way.
      each_sample: go through all samples, as many as the largest RoI has, in a loop whose length
        the data decides; or else, for each cell, through the few samples that can touch it.

    Returns:
      [R, 2, output, T] float32.
    """
    start, side, count = _bins(rois, output)
    extent = rois.extent[..., None, None]

    def shares(sample: Array) -> Array:
        """What a sample of each bin, the same for all cells or one for each, gives to the cells."""
        at = start + (sample + 0.5) * side / jnp.maximum(count, 1)
        counts = (at >= -1) & (at <= extent) & (sample >= 0) & (sample < count)
        share = jnp.maximum(1 - jnp.abs(jnp.clip(at, 0, extent - 1) - cells), 0)
        return jnp.where(counts, share, 0)

    if each_sample:
        shape = jnp.broadcast_shapes(start.shape, cells.shape)
        last = jnp.max(count).astype(jnp.int32)
        total = jax.lax.fori_loop(
            0, last, lambda i, sums: sums + shares(i), jnp.zeros(shape, jnp.float32)
        )
    else:
        apart = side / jnp.maximum(count, 1)
        first = jnp.floor((cells - 1 - start) / jnp.maximum(apart, 1e-6) - 0.5)
        total = sum(shares(jnp.maximum(first, 0) + i) for i in range(_TOUCHING))
    return total / jnp.maximum(count, 1)


def cells_of_bins(rois: Rois, output: int) -> tuple[Array, Array]:
    """The first cell that each bin touches, and how many, both [R, 2, output] int32."""
    start, side, count = _bins(rois, output)
    extent = rois.extent[..., None, None]

    def cell(sample: Array | int) -> Array:
        at = start + (sample + 0.5) * side / jnp.maximum(count, 1)
        return jnp.floor(jnp.clip(at, 0, extent - 1)).astype(jnp.int32)

    first, last = cell(0), jnp.minimum(cell(jnp.maximum(count, 1) - 1) + 1, extent - 1)
    return first[..., 0], jnp.where(count > 0, last - first + 1, 0)[..., 0]


def _bins(rois: Rois, output: int) -> tuple[Array, Array, Array]:
    """Each bin's start [R, 2, output, 1]; the side of a RoI's bins and its samples [R, 2, 1, 1]."""
    side = rois.side[..., None, None] / output
    start = rois.start[..., None, None] + jnp.arange(output)[:, None] * side
    return start, side, jnp.clip(jnp.ceil(side), 0, _MAX_SAMPLES)
