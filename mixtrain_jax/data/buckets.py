"""Sizes of views: how photographs are resized, and the few sizes that batches are padded to.

A bucket is a (height, width), multiples of 32; each one is compiled once.
"""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from mixtrain_jax.runtime.errors import UserError


def resized(sizes: np.ndarray, long: int, short: np.ndarray | int) -> np.ndarray:
    """Sizes after a resize that keeps the aspect.

    Args:
      sizes: [..., 2] height and width.
      long: the longest the long side may become.
      short: [...] what the short side becomes if the long side allows it.

    Returns:
      [..., 2] int64: int(side * factor + 0.5), at least 1.
    """
    sizes = np.asarray(sizes)
    factor = np.minimum(long / sizes.max(axis=-1), np.asarray(short) / sizes.min(axis=-1))
    return np.maximum((sizes * factor[..., None] + 0.5).astype(np.int64), 1)


def of(config: ConfigDict, split: str) -> list[tuple[int, int]]:
    """The (height, width) that batches of a split ('train' or 'val') may be padded to."""
    buckets = [tuple(bucket) for bucket in config.data[split].buckets]
    if not buckets or any(side <= 0 or side % 32 for bucket in buckets for side in bucket):
        raise UserError(f"config.data.{split}.buckets must be (height, width), multiples of 32")
    return buckets


def fitting(sizes: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The index of the smallest bucket that contains each size [..., 2]; -1 if none does."""
    found = np.full(sizes.shape[:-1], -1, np.int16)
    for index in sorted(range(len(buckets)), key=lambda i: -buckets[i][0] * buckets[i][1]):
        found[(sizes <= np.array(buckets[index])).all(axis=-1)] = index
    return found


def too_small(size: np.ndarray, split: str) -> UserError:
    """The error for a picture that no bucket contains."""
    return UserError(
        f"a picture resized to height {size[0]} and width {size[1]} fits in none of "
        f"config.data.{split}.buckets; add a bucket (height, width) that contains it"
    )
