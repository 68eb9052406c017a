import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.models.fpn import FPN
from mixtrain_jax.models.swin import Swin
from mixtrain_jax.ops import padding
from tests.golden import micro_cascade


def test_own_pad_and_extent():
    size = np.array([[1, 32], [33, 200], [0, 800]])
    np.testing.assert_array_equal(padding.padded_size(size), [[32, 32], [64, 224], [0, 800]])
    np.testing.assert_array_equal(padding.extent(size, 64), [[1, 1], [1, 4], [0, 13]])
    inside = padding.inside(3, 4, np.array([[2, 1], [0, 9]]))
    np.testing.assert_array_equal(inside.sum(2), [[1, 1, 0], [0, 0, 0]])


@pytest.mark.golden
def test_pyramid_equals_released_detector():
    image, size = micro_cascade.network_input()
    backbone, fpn = Swin(**micro_cascade.SWIN), FPN(micro_cascade.FPN_CHANNELS)

    def features(params):
        return fpn.apply(
            {"params": params["fpn"]},
            backbone.apply({"params": params["backbone"]}, image, size),
            size,
        )

    def shapes():
        maps, backbone_params = backbone.init_with_output(jax.random.key(0), image, size)
        fpn_params = fpn.init(jax.random.key(0), maps, size)
        return {"backbone": backbone_params["params"], "fpn": fpn_params["params"], "roi_head": {}}

    levels = jax.jit(features)(micro_cascade.params(jax.eval_shape(shapes)))
    for i, level in enumerate(levels):
        expected = micro_cascade.arrays()[f"fpn{i}"]
        assert np.abs(level[0] - expected).max() / np.abs(expected).max() < 1e-5, i


def maps(height, width, rng):
    return [
        rng.normal(size=(2, -(-height // s), -(-width // s), 3)).astype(np.float32)
        for s in (4, 8, 16, 32)
    ]


def slow_fpn(features, params):
    laterals = [
        f @ params[f"lateral{i}"]["kernel"][0, 0] + params[f"lateral{i}"]["bias"]
        for i, f in enumerate(features)
    ]
    for i in (2, 1, 0):
        for r, c in np.ndindex(laterals[i].shape[:2]):
            fine, coarse = laterals[i].shape, laterals[i + 1].shape
            laterals[i][r, c] += laterals[i + 1][r * coarse[0] // fine[0], c * coarse[1] // fine[1]]
    levels = []
    for i, x in enumerate(laterals):
        kernel, bias = params[f"output{i}"]["kernel"], params[f"output{i}"]["bias"]
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        out = np.zeros_like(x) + bias
        for r, c in np.ndindex(x.shape[:2]):
            out[r, c] += np.einsum("ijc,ijco->o", padded[r : r + 3, c : c + 3], kernel)
        levels.append(out)
    return levels + [levels[-1][::2, ::2]]


@pytest.mark.parametrize("shape", [(64, 96), (40, 72)])
def test_equals_slow_reference(shape):
    rng = np.random.default_rng(0)
    features = maps(*shape, rng)
    size = np.array([shape, shape], np.int32)
    fpn = FPN(channels=3)
    params = fpn.init(jax.random.key(0), features, size)["params"]
    params = jax.tree.map(lambda p: np.float32(p + rng.normal(0, 0.1, p.shape)), params)
    levels = fpn.apply({"params": params}, features, size)
    for level, expected in zip(levels, slow_fpn([f[0] for f in features], params), strict=True):
        np.testing.assert_allclose(level[0], expected, atol=1e-5)


def test_padding_is_inert():
    rng = np.random.default_rng(1)
    features = maps(128, 192, rng)
    size = np.array([[40, 70], [128, 192]], np.int32)
    fpn = FPN(channels=3)
    params = fpn.init(jax.random.key(0), features, size)["params"]
    params = jax.tree.map(lambda p: np.float32(p + rng.normal(0, 0.1, p.shape)), params)

    def loss(params, features, size):
        levels = fpn.apply({"params": params}, features, size)
        return sum((level**2).sum() for level in levels), levels

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (together, feature_gradients), levels = gradient(params, features, size)
    (first, _), first_levels = gradient(
        params, [f[:1, : 64 // s, : 96 // s] for f, s in zip(features, (4, 8, 16, 32))], size[:1]
    )
    (second, _), _ = gradient(params, [f[1:] for f in features], size[1:])
    for level, expected in zip(levels, first_levels, strict=True):
        _, h, w, _ = expected.shape
        np.testing.assert_allclose(level[0, :h, :w], expected[0], atol=1e-5)
        assert not level[0, h:].any()
        assert not level[0, :, w:].any()
    for a, b, c in zip(*map(jax.tree.leaves, (together, first, second)), strict=True):
        np.testing.assert_allclose(a, b + c, atol=1e-4 * np.abs(a).max())
    for g, s in zip(feature_gradients, (4, 8, 16, 32), strict=True):
        assert not g[0, 64 // s :].any()
        assert not g[0, :, 96 // s :].any()


def test_bfloat16():
    features = [jnp.bfloat16(f) for f in maps(64, 64, np.random.default_rng(2))]
    size = np.array([[64, 64], [20, 64]])
    levels, params = FPN(4, jnp.bfloat16).init_with_output(jax.random.key(0), features, size)
    exact = FPN(4).apply(params, [f.astype(jnp.float32) for f in features], size)
    for level, expected in zip(levels, exact, strict=True):
        assert level.dtype == jnp.bfloat16
        np.testing.assert_allclose(level.astype(jnp.float32), expected, atol=0.1)
