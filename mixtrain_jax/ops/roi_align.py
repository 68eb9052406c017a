"""RoIAlign with adaptive sampling, exact at static shapes, over a whole pyramid at once.

Each RoI is averaged over 7 x 7 bins, and a bin takes ceil(side / 7) bilinear samples each way,
however large the RoI. The mean over samples and the bilinear taps are separable, so pooling a RoI
is two small matrices, rows to bins and columns to bins, applied to the cells it touches. Those
cells come as square tiles cut out of an atlas, one array that holds all levels: most RoIs need one
tile or a few, and a loop runs over just as many as there are. No level is pooled in vain, no RoI
is too long, an empty RoI costs nothing, and the backward pass touches the same cells and no
others. On accelerators, where a loop whose length the data decides makes the host wait, as many
chunks of tiles as there are RoIs, and one more, are taken without a look at how many there are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mixtrain_jax.ops import boxes as box_ops

_FINEST = 56  # a RoI of twice this side, in pixels, is the first to leave the finest level
_MAX_SAMPLES = 4096  # of a bin, each way; a bound on the work that a wildly wrong box can ask for
_TOUCHING = 6  # samples, more than half a cell apart, of which those that touch a cell are some
_EXACT = jax.lax.Precision.HIGHEST
_CPU_TILE, _CPU_CHUNK = 16, 1  # one tile at a time stays in cache
_TILE, _CHUNK = 32, 512  # elsewhere: many tiles at once, nearly always one a RoI


class _Plan(NamedTuple):
    """What is fixed when the program is compiled.

    Attributes:
      output: bins each way.
      tile: cells each way of a tile.
      chunk: tiles handled at once.
      shape: shape of the atlas.
      dtype: type of the atlas.
    """

    output: int
    tile: int
    chunk: int
    shape: tuple[int, ...]
    dtype: Any


class _Rois(NamedTuple):
    """R RoIs in cells of their level; axes are y, x.

    Attributes:
      image: [R] int32, row of the batch.
      origin: [R, 2] int32, where the level's first cell lies in the atlas.
      extent: [R, 2] int32, cells of the level that belong to the image.
      start: [R, 2] float32, top left corner; the centre of the first cell is 0.
      side: [R, 2] float32.
      first: [R, 2] int32, the first cell touched.
      tiles: [R, 2] int32, tiles that cover the cells touched; 0 for an empty RoI.
    """

    image: Array
    origin: Array
    extent: Array
    start: Array
    side: Array
    first: Array
    tiles: Array


def roi_align(
    pyramid: Sequence[Array],
    boxes: Array,
    size: Array,
    *,
    strides: Sequence[int],
    output: int = 7,
) -> Array:
    """Pools each RoI from the level that fits its size (FPN, eq. 1; Mask R-CNN, section 3).

    Coordinates clamp at the image's own extent, its sides padded to multiples of 32, so a larger
    batch shape changes nothing. Samples more than a cell outside add zero, but count. Gradients
    flow to the features only.

    Args:
      pyramid: levels [B, H_l, W_l, C], finest first; float32 or bfloat16.
      boxes: [B, N, 4] in pixels of the view; an empty box gives zeros.
      size: [B, 2] int32 height and width of the images before padding.
      strides: pixels per cell of each level.
      output: bins each way.

    Returns:
      [B, N, output, output, C] in the dtype of the pyramid; sums are float32.
    """
    atlas, origins = _pack(pyramid)
    shapes = [level.shape[1:3] for level in pyramid]

    def pool(atlas: Array, boxes: Array, size: Array, *, tile: int, chunk: int) -> Array:
        tile, chunk = min(tile, *atlas.shape[1:3]), min(chunk, boxes.shape[0] * boxes.shape[1])
        plan = _Plan(output, tile, chunk, atlas.shape, atlas.dtype)
        return _pool(atlas, _locate(boxes, size, origins, shapes, strides, tile), plan)

    pooled = jax.lax.platform_dependent(
        atlas,
        jax.lax.stop_gradient(boxes),
        size,
        cpu=partial(pool, tile=_CPU_TILE, chunk=_CPU_CHUNK),
        default=partial(pool, tile=_TILE, chunk=_CHUNK),
    )
    return pooled.reshape(*boxes.shape[:2], output, output, -1)


def _pack(pyramid: Sequence[Array]) -> tuple[Array, list[tuple[int, int]]]:
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


def _locate(
    boxes: Array,
    size: Array,
    origins: Sequence[tuple[int, int]],
    shapes: Sequence[tuple[int, ...]],
    strides: Sequence[int],
    tile: int,
) -> _Rois:
    """Chooses the level of each of [B, N, 4] boxes and expresses the box in its cells."""
    scale = jnp.sqrt(box_ops.area(boxes)) / _FINEST
    level = jnp.clip(jnp.floor(jnp.log2(scale + 1e-6)), 0, len(strides) - 1).astype(jnp.int32)
    image = jnp.broadcast_to(jnp.arange(len(boxes))[:, None], level.shape)
    stride = jnp.asarray(strides)
    extents = -(-box_ops.padded_size(size)[:, None] // stride[:, None])
    extent = jnp.minimum(extents, jnp.asarray(shapes))[image, level]

    corners = boxes / stride[level][..., None] - 0.5
    start, end = corners[..., 1::-1], corners[..., :1:-1]
    side = end - start
    # No number of an empty or broken RoI may reach the loops it shares with others.
    solid = jnp.all(side > 0, axis=-1, keepdims=True)
    start, end, side = (jnp.where(solid, x, 0) for x in (start, end, side))
    first = jnp.floor(jnp.clip(start, 0, extent - 1)).astype(jnp.int32)
    last = jnp.floor(jnp.clip(end, 0, extent - 1)).astype(jnp.int32) + 1
    touched = jnp.minimum(last, extent - 1) - first + 1
    tiles = jnp.where(solid, -(-touched // tile), 0)
    rois = _Rois(image, jnp.asarray(origins)[level], extent, start, side, first, tiles)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rois)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool(atlas: Array, rois: _Rois, plan: _Plan) -> Array:
    """Pools R RoIs to [R, output, output, C]."""

    def add_tiles(pooled: Array, roi: Array, image: Array, corner: Array, weights: Array) -> Array:
        rows, columns = weights[:, 0], weights[:, 1]
        cells = _read(atlas, image, corner, plan).astype(jnp.float32)
        part = jnp.einsum("roy,ryxc->roxc", rows, cells, precision=_EXACT)
        part = jnp.sum(columns[:, None, :, :, None] * part[:, :, None], axis=3)
        return pooled.at[roi].add(part)

    pooled = jnp.zeros((len(rois.image), plan.output, plan.output, plan.shape[-1]), jnp.float32)
    return _for_each_tile(add_tiles, pooled, rois, plan).astype(plan.dtype)


def _pool_forward(atlas: Array, rois: _Rois, plan: _Plan) -> tuple[Array, _Rois]:
    return _pool(atlas, rois, plan), rois


def _pool_backward(plan: _Plan, rois: _Rois, gradient: Array) -> tuple[Array, None]:
    gradient = gradient.astype(jnp.float32)

    def add_tiles(total: Array, roi: Array, image: Array, corner: Array, weights: Array) -> Array:
        rows, columns = weights[:, 0], weights[:, 1]
        part = jnp.sum(columns[:, None, :, :, None] * gradient[roi][:, :, :, None], axis=2)
        part = jnp.einsum("roy,roxc->ryxc", rows, part, precision=_EXACT)
        return _add(total, part, image, corner, plan)

    total = _for_each_tile(add_tiles, jnp.zeros(plan.shape, jnp.float32), rois, plan)
    return total.astype(plan.dtype), None


_pool.defvjp(_pool_forward, _pool_backward)


def _for_each_tile(function: Callable[..., Array], carry: Array, rois: _Rois, plan: _Plan) -> Array:
    """Folds function(carry, roi, image, corner, weights) over all tiles, a chunk at a time."""
    count = jnp.prod(rois.tiles, axis=-1)
    blind, method = 0, "scan"
    if plan.chunk > 1:
        count = jnp.maximum(count, 1)  # so that there are as many tiles as RoIs at least
        blind, method = -(-len(count) // plan.chunk) + 1, "compare_all"
    ends = jnp.cumsum(count)

    def step(i: Array, carry: Array) -> Array:
        item = i * plan.chunk + jnp.arange(plan.chunk)
        # Items past the end become tiles below the last RoI, whose weights are all zero.
        found = jnp.searchsorted(ends, item, side="right", method=method)
        roi = jnp.minimum(found, len(count) - 1)
        some = jax.tree.map(lambda x: x[roi], rois)
        corner, weights = _tile(some, item - (ends - count)[roi], plan)
        return function(carry, roi, some.image, corner, weights)

    if blind:
        carry = jax.lax.fori_loop(0, blind, step, carry)
    return jax.lax.fori_loop(blind, -(-ends[-1] // plan.chunk), step, carry)


def _tile(rois: _Rois, index: Array, plan: _Plan) -> tuple[Array, Array]:
    """Finds tile number `index` of each RoI.

    Returns:
      The tile's corner [R, 2] in the atlas, and the weights [R, 2, output, tile] with which its
      rows (0) and columns (1) enter each bin.
    """
    across = jnp.maximum(rois.tiles[:, 1], 1)
    begin = rois.first + plan.tile * jnp.stack([index // across, index % across], axis=-1)
    corner = jnp.minimum(rois.origin + begin, jnp.asarray(plan.shape[1:3]) - plan.tile)
    cells = (corner - rois.origin)[..., None] + jnp.arange(plan.tile)
    # At the edge of the atlas a tile moves back over cells that belong to the tile before it.
    fresh = cells >= begin[..., None]
    return corner, jnp.where(fresh[..., None, :], _weights(rois, cells, plan), 0)


def _weights(rois: _Rois, cells: Array, plan: _Plan) -> Array:
    """The mean, over the samples of each bin, of each cell's share in linear interpolation.

    Args:
      rois: R RoIs.
      cells: [R, 2, T] int32, rows and columns of their level.
      plan: tells the bins each way, and whether this is for the CPU.

    Returns:
      [R, 2, output, T] float32.
    """
    start, extent = rois.start[..., None, None], rois.extent[..., None, None]
    bin_side = rois.side[..., None, None] / plan.output
    count = jnp.clip(jnp.ceil(bin_side), 0, _MAX_SAMPLES)
    bins = start + jnp.arange(plan.output)[:, None] * bin_side
    cells = cells[:, :, None]

    def shares(sample: Array) -> Array:
        """What a sample of each bin, the same for all cells or one for each, gives to the cells."""
        at = bins + (sample + 0.5) * bin_side / jnp.maximum(count, 1)
        counts = (at >= -1) & (at <= extent) & (sample >= 0) & (sample < count)
        share = jnp.maximum(1 - jnp.abs(jnp.clip(at, 0, extent - 1) - cells), 0)
        return jnp.where(counts, share, 0)

    if plan.chunk > 1:
        # For each cell the few samples that can touch it: a loop over all makes the host wait.
        apart = bin_side / jnp.maximum(count, 1)
        first = jnp.floor((cells - 1 - bins) / jnp.maximum(apart, 1e-6) - 0.5)
        total = sum(shares(jnp.maximum(first, 0) + i) for i in range(_TOUCHING))
    else:
        shape = jnp.broadcast_shapes(bins.shape, cells.shape)
        last = jnp.max(count).astype(jnp.int32)
        total = jax.lax.fori_loop(
            0, last, lambda i, sums: sums + shares(i), jnp.zeros(shape, jnp.float32)
        )
    return total / jnp.maximum(count, 1)


def _read(atlas: Array, image: Array, corner: Array, plan: _Plan) -> Array:
    """Cuts tiles [T, tile, tile, C] out of the atlas."""
    shape = (1, plan.tile, plan.tile, plan.shape[-1])
    if plan.chunk == 1:
        return jax.lax.dynamic_slice(atlas, (image[0], corner[0, 0], corner[0, 1], 0), shape)
    start = jnp.concatenate([image[:, None], corner, jnp.zeros_like(image)[:, None]], axis=1)
    return jax.vmap(lambda at: jax.lax.dynamic_slice(atlas, at, shape)[0])(start)


def _add(atlas: Array, tiles: Array, image: Array, corner: Array, plan: _Plan) -> Array:
    """Adds tiles [T, tile, tile, C] to the atlas, in place inside a loop."""
    if plan.chunk == 1:
        at = (image[0], corner[0, 0], corner[0, 1], 0)
        return jax.lax.dynamic_update_slice(
            atlas, jax.lax.dynamic_slice(atlas, at, tiles.shape) + tiles, at
        )
    rows, columns = jnp.moveaxis(corner[..., None] + jnp.arange(plan.tile), 1, 0)
    return atlas.at[image[:, None, None], rows[:, :, None], columns[:, None, :]].add(tiles)
