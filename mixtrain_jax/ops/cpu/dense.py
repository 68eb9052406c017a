"""Products of a dense layer, with a kernel gradient that is fast on CPU.

What it buys: up to half the time of the gradient of a dense layer's kernel. XLA sums it over all
leading axes at once, and on CPU it first turns both factors over for that; here it is a product of
two flat matrices. Elsewhere the gradient is XLA's own.
"""

import jax
from jax import Array


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """Maps the last axis of x [..., C] by a kernel [C, channels]."""
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def by_xla(x: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda kernel: x @ kernel, kernel)(gradient)[0]

    to_kernel = jax.lax.platform_dependent(x, gradient, cpu=kernel_gradient_matmul, default=by_xla)
    return gradient @ kernel.T, to_kernel


product.defvjp(_forward, _backward)


def kernel_gradient_matmul(x: Array, gradient: Array) -> Array:
    """The gradient [C, channels] of a kernel, from x [..., C] and the output's [..., channels]."""
    return x.reshape(-1, x.shape[-1]).T @ gradient.reshape(-1, gradient.shape[-1])
