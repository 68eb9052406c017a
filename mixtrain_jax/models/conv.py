"""The convolutions of the networks, written so that their gradients are fast too.

Same numbers and parameters as `flax.linen.Conv`. A 1x1 convolution is a matrix product. Of a wide
3x3 convolution the gradient of the kernel is nine matrix products on CPU, where XLA's own is two
to three times slower; elsewhere it is XLA's.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixtrain_jax.models.dense import by_product, product
from mixtrain_jax.types import Array

_WIDE = 128  # input channels from which products pay


class Conv(nn.Module):
    """Convolution with a square kernel that pads as many cells before as after, as PyTorch does.

    Attributes:
      channels: of the output.
      side: of the kernel, odd.
      step: stride.
      use_bias: whether to add a bias.
      dtype: of the arithmetic and the output; parameters are float32.
      kernel_init: initialiser of the kernel [side, side, input channels, channels].
    """

    channels: int
    side: int
    step: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / step), ceil(W / step), channels]."""
        shape = (self.side, self.side, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.step)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        return y + bias.astype(self.dtype)


def convolve(x: Array, kernel: Array, step: int) -> Array:
    """Convolves x [B, H, W, C] with a kernel [side, side, C, channels] of odd side."""
    side, _, channels, _ = kernel.shape
    if side == 1:
        return product(x[:, ::step, ::step], kernel[0, 0])
    if step == 1 and channels >= _WIDE:
        return _wide(x, kernel)
    return _plain(x, kernel, step)


def _plain(x: Array, kernel: Array, step: int = 1) -> Array:
    around = [(kernel.shape[0] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (step, step), around, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _wide(x: Array, kernel: Array) -> Array:
    return _plain(x, kernel)


def _wide_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _plain(x, kernel), (x, kernel)


def _wide_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (to_input,) = jax.linear_transpose(lambda x: _plain(x, kernel), x)(gradient)

    def by_xla(x: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda kernel: _plain(x, kernel), kernel)(gradient)[0]

    to_kernel = jax.lax.platform_dependent(
        x, gradient, cpu=partial(by_products, side=len(kernel)), default=by_xla
    )
    return to_input, to_kernel


_wide.defvjp(_wide_forward, _wide_backward)


def by_products(x: Array, gradient: Array, side: int) -> Array:
    """The gradient of a kernel: a matrix product of the shifted input for each of its cells.

    Args:
      x: [B, H, W, C], the input of a convolution of stride 1.
      gradient: [B, H, W, channels], the gradient of its output.
      side: of the kernel.

    Returns:
      [side, side, C, channels].
    """
    around = (side // 2, side // 2)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))

    def of_cell(cell: Array) -> Array:
        shifted = jax.lax.dynamic_slice(padded, (0, cell // side, cell % side, 0), x.shape)
        return by_product(shifted, gradient)

    # One after the other: nine shifted copies at once would be the most memory a step takes.
    products = jax.lax.map(of_cell, jnp.arange(side * side))
    return products.reshape(side, side, *products.shape[1:])
