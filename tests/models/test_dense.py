import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.models.layers import Dense


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_same_as_flax(bias, dtype):
    """Parameters, outputs and gradients, whatever the leading axes."""
    ours, theirs = (layer(7, use_bias=bias, dtype=dtype) for layer in (Dense, nn.Dense))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 9, 5)).astype(np.float32)
    params = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(1), x))

    found, back = jax.vjp(ours.apply, params, x)
    expected, expected_back = jax.vjp(theirs.apply, params, x)
    assert found.dtype == expected.dtype == dtype
    close = 1e-5 if dtype == jnp.float32 else 1e-2  # half of bfloat16's last bit is 0.4%
    np.testing.assert_allclose(
        found.astype(np.float32), expected.astype(np.float32), rtol=close, atol=close
    )
    gradient = jnp.asarray(rng.normal(size=found.shape), dtype)
    for one, other in zip(
        jax.tree.leaves(back(gradient)), jax.tree.leaves(expected_back(gradient)), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=close, atol=close * np.abs(other).max())
