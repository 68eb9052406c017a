"""The layers that all networks are built of: dense layers and convolutions, as Flax modules.

Same numbers and parameters as `flax.linen.Dense` and `flax.linen.Conv`; the arithmetic, with
gradients that are fast on CPU too, is that of `ops/cpu`.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mixtrain_jax.ops.cpu.conv import convolve
from mixtrain_jax.ops.cpu.dense import product
from mixtrain_jax.types import Array


class Conv(nn.Module):
    """Convolution with a square kernel that pads as many cells before as after, as PyTorch does.

    Attributes:
      channels: of the output.
      kernel_size: its height and width, odd.
      stride: of the convolution.
      use_bias: whether to add a bias.
      dtype: of the arithmetic and the output; parameters are float32.
      kernel_init: initialiser of the kernel [kernel_size, kernel_size, input channels, channels].
    """

    channels: int
    kernel_size: int
    stride: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), channels]."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        return y + bias.astype(self.dtype)


def _dot_general(x: Array, kernel: Array, axes: Any, **options: Any) -> Array:
    """What nn.Dense asks for is always this product."""
    del axes, options
    return product(x, kernel)


Dense = partial(nn.Dense, dot_general=_dot_general)
