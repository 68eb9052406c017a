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
        channels=32, stride=max(steps), style=style, norm=norm, dtype=jnp.float32
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


@pytest.fixture
def shallow(monkeypatch):
    """One block a stage, and two stages: enough to be wrong, and quick to compile."""
    monkeypatch.setattr(resnet, "DEPTHS", {18: (1, 1), 50: (1, 1)})


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("depth", "norm"), [(18, "group"), (50, "frozen_batch")])
def test_padding_is_inert(depth, norm):
    model = ResNet(depth, base_channels=8, style="pytorch", norm=norm, frozen_stages=-1)
    size, (height, width) = np.array([[33, 40], [96, 97]], np.int32), (64, 64)
    rng = np.random.default_rng(2)
    image = np.zeros((2, 96, 128, 3), np.float32)
    for i, (h, w) in enumerate(size):
        image[i, :h, :w] = rng.normal(size=(h, w, 3))
    alone = image[:1, :height, :width]
    params = random_params(model, image, size)
    shapes = jax.eval_shape(model.apply, {"params": params}, alone, size[:1])
    tangents = [rng.normal(size=s.shape).astype(np.float32) for s in shapes]

    def loss(params, image, size):
        features = model.apply({"params": params}, image, size)
        features = [f[:1, : 16 >> i, : 16 >> i] for i, f in enumerate(features)]
        return sum((f * t).sum() for f, t in zip(features, tangents)), features

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    together, features = gradient(params, image, size)
    expected, expected_features = gradient(params, alone, size[:1])
    for a, b in zip(features, expected_features, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    for a, b in zip(*map(jax.tree.leaves, (together[0], expected[0])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    own = together[1][0, :height, :width]
    np.testing.assert_allclose(own, expected[1][0], atol=1e-4 * np.abs(own).max())


def paths(tree):
    return {
        tuple(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("norm", "stages"),
    [("frozen_batch", -1), ("frozen_batch", 0), ("frozen_batch", 1), ("group", 1)],
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


@pytest.mark.usefixtures("shallow")
def test_group_norm_of_an_empty_picture_is_finite():
    model = ResNet(18, base_channels=4, norm="group")
    image, size = np.zeros((1, 32, 32, 3), np.float32), np.array([[0, 0]])
    params = random_params(model, image, size)

    def loss(params):
        return sum((f**2).sum() for f in model.apply({"params": params}, image, size))

    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


@pytest.mark.usefixtures("shallow")
def test_remat_changes_nothing():
    image = np.random.default_rng(4).normal(size=(1, 32, 32, 3)).astype(np.float32)
    size = np.array([[32, 20]])
    plain, remat = (ResNet(50, 4, norm="group", remat=remat) for remat in (False, True))
    params = random_params(plain, image, size)

    def gradient(model):
        def loss(params):
            return sum((f**2).mean() for f in model.apply({"params": params}, image, size))

        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(*map(jax.tree.leaves, (gradient(remat), gradient(plain))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
def test_bfloat16_is_close_to_float32(norm):
    image = np.random.default_rng(4).normal(size=(1, 64, 64, 3)).astype(np.float32)
    size = np.array([[64, 50]])
    exact, fast = (ResNet(50, 4, norm=norm, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = random_params(exact, image, size)
    features = jax.jit(fast.apply)({"params": params}, image, size)
    expected = jax.jit(exact.apply)({"params": params}, image, size)
    for a, b in zip(features, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 * np.abs(b).max())


def test_depths_have_the_channels_of_the_paper():
    inputs = jax.random.key(0), jnp.zeros((1, 64, 64, 3)), np.array([[64, 64]])
    for depth, last in [(18, 512), (34, 512), (50, 2048), (101, 2048)]:
        features, variables = jax.eval_shape(ResNet(depth).init_with_output, *inputs)
        assert features[-1].shape == (1, 2, 2, last)
        weights = sum(
            leaf.size
            for path, leaf in paths(variables["params"]).items()
            if path[-1] not in ("mean", "var")
        )
        published = {18: 11.69, 34: 21.80, 50: 25.56, 101: 44.55}[depth]  # million, with classifier
        assert weights + last * 1000 + 1000 == pytest.approx(published * 1e6, abs=5e3)
