"""Where one image ends inside a padded batch.

An image has a size; its padded size is that rounded up to a multiple of 32, which is what the
network would see if the image were alone in its batch. A batch may be padded further. Networks
keep everything beyond the padded size from reaching anything inside it, so results do not depend
on how a batch was put together.
"""

import jax.numpy as jnp
from jax import Array


def padded_size(size: Array) -> Array:
    """Returns the sides of an image after the pad every image gets: the next multiples of 32.

    Args:
      size: [..., 2] int32 height and width before padding.
    """
    return (size + 31) // 32 * 32


def extent(size: Array, stride: int | Array) -> Array:
    """Height and width [..., 2] of the padded size in cells of a feature map of a stride."""
    return (padded_size(size) + stride - 1) // stride


def inside(height: int, width: int, limit: Array) -> Array:
    """[B, height, width] bool, True in the top left `limit` [B, 2] rows and columns of each map."""
    rows = jnp.arange(height) < limit[:, :1]
    columns = jnp.arange(width) < limit[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def mask(x: Array, size: Array, stride: int) -> Array:
    """Zeroes features x [B, H, W, C] beyond the padded size of images of size [B, 2] in pixels."""
    keep = inside(x.shape[1], x.shape[2], extent(size, stride))
    return jnp.where(keep[..., None], x, 0)
