"""Feature Pyramid Network (Lin et al., 2017): strides 4, 8, 16, 32 and 64 with equal channels."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mixtrain_jax.models.layers import Conv
from mixtrain_jax.ops import padding
from mixtrain_jax.types import Array


class FPN(nn.Module):
    """Top-down pyramid: 1x1 laterals, nearest upsampling, 3x3 outputs, a subsampled last level."""

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: tuple[Array, ...], size: Array) -> tuple[Array, ...]:
        """Builds the pyramid P2..P6.

        Args:
          features: four maps [B, H_l, W_l, C_l] at strides 4, 8, 16, 32.
          size: [B, 2] height and width of each image in pixels.

        Returns:
          Five maps [B, H_l, W_l, channels], zero beyond each image's padded size; the strides are
          those of the features, and 64.
        """
        laterals = [self._conv(1, f"lateral{i}")(feature) for i, feature in enumerate(features)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + upsample(laterals[i + 1], laterals[i].shape)
        levels = []
        for i, lateral in enumerate(laterals):
            stride = 4 * 2**i
            level = self._conv(3, f"output{i}")(padding.mask(lateral, size, stride))
            levels.append(padding.mask(level, size, stride))
        levels.append(levels[-1][:, ::2, ::2])
        return tuple(levels)

    def _conv(self, side: int, name: str) -> Conv:
        init = nn.initializers.xavier_uniform()
        return Conv(self.channels, side, dtype=self.dtype, kernel_init=init, name=name)


def upsample(x: Array, shape: tuple[int, ...]) -> Array:
    """Doubles x [B, H, W, C] by repetition, cut to the height and width of the finer shape."""
    return x.repeat(2, 1).repeat(2, 2)[:, : shape[1], : shape[2]]
