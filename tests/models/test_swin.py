import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from mixtrain_jax.models import swin
from mixtrain_jax.models.swin import Swin
from tests.golden import micro_cascade


def random_params(module, *inputs, seed=0):
    """Parameters far from their initial values, so that every bias and table matters."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        value = rng.normal(0, 0.3, leaf.shape)
        return np.float32(value + 1 if path[-1].key == "scale" else value)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def slow_block(x, p, heads, window, shift):
    """One Swin block on a single map [H, W, C], query by query, in float64."""
    p = jax.tree.map(np.float64, p)
    height, width, channels = x.shape
    d = channels // heads
    rows, columns = (-(-side // window) * window for side in (height, width))
    y = np.zeros((rows, columns, channels))
    y[:height, :width] = layer_norm(x, p["norm1"])
    qkv = dense(y, p["attention"]["qkv"]).reshape(rows, columns, 3, heads, d)
    table = p["attention"]["relative_position_bias"]
    out = np.zeros((height, width, heads, d))
    for r in range(height):
        for c in range(width):
            shifted = (r - shift) % rows, (c - shift) % columns
            top, left = (s // window * window for s in shifted)
            logits, values = [], []
            for i in range(window):
                for j in range(window):
                    kr, kc = (top + i + shift) % rows, (left + j + shift) % columns
                    apart = (shifted[0] - top - i + window - 1) * (2 * window - 1)
                    apart += shifted[1] - left - j + window - 1
                    near = (r < shift) == (kr < shift) and (c < shift) == (kc < shift)
                    dot = (qkv[r, c, 0] * qkv[kr, kc, 1]).sum(-1) / np.sqrt(d)
                    logits.append(dot + table[apart] + (0 if near else -100))
                    values.append(qkv[kr, kc, 2])
            weights = np.exp(logits - np.max(logits, 0))
            weights /= weights.sum(0)
            out[r, c] = (weights[..., None] * np.array(values)).sum(0)
    x = x + dense(out.reshape(x.shape), p["attention"]["proj"])
    hidden = dense(layer_norm(x, p["norm2"]), p["mlp"]["fc1"])
    return x + dense(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, p["mlp"]["fc2"])


def block(shift, drop_path=0.0):
    return swin.Block(
        num_heads=2, window_size=4, shift=shift, mlp_ratio=2, drop_path=drop_path, number=3,
        dtype=jnp.float32,
    )  # fmt: skip


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("shape", [(6, 9), (8, 4), (3, 2)])
def test_block_equals_slow_reference_in_any_bucket(shape, shift):
    height, width = shape
    x = np.random.default_rng(1).normal(size=(1, 13, 15, 8)).astype(np.float32)
    extent = np.array([shape], np.int32)
    params = random_params(block(shift), x, extent, None)
    expected = slow_block(x[0, :height, :width], params, 2, 4, shift)
    apply = jax.jit(block(shift).apply)
    alone = apply({"params": params}, x[:, :height, :width], extent, None)
    np.testing.assert_allclose(alone[0], expected, atol=2e-5)
    padded = apply({"params": params}, x, extent, None)
    np.testing.assert_allclose(padded[0, :height, :width], expected, atol=2e-5)


def test_merging_order_and_odd_sides():
    x = np.random.default_rng(2).normal(size=(1, 3, 5, 4)).astype(np.float32)
    merging = swin.PatchMerging(jnp.float32)
    params = random_params(merging, x)
    actual = merging.apply({"params": params}, x)
    padded = np.pad(x[0], ((0, 1), (0, 1), (0, 0)))
    for i in range(2):
        for j in range(3):
            parts = [padded[2 * i + r, 2 * j + c] for r, c in [(0, 0), (1, 0), (0, 1), (1, 1)]]
            joined = layer_norm(np.concatenate(parts), params["norm"])
            expected = joined @ params["reduction"]["kernel"]
            np.testing.assert_allclose(actual[0, i, j], expected, atol=1e-5)
    assert actual.shape == (1, 2, 3, 8)


@pytest.mark.golden
def test_features_equal_released_backbone():
    image, size = micro_cascade.network_input()
    model = Swin(**micro_cascade.SWIN)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, size)["params"]
    params = micro_cascade.params({"backbone": shapes, "roi_head": {}})["backbone"]
    features = jax.jit(model.apply)({"params": params}, image, size)
    for i, feature in enumerate(features):
        expected = micro_cascade.arrays()[f"backbone{i}"]
        error = np.abs(feature[0, :, :, ::4] - expected).max() / np.abs(expected).max()
        assert error < 1e-5, i


def test_padding_is_inert():
    model = Swin(8, (2, 1), (1, 2))
    size, (height, width) = np.array([[60, 40], [96, 97]], np.int32), (64, 64)
    rng = np.random.default_rng(3)
    # Nothing beyond the own pad may matter, so fill it with numbers that would be noticed.
    image = rng.normal(0, 100, (2, 96, 128, 3)).astype(np.float32)
    image[0, :height, :width] = rng.normal(0, 1, (height, width, 3))
    alone = image[:1, :height, :width]
    params = random_params(model, image, size)
    tangents = [rng.normal(size=(1, 16 >> i, 16 >> i, 8 << i)).astype(np.float32) for i in (0, 1)]

    def loss(params, image, size):
        features = model.apply({"params": params}, image, size)
        features = [f[:1, : 16 >> i, : 16 >> i] for i, f in enumerate(features)]
        return sum((f * t).sum() for f, t in zip(features, tangents)), features

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    together, features = gradient(params, image, size)
    expected, expected_features = gradient(params, alone, size[:1])
    for a, b in zip(features, expected_features, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (together[0], expected[0])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    own = together[1][:1, :height, :width]
    np.testing.assert_allclose(own, expected[1], atol=1e-4 * np.abs(own).max())
    assert np.count_nonzero(together[1]) == np.count_nonzero(own)


def test_sides_need_not_be_multiples_of_32():
    model = Swin(8, (1, 1, 1), (1, 2, 2))
    inputs = jnp.ones((1, 70, 45, 3)), np.array([[70, 45]])
    features, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs)
    assert [f.shape for f in features] == [(1, 18, 12, 8), (1, 9, 6, 16), (1, 5, 3, 32)]


def test_remat_changes_nothing():
    image = np.random.default_rng(4).normal(size=(1, 32, 64, 3)).astype(np.float32)
    size = np.array([[32, 64]])
    keys = jax.random.split(jax.random.key(5), 1)
    plain, remat = (Swin(8, (2,), (2,), remat=remat) for remat in (False, True))
    params = random_params(plain, image, size)

    def gradient(model):
        def loss(params):
            return sum((f**2).sum() for f in model.apply({"params": params}, image, size, keys))

        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(jax.tree.leaves(gradient(plain)), jax.tree.leaves(gradient(remat))):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_bfloat16_is_close_to_float32():
    image = np.random.default_rng(6).normal(size=(1, 64, 64, 3)).astype(np.float32)
    size = np.array([[64, 50]])
    exact, fast = (Swin(16, (2,), (2,), dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = jax.jit(exact.init)(jax.random.key(7), image, size)["params"]

    def loss(params):
        features = fast.apply({"params": params}, image, size)
        return sum((f.astype(jnp.float32) ** 2).sum() for f in features), features

    gradient, features = jax.jit(jax.grad(loss, has_aux=True))(params)
    for a, b in zip(features, jax.jit(exact.apply)({"params": params}, image, size), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.06)
    assert all(g.dtype == jnp.float32 and jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_stochastic_depth_drops_whole_branches_of_pictures():
    count, rate = 400, 0.25
    x = np.random.default_rng(8).normal(size=(1, 4, 4, 8)).astype(np.float32)
    extent = np.array([[4, 4]])
    params = random_params(block(0), x, extent, None)

    @jax.jit
    def apply(params, keys):
        tiled = x.repeat(len(keys), 0), extent.repeat(len(keys), 0)
        return block(0, rate).apply({"params": params}, *tiled, keys)

    # With the other branch switched off by its last layer, a picture is left alone or scaled up.
    for branch, last in [("mlp", "fc2"), ("attention", "proj")]:
        without = jax.tree.map(lambda p: p, params)
        without[branch][last] = jax.tree.map(jnp.zeros_like, params[branch][last])
        alone = jax.jit(block(0).apply)({"params": without}, x, extent, None) - x
        keys = jax.random.split(jax.random.key(9), count)
        drawn = apply(without, keys)
        kept = np.abs(drawn - x).max((1, 2, 3)) > 0
        np.testing.assert_allclose(
            drawn[kept] - x, (alone / (1 - rate)).repeat(kept.sum(), 0), atol=1e-4
        )
        assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / count)

    keys = jax.random.split(jax.random.key(10), 8)
    drawn = apply(params, keys)
    assert len(np.unique(np.round(np.asarray(drawn).sum((1, 2, 3)), 3))) > 2  # branches draw apart
    np.testing.assert_array_equal(apply(params, keys), drawn)
    np.testing.assert_array_equal(apply(params, keys[::-1]), drawn[::-1])


def test_stochastic_depth_grows_linearly_from_zero():
    model = Swin(8, (1, 2), (1, 2), drop_path=0.3)
    image, size = np.ones((1, 32, 32, 3), np.float32), np.array([[32, 32]])
    rates = []

    def record(next_fun, args, kwargs, context):
        if isinstance(context.module, swin.Block) and context.method_name == "__call__":
            rates.append(context.module.drop_path)
        return next_fun(*args, **kwargs)

    with swin.nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), image, size)
    np.testing.assert_allclose(rates, [0, 0.15, 0.3])
