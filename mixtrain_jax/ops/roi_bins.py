"""Pooling of RoIs bin by bin, for GPUs.

A loop whose length the data decides makes the host of a GPU wait, so none is here: every bin is
given as many cells as any bin can touch on the level that its RoI is pooled from. The level is
chosen by a RoI's area, and that bounds its cells, however long or flat it is: a bin of a RoI of 28
by 28 cells touches at most 5 by 5, one of the flattest across an image of 1,344 pixels 49 by 2. The
sum over the cells of a bin reads them where they lie; its gradient adds to them there. A RoI larger
than the batch's shape, which no clipped box is, could touch more: it gives NaN.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixtrain_jax.ops.rois import FINEST, Rois, cells_of_bins, weights

_AT_ONCE = 20  # cells of a bin that one kernel adds up; with more it takes long to compile


class _Plan(NamedTuple):
    """What is fixed when the program is compiled.

    Attributes:
      output: bins each way.
      cells: of each bin, those it does not touch included.
      shape: shape of the atlas.
      dtype: type of the atlas.
    """

    output: int
    cells: int
    shape: tuple[int, ...]
    dtype: Any


@partial(
    jax.jit, static_argnames=("output", "shapes", "strides")
)  # traced once for the same shapes
def pool(
    atlas: Array,
    rois: Rois,
    *,
    output: int,
    shapes: Sequence[tuple[int, ...]],
    strides: Sequence[int],
) -> Array:
    """Pools R RoIs from the atlas [B, H, W, C] to [R, output, output, C].

    Args:
      atlas: float32 or bfloat16; gradients flow to it only. Sums are float32.
      rois: as `rois.locate` gives them, none larger than the finest level.
      output: bins each way.
      shapes: height and width of each level in cells.
      strides: pixels per cell of each level.
    """
    cells = most_cells(output, shapes, strides)
    return _pool(atlas, rois, _Plan(output, cells, atlas.shape, atlas.dtype))


def most_cells(output: int, shapes: Sequence[tuple[int, ...]], strides: Sequence[int]) -> int:
    """The cells that a bin can touch at most, on any level, of a RoI no larger than the level."""
    most = 0
    for number, ((height, width), stride) in enumerate(zip(shapes, strides, strict=True)):
        area = height * width / output**2
        if number < len(shapes) - 1:
            # Of a RoI on this level, with a margin for the rounding of float32.
            area = min(area, 1.01 * (2 * FINEST * 2**number / stride / output) ** 2)
        # One side of the bin: it is longer than this, at most as long as the next.
        across = np.arange(0, width / output, 0.125)
        down = np.minimum(area / np.maximum(across, 1e-6), height / output)
        across = np.minimum(across + 0.125, width / output)
        cells = np.minimum(_cells(across), width) * np.minimum(_cells(down), height)
        most = max(most, int(cells.max()))
    return most


def _cells(side: np.ndarray) -> np.ndarray:
    """The cells along one side of a bin that its samples touch at most.

    From the first sample to the last it is less than the side; float32 may round that up.
    """
    samples = np.maximum(np.ceil(side), 1)
    span = np.where(samples > 1, side - side / samples + 1e-3, 0)
    return np.ceil(span) + 2


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool(atlas: Array, rois: Rois, plan: _Plan) -> Array:
    cells = atlas.reshape(-1, plan.shape[-1])
    index, share = _bins(rois, plan)

    def add(total: Array, some: tuple[Array, Array]) -> tuple[Array, None]:
        for where, part in zip(*some, strict=True):
            read = cells.at[where].get(mode="promise_in_bounds").astype(jnp.float32)
            total += part[..., None] * read
        return total, None

    total = jnp.zeros((*index.shape[1:], plan.shape[-1]), jnp.float32)
    groups = [x.reshape(-1, _AT_ONCE, *x.shape[1:]) for x in (index, share)]
    total, _ = jax.lax.scan(add, total, (groups[0], groups[1]))
    return total.astype(plan.dtype)


def _pool_forward(atlas: Array, rois: Rois, plan: _Plan) -> tuple[Array, Rois]:
    return _pool(atlas, rois, plan), rois


def _pool_backward(plan: _Plan, rois: Rois, gradient: Array) -> tuple[Array, None]:
    index, share = _bins(rois, plan)
    parts = share[..., None] * gradient.astype(jnp.float32)
    total = jnp.zeros((math.prod(plan.shape[:-1]), plan.shape[-1]), jnp.float32)
    # Cells that a bin does not touch are not written to.
    total = total.at[jnp.where(share > 0, index, len(total))].add(parts, mode="drop")
    return total.reshape(plan.shape).astype(plan.dtype), None


_pool.defvjp(_pool_forward, _pool_backward)


def _bins(rois: Rois, plan: _Plan) -> tuple[Array, Array]:
    """The cells that each bin touches, row after row.

    Returns:
      Rows [T, R, output, output] int32 of the flat atlas, T a multiple of `_AT_ONCE`; the image's
      first cell where there are no more. The share float32 of each in the bin, 0 there.
    """
    first, touched = cells_of_bins(rois, plan.output)
    rows, columns = touched[:, 0, :, None], touched[:, 1, None, :]
    number = jnp.arange(-(-plan.cells // _AT_ONCE) * _AT_ONCE)[:, None, None, None]
    there = number < rows * columns
    down, along = jnp.divmod(jnp.where(there, number, 0), jnp.maximum(columns, 1))
    row, column = first[:, 0, :, None] + down, first[:, 1, None, :] + along

    # Of rows the first axis of bins counts, of columns the second.
    cells = jnp.stack([row, jnp.swapaxes(column, 2, 3)], axis=2)  # [T, R, 2, own, other]
    flat = jnp.moveaxis(cells, 0, -1).reshape(*cells.shape[1:4], -1)
    each = weights(rois, flat, plan.output, each_sample=False)
    each = jnp.moveaxis(each.reshape(*cells.shape[1:], -1), -1, 0)
    share = jnp.where(there, each[:, :, 0] * jnp.swapaxes(each[:, :, 1], 2, 3), 0)
    share = jnp.where(rows * columns <= len(number), share, jnp.nan)

    height, width = plan.shape[1:3]
    image, origin = rois.image[:, None, None], rois.origin[:, :, None, None]
    start = image * height * width
    index = start + (origin[:, 0] + row) * width + origin[:, 1] + column
    index = jnp.where(there, index, start)
    # Not found anew for each channel.
    found: tuple[Array, Array] = jax.lax.optimization_barrier((index, share))
    return found
