"""Convolutions with gradients that are fast on CPU.

What it buys: a half to two thirds of the time of a wide 3x3 convolution's kernel gradient, which is
nine matrix products here. A 1x1 convolution is a matrix product everywhere. Elsewhere than on CPU
the gradients are XLA's own.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from mixtrain_jax.ops.cpu.dense import kernel_gradient_matmul, product

_WIDE = 128  # input channels from which products pay


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Convolves x [B, H, W, C] with a kernel [k, k, C, channels] of odd size k."""
    kernel_size, _, channels, _ = kernel.shape
    if kernel_size == 1:
        if stride > 1:
            # XLA's GPU compiler ends the process where it joins such a slice, and a norm of groups
            # before it, to a product.
            x = jax.lax.optimization_barrier(x[:, ::stride, ::stride])
        return product(x, kernel[0, 0])
    if stride == 1 and channels >= _WIDE:
        return _wide(x, kernel)
    return _plain(x, kernel, stride)


def _plain(x: Array, kernel: Array, stride: int = 1) -> Array:
    around = [(kernel.shape[0] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), around, dimension_numbers=("NHWC", "HWIO", "NHWC")
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
        x, gradient, cpu=partial(kernel_gradient_matmuls, kernel_size=len(kernel)), default=by_xla
    )
    return to_input, to_kernel


_wide.defvjp(_wide_forward, _wide_backward)


def kernel_gradient_matmuls(x: Array, gradient: Array, kernel_size: int) -> Array:
    """The gradient of a kernel: a matrix product of the shifted input for each of its cells.

    Args:
      x: [B, H, W, C], the input of a convolution of stride 1.
      gradient: [B, H, W, channels], the gradient of its output.
      kernel_size: its height and width.

    Returns:
      [k, k, C, channels], k being `kernel_size`.
    """
    around = (kernel_size // 2, kernel_size // 2)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))

    def of_cell(cell: Array) -> Array:
        shifted = jax.lax.dynamic_slice(
            padded, (0, cell // kernel_size, cell % kernel_size, 0), x.shape
        )
        return kernel_gradient_matmul(shifted, gradient)

    # One after the other: nine shifted copies at once would be the most memory a step takes.
    products = jax.lax.map(of_cell, jnp.arange(kernel_size * kernel_size))
    return products.reshape(kernel_size, kernel_size, *products.shape[1:])
