"""Pooling of RoIs tile by tile, for CPUs and TPUs.

The cells that RoIs touch come as square tiles cut out of the atlas: most RoIs need one tile or a
few, and a loop runs over just as many as there are. No RoI is too long, an empty RoI costs nothing,
and the backward pass touches the same cells and no others.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mixtrain_jax.ops.rois import Rois, weights

_EXACT = jax.lax.Precision.HIGHEST


class Size(NamedTuple):
    """How tiles are taken.

    Attributes:
      tile: cells each way of a tile.
      chunk: tiles handled at once.
    """

    tile: int
    chunk: int


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


@partial(jax.jit, static_argnames=("output", "size"))  # traced once for all alike
def pool(atlas: Array, rois: Rois, *, output: int, size: Size) -> Array:
    """Pools R RoIs from the atlas [B, H, W, C] to [R, output, output, C].

    Args:
      atlas: float32 or bfloat16; gradients flow to it only. Sums are float32.
      rois: as `rois.locate` gives them.
      output: bins each way.
      size: of tiles, and of chunks of them.
    """
    tile, chunk = min(size.tile, *atlas.shape[1:3]), min(size.chunk, len(rois.image))
    return _pool(atlas, rois, _Plan(output, tile, chunk, atlas.shape, atlas.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool(atlas: Array, rois: Rois, plan: _Plan) -> Array:
    def add_tiles(pooled: Array, roi: Array, image: Array, corner: Array, shares: Array) -> Array:
        rows, columns = shares[:, 0], shares[:, 1]
        cells = _read(atlas, image, corner, plan).astype(jnp.float32)
        part = jnp.einsum("roy,ryxc->roxc", rows, cells, precision=_EXACT)
        part = jnp.sum(columns[:, None, :, :, None] * part[:, :, None], axis=3)
        return pooled.at[roi].add(part)

    pooled = jnp.zeros((len(rois.image), plan.output, plan.output, plan.shape[-1]), jnp.float32)
    return _for_each_tile(add_tiles, pooled, rois, plan).astype(plan.dtype)


def _pool_forward(atlas: Array, rois: Rois, plan: _Plan) -> tuple[Array, Rois]:
    return _pool(atlas, rois, plan), rois


def _pool_backward(plan: _Plan, rois: Rois, gradient: Array) -> tuple[Array, None]:
    gradient = gradient.astype(jnp.float32)

    def add_tiles(total: Array, roi: Array, image: Array, corner: Array, shares: Array) -> Array:
        rows, columns = shares[:, 0], shares[:, 1]
        part = jnp.sum(columns[:, None, :, :, None] * gradient[roi][:, :, :, None], axis=2)
        part = jnp.einsum("roy,roxc->ryxc", rows, part, precision=_EXACT)
        return _add(total, part, image, corner, plan)

    total = _for_each_tile(add_tiles, jnp.zeros(plan.shape, jnp.float32), rois, plan)
    return total.astype(plan.dtype), None


_pool.defvjp(_pool_forward, _pool_backward)


def _for_each_tile(function: Callable[..., Array], carry: Array, rois: Rois, plan: _Plan) -> Array:
    """Folds function(carry, roi, image, corner, shares) over all tiles, a chunk at a time."""
    tiles = -(-rois.touched // plan.tile)
    count = jnp.prod(tiles, axis=-1)
    ends = jnp.cumsum(count)

    def step(i: Array, carry: Array) -> Array:
        item = i * plan.chunk + jnp.arange(plan.chunk)
        # Items past the end become tiles below the last RoI, whose shares are all zero.
        method = "scan" if plan.chunk == 1 else "compare_all"
        found = jnp.searchsorted(ends, item, side="right", method=method)
        roi = jnp.minimum(found, len(count) - 1)
        some = jax.tree.map(lambda x: x[roi], rois)
        across = jnp.maximum(tiles[roi, 1], 1)
        corner, shares = _tile(some, item - (ends - count)[roi], across, plan)
        return function(carry, roi, some.image, corner, shares)

    return jax.lax.fori_loop(0, -(-ends[-1] // plan.chunk), step, carry)


def _tile(rois: Rois, index: Array, across: Array, plan: _Plan) -> tuple[Array, Array]:
    """Finds tile number `index` of each RoI, which has `across` tiles side by side.

    Returns:
      The tile's corner [R, 2] in the atlas, and the shares [R, 2, output, tile] with which its
      rows (0) and columns (1) enter each bin.
    """
    begin = rois.first + plan.tile * jnp.stack([index // across, index % across], axis=-1)
    corner = jnp.minimum(rois.origin + begin, jnp.asarray(plan.shape[1:3]) - plan.tile)
    cells = (corner - rois.origin)[..., None] + jnp.arange(plan.tile)
    # At the edge of the atlas a tile moves back over cells that belong to the tile before it.
    fresh = cells >= begin[..., None]
    shares = weights(rois, cells[:, :, None], plan.output, each_sample=plan.chunk == 1)
    return corner, jnp.where(fresh[..., None, :], shares, 0)


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
