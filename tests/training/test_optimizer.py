"""Learning rates, weight decay, frozen parameters and the EMA, against numbers done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixtrain_jax.config import load as configs
from mixtrain_jax.errors import UserError
from mixtrain_jax.models import detector
from mixtrain_jax.training import ema
from mixtrain_jax.training.optimizer import make_optimizer, make_schedule


def load(name, overrides=None):
    drops = {"optimizer.drop_steps": "666"} | (overrides or {})
    return configs.load(str(configs.ROOT / "configs" / name), drops)


def test_learning_rate_of_the_released_schedule():
    steps = 48 * 7330
    config = load("faster.py", {"optimizer.drop_steps": f"{32 * 7330},{44 * 7330}"})
    rate = make_schedule(config.optimizer, steps)
    expected = {
        0: 1e-4 * 0.001,
        250: 1e-4 * (0.001 + 0.999 * 0.5),
        500: 1e-4,
        32 * 7330 - 1: 1e-4,
        32 * 7330: 1e-5,
        44 * 7330 - 1: 1e-5,
        44 * 7330: 1e-6,
    }
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5, err_msg=str(step))


def test_cosine_ends_at_zero():
    config = load("quickstart.py").optimizer
    rate = make_schedule(config, 1000)
    np.testing.assert_allclose(rate(500), config.learning_rate / 2, rtol=1e-5)
    np.testing.assert_allclose(rate(1000), 0, atol=1e-9)


@pytest.mark.parametrize("field", ["schedule", "name"])
def test_unknown_names_are_refused(field):
    with pytest.raises(UserError, match=f"config.optimizer.{field} is 'nonsense'"):
        load("quickstart.py", {f"optimizer.{field}": "nonsense"})


def test_momentum_ramps_up():
    config = load("cascade.py").mixtraining
    for step, value in {0: 0.0, 1: 0.00999, 50: 0.4995, 100: 0.999, 5000: 0.999}.items():
        np.testing.assert_allclose(ema.momentum(config, jnp.array(step)), value, rtol=1e-5)


def test_ema_step_by_step():
    config = load("cascade.py", {"mixtraining.ema_warmup_steps": "4"}).mixtraining
    rng = np.random.default_rng(0)
    teacher = {"w": rng.normal(size=5).astype(np.float32)}
    expected = teacher["w"].astype(np.float64)
    for step in range(8):
        student = {"w": rng.normal(size=5).astype(np.float32)}
        teacher = ema.update(teacher, student, ema.momentum(config, jnp.array(step)))
        m = 0.999 * min(step / 4, 1)
        expected = m * expected + (1 - m) * student["w"]
        np.testing.assert_allclose(teacher["w"], expected, rtol=1e-5)
        if step == 0:
            np.testing.assert_array_equal(teacher["w"], student["w"])


@pytest.fixture(scope="module")
def swin_params():
    config = load("cascade.py").model
    config.num_classes = 3
    config.backbone.update(embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 1, 1, 1))
    shapes = jax.eval_shape(lambda: detector.init(detector.build(config, "float32"), 0))
    return jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)


def moved_without_gradient(config, params):
    """Which parameters an update with zero gradients moves, by path."""
    optimizer = make_optimizer(config.optimizer, config.model.backbone, 1000)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): bool((leaf != 0).any())
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }


def test_adamw_exempts_norms_and_position_biases_only(swin_params):
    moved = moved_without_gradient(load("cascade.py"), swin_params)
    for name, decays in moved.items():
        exempt = "norm" in name or "relative_position_bias" in name
        assert decays != exempt, name
    assert moved["rpn/conv/bias"] and moved["backbone/stage0/block0/attention/qkv/bias"]
    assert not moved["backbone/stage1/merge/norm/scale"] and not moved["backbone/norm3/bias"]


def test_adamw_is_that_of_loshchilov_and_hutter(swin_params):
    """Algorithm 2 of "Decoupled weight decay regularization", in float64, for a few steps."""
    config = load("cascade.py", {"optimizer.warmup_steps": "4"})
    optimizer = make_optimizer(config.optimizer, config.model.backbone, 1000)
    rate = make_schedule(config.optimizer, 1000)
    chosen = {"rpn": {"conv": {"kernel": jnp.array([1.0, -2.0])}, "norm": {"scale": jnp.ones(2)}}}
    state, params = optimizer.init(chosen), chosen
    rng = np.random.default_rng(0)
    for name, decay in (("conv", config.optimizer.weight_decay), ("norm", 0)):
        leaf = "kernel" if name == "conv" else "scale"
        state, params = optimizer.init(chosen), chosen
        expected = np.asarray(chosen["rpn"][name][leaf], np.float64)
        first = second = np.zeros(2)
        for step in range(5):
            grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
            g = np.asarray(grads["rpn"][name][leaf], np.float64)
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            unbiased = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            direction = unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8) + decay * expected
            expected = expected - float(rate(step)) * direction
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        moved = np.asarray(params["rpn"][name][leaf]) - np.asarray(chosen["rpn"][name][leaf])
        np.testing.assert_allclose(moved, expected - chosen["rpn"][name][leaf], rtol=2e-3)


def test_sgd_leaves_frozen_parameters_alone():
    config = load("faster_r50.py")
    config.model.num_classes = 3
    config.model.backbone.base_channels = 8
    shapes = jax.eval_shape(lambda: detector.init(detector.build(config.model, "float32"), 0))
    params = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
    for name, moves in moved_without_gradient(config, params).items():
        frozen = name.startswith("backbone/") and (
            "norm" in name or "/stem/" in name or "/stage0/" in name
        )
        assert moves != frozen, name


def test_sgd_is_torch_sgd():
    config = load("faster_r50.py", {"optimizer.warmup_steps": "0"})
    optimizer = make_optimizer(config.optimizer, config.model.backbone, 1000)
    params = {"rpn": {"conv": {"kernel": jnp.array([2.0, -1.0])}}}
    state = optimizer.init(params)
    weight, buffer = np.array([2.0, -1.0]), np.zeros(2)
    rng = np.random.default_rng(0)
    for _ in range(3):
        grad = rng.normal(size=2)
        buffer = 0.9 * buffer + grad + 1e-4 * weight
        weight = weight - 0.01 * buffer
        grads = {"rpn": {"conv": {"kernel": jnp.array(grad, jnp.float32)}}}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["rpn"]["conv"]["kernel"], weight, rtol=1e-5)
