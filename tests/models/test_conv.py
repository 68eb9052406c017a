import flax.linen as nn
import jax
import numpy as np
import pytest

from mixtrain_jax.models.layers import Conv
from mixtrain_jax.ops.cpu import conv


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("side", "step", "channels"), [(1, 1, 5), (1, 2, 5), (3, 1, 5), (3, 2, 5), (3, 1, 128)]
)
def test_same_as_flax(side, step, channels, bias):
    """Parameters, outputs and gradients, odd maps and wide kernels included."""
    ours = Conv(7, side, step, bias)
    theirs = nn.Conv(7, (side, side), (step, step), padding=side // 2, use_bias=bias)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 6, channels)).astype(np.float32)
    params = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(1), x))

    found, back = jax.vjp(ours.apply, params, x)
    expected, expected_back = jax.vjp(theirs.apply, params, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    gradient = rng.normal(size=found.shape).astype(np.float32)
    for one, other in zip(
        jax.tree.leaves(back(gradient)), jax.tree.leaves(expected_back(gradient)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_kernel_gradient_by_products_is_xla_s():
    """The wide convolution takes one or the other by platform; both are the same."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 8, 6)).astype(np.float32)
    gradient = rng.normal(size=(2, 5, 8, 4)).astype(np.float32)
    kernel = np.zeros((3, 3, 6, 4), np.float32)
    (expected,) = jax.vjp(lambda kernel: conv._plain(x, kernel), kernel)[1](gradient)
    np.testing.assert_allclose(conv.kernel_gradient_matmuls(x, gradient, 3), expected, atol=1e-4)


def test_a_strided_product_takes_a_copy():
    """XLA may not join the slice to the product: its compiler for GPUs can fail on that."""

    def program(stride):
        x, kernel = np.ones((1, 8, 8, 4), np.float32), np.ones((1, 1, 4, 2), np.float32)
        return [
            str(equation.primitive)
            for equation in jax.make_jaxpr(lambda x, k: conv.convolve(x, k, stride))(
                x, kernel
            ).jaxpr.eqns
        ]

    assert "optimization_barrier" in program(2)
    assert "optimization_barrier" not in program(1)
