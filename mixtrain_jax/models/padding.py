"""Where one picture ends inside a padded batch.

A picture has a size; its own pad is that size rounded up to a multiple of 32, which is what the
network would see if the picture were alone in its batch. A batch may be padded further. Networks
keep everything beyond the own pad from reaching anything inside it, so results do not depend on how
a batch was put together.
"""

import jax.numpy as jnp

from mixtrain_jax.ops.boxes import own_pad
from mixtrain_jax.types import Array


def extent(size: Array, stride: int) -> Array:
    """Height and width [..., 2] of the own pad in cells of a feature map of the given stride."""
    return (own_pad(size) + stride - 1) // stride


def inside(height: int, width: int, limit: Array) -> Array:
    """[B, height, width] bool, True in the top left limit [B, 2] (rows, columns) of each map."""
    rows = jnp.arange(height) < limit[:, :1]
    columns = jnp.arange(width) < limit[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def mask(x: Array, size: Array, stride: int) -> Array:
    """Zeroes features x [B, H, W, C] beyond the own pad of pictures of size [B, 2] in pixels."""
    keep = inside(x.shape[1], x.shape[2], extent(size, stride))
    return jnp.where(keep[..., None], x, 0)
