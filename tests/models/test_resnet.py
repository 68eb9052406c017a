import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.models import resnet
from mixtrain_jax.models.resnet import ResNet, frozen


def randomise(params, seed=0):
    """Parameters far from their initial values; scales and variances stay positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return np.float32(rng.uniform(0.5, 1.5, leaf.shape))
        return np.float32(rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, params)


def random_params(module, *inputs):
    return randomise(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])


def slow_conv(x, kernel, step):
    side = kernel.shape[0]
    x = np.pad(x, ((side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    rows, columns = ((n - side) // step + 1 for n in x.shape[:2])
    out = np.zeros((rows, columns, kernel.shape[-1]))
    for r, c in np.ndindex(rows, columns):
        patch = x[r * step : r * step + side, c * step : c * step + side]
        out[r, c] = np.einsum("ijc,ijco->o", patch, kernel)
    return out


def slow_norm(x, p):
    if "mean" in p:
        return (x - p["mean"]) / np.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]
    channels = x.shape[-1]
    groups = np.split(x, max(1, channels // 16), -1)
    groups = [(g - g.mean()) / np.sqrt(g.var() + 1e-5) for g in groups]
    return np.concatenate(groups, -1) * p["scale"] + p["bias"]


def slow_block(x, p, steps):
    p = jax.tree.map(np.float64, p)
    y = x
    for i, step in enumerate(steps, 1):
        y = slow_norm(slow_conv(y, p[f"conv{i}"]["kernel"], step), p[f"norm{i}"])
        y = np.maximum(y, 0) if i < len(steps) else y
    if "shortcut_conv" in p:
        x = slow_conv(x, p["shortcut_conv"]["kernel"], max(steps))
        x = slow_norm(x, p["shortcut_norm"])
    return np.maximum(x + y, 0)


@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
@pytest.mark.parametrize(
    ("kind", "style", "steps"),
    [
        ("Bottleneck", "caffe", (2, 1, 1)),
        ("Bottleneck", "pytorch", (1, 2, 1)),
        ("BasicBlock", "pytorch", (2, 1)),
        ("BasicBlock", "pytorch", (1, 1)),
    ],
)
def test_block_equals_slow_reference(kind, style, steps, norm):
    x = np.random.default_rng(0).normal(size=(1, 8, 16, 32)).astype(np.float32)
    block = getattr(resnet, kind)(
        channels=32, step=max(steps), style=style, norm=norm, dtype=jnp.float32
    )
    inputs = x, np.array([[64, 128]]), 8 * max(steps)
    params = random_params(block, *inputs)
    actual = block.apply({"params": params}, *inputs)
    np.testing.assert_allclose(actual[0], slow_block(x[0], params, steps), atol=1e-4)


def test_stem_equals_slow_reference():
    x = np.random.default_rng(1).normal(size=(1, 32, 64, 3)).astype(np.float32)
    stem = resnet.Stem(4, "frozen_batch", jnp.float32)
    size = np.array([[32, 64]])
    params = random_params(stem, x, size)
    y = slow_conv(x[0], np.float64(params["conv"]["kernel"]), 2)
    y = np.pad(np.maximum(slow_norm(y, params["norm"]), 0), ((1, 1), (1, 1), (0, 0)))
    actual = stem.apply({"params": params}, x, size)[0]
    assert actual.shape == (8, 16, 4)
    for r, c in np.ndindex(8, 16):
        expected = y[2 * r : 2 * r + 3, 2 * c : 2 * c + 3].max((0, 1))
        np.testing.assert_allclose(actual[r, c], expected, atol=1e-5)


SIZES = np.array([[60, 40], [33, 97]], np.int32)
OWN_PADS = [(64, 64), (64, 128)]
BUCKET = (96, 160)


@pytest.mark.parametrize(("depth", "norm"), [(18, "group"), (50, "group"), (50, "frozen_batch")])
def test_padding_is_inert(depth, norm):
    model = ResNet(depth, base_channels=8, style="pytorch", norm=norm, frozen_stages=0)
    rng = np.random.default_rng(2)
    image = np.zeros((2, *BUCKET, 3), np.float32)
    for i, (height, width) in enumerate(SIZES):
        image[i, :height, :width] = rng.normal(size=(height, width, 3))
    params = random_params(model, image, SIZES)
    shapes = jax.eval_shape(model.apply, {"params": params}, image, SIZES)
    tangents = [rng.normal(size=s.shape).astype(np.float32) for s in shapes]
    for i, (height, width) in enumerate(OWN_PADS):
        for level, tangent in enumerate(tangents):
            tangent[i, height // 4 >> level :] = 0
            tangent[i, :, width // 4 >> level :] = 0

    def loss(params, image, size, tangents):
        features = model.apply({"params": params}, image, size)
        return sum((f * t).sum() for f, t in zip(features, tangents)), features

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    together, features = gradient(params, image, SIZES, tangents)
    alone = []
    for i, (height, width) in enumerate(OWN_PADS):
        own = [t[i : i + 1, : height // 4 >> n, : width // 4 >> n] for n, t in enumerate(tangents)]
        own_gradient, own_features = gradient(
            params, image[i : i + 1, :height, :width], SIZES[i : i + 1], own
        )
        alone.append(own_gradient)
        for feature, expected in zip(features, own_features):
            _, h, w, _ = expected.shape
            scale = np.abs(expected).max()
            np.testing.assert_allclose(feature[i, :h, :w], expected[0], atol=1e-5 * scale)
    for a, *parts in zip(*map(jax.tree.leaves, (together, *alone)), strict=True):
        np.testing.assert_allclose(a, sum(parts), atol=1e-3 * np.abs(a).max())


def paths(tree):
    return {
        tuple(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("norm", "stages"),
    [("frozen_batch", -1), ("frozen_batch", 0), ("frozen_batch", 2), ("group", 1)],
)
def test_frozen_parameters_are_those_without_gradients(norm, stages):
    model = ResNet(18, base_channels=4, norm=norm, frozen_stages=stages)
    image = np.random.default_rng(3).normal(size=(1, 64, 64, 3)).astype(np.float32)
    size = np.array([[64, 64]])
    params = random_params(model, image, size)

    def loss(params):
        return sum((f**2).sum() for f in model.apply({"params": params}, image, size))

    gradients = paths(jax.jit(jax.grad(loss))(params))
    still = {path for path, gradient in gradients.items() if not gradient.any()}
    assert still == {path for path in gradients if frozen(path, norm, stages)}


def test_group_norm_of_an_empty_picture_is_finite():
    model = ResNet(18, base_channels=4, norm="group")
    image, size = np.zeros((1, 32, 32, 3), np.float32), np.array([[0, 0]])
    params = random_params(model, image, size)

    def loss(params):
        return sum((f**2).sum() for f in model.apply({"params": params}, image, size))

    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(loss)(params)))


@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
def test_bfloat16_and_remat(norm):
    image = np.random.default_rng(4).normal(size=(1, 64, 64, 3)).astype(np.float32)
    size = np.array([[64, 50]])

    def features_and_gradient(**options):
        model = ResNet(50, base_channels=4, norm=norm, frozen_stages=-1, **options)

        def loss(params):
            features = model.apply({"params": params}, image, size)
            return sum((f.astype(jnp.float32) ** 2).mean() for f in features), features

        params = model.init(jax.random.key(0), image, size)["params"]
        gradient, features = jax.jit(jax.grad(loss, has_aux=True))(params)
        return features, gradient

    features, gradient = features_and_gradient()
    for a, b in zip(
        jax.tree.leaves(features_and_gradient(remat=True)[1]), jax.tree.leaves(gradient)
    ):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    fast, fast_gradient = features_and_gradient(dtype=jnp.bfloat16)
    for a, b in zip(fast, features, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 * np.abs(b).max())
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(fast_gradient))


def test_depths_have_the_channels_of_the_paper():
    for depth, last in [(18, 512), (34, 512), (50, 2048), (101, 2048)]:
        model = ResNet(depth)
        image, size = jnp.zeros((1, 64, 64, 3)), np.array([[64, 64]])
        shapes = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image, size))
        features, variables = shapes
        assert features[-1].shape == (1, 2, 2, last)
        weights = sum(
            leaf.size
            for path, leaf in paths(variables["params"]).items()
            if path[-1] not in ("mean", "var")
        )
        published = {18: 11.69, 34: 21.80, 50: 25.56, 101: 44.55}[depth]  # million, with classifier
        assert weights + last * 1000 + 1000 == pytest.approx(published * 1e6, abs=5e3)
