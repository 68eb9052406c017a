"""The train state: how it begins, how the optimizer moves the student, how the teacher follows.

The optimizer is plain optax. What does not train (frozen BatchNorm, the stem of a pretrained
ResNet) and what is exempt from weight decay is decided here, by parameter name.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mixtrain_jax.models import detector, resnet
from mixtrain_jax.types import Array, Params, TrainState


def schedule(config, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Linear warm-up from `warmup_factor` of the rate, then either a drop to a tenth after each share
    of training in `drops`, or a half cosine to zero.

    Args:
      config: `config.optimizer`.
      steps: length of the whole training.
    """
    borders = jnp.array([round(share * steps) for share in config.drops])

    def rate(step):
        if config.schedule == "cosine":
            value = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1)))
        else:
            value = 0.1 ** jnp.sum(step >= borders)
        warm = jnp.minimum(step / max(config.warmup_steps, 1), 1) if config.warmup_steps else 1
        factor = config.warmup_factor + (1 - config.warmup_factor) * warm
        return config.learning_rate * value * factor

    return rate


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """Returns AdamW or SGD with momentum, with frozen parameters left alone.

    AdamW decays the weights of all layers but norms and relative position biases, as the released
    Swin configs do; SGD adds its decay to every gradient, as the released ResNet configs do.

    Args:
      config: the whole config.
      steps: length of the whole training.
    """
    options = config.optimizer
    rate = schedule(options, steps)
    if options.name == "adamw":
        first, second = options.betas
        moving = optax.adamw(rate, first, second, weight_decay=options.weight_decay, mask=_decays)
    else:
        moving = optax.chain(
            optax.add_decayed_weights(options.weight_decay),
            optax.sgd(rate, momentum=options.momentum),
        )
    kinds = {"trained": moving, "frozen": optax.set_to_zero()}
    return optax.partition(kinds, partial(_kinds, config.model.backbone))


def create(
    model: detector.Detector, optimizer: optax.GradientTransformation, params: Params
) -> TrainState:
    """Returns the state before the first step: the teacher is a copy of the student."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=params,
        teacher=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
    )


def momentum(config, step: Array) -> Array:
    """The EMA's momentum before iteration `step`: a linear ramp from 0, then constant.

    Args:
      config: `config.mixtraining`.
      step: [] int32, 0-based iteration.
    """
    ramp = jnp.minimum(step / max(config.ema_warmup_steps, 1), 1) if config.ema_warmup_steps else 1
    return config.ema_momentum * ramp


def follow(teacher: Params, student: Params, momentum: Array) -> Params:
    """Returns momentum * teacher + (1 - momentum) * student (MixTraining, section 3.1)."""
    return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, student)


def distance(teacher: Params, student: Params) -> Array:
    """Returns |teacher - student| / |student| over all parameters."""
    difference = jax.tree.map(jnp.subtract, teacher, student)
    return optax.tree.norm(difference) / optax.tree.norm(student)


def _kinds(backbone, params: Params) -> Any:
    """Names each parameter trained or frozen; only a pretrained ResNet has frozen ones."""

    def kind(path, _):
        part, *rest = _names(path)
        still = (
            part == "backbone"
            and backbone.name == "resnet"
            and resnet.frozen(rest, backbone.norm, backbone.frozen_stages)
        )
        return "frozen" if still else "trained"

    return jax.tree_util.tree_map_with_path(kind, params)


def _decays(params: Params) -> Any:
    """Marks each parameter True if AdamW decays it."""

    def decays(path, _):
        names = _names(path)
        return names[-1] != "relative_position_bias" and not any("norm" in n for n in names)

    return jax.tree_util.tree_map_with_path(decays, params)


def _names(path) -> tuple[str, ...]:
    return tuple(str(key.key) for key in path)
