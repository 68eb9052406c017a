"""How the optimizer moves the student: plain optax.

What does not train (frozen BatchNorm, the stem of a pretrained ResNet) and what is exempt from
weight decay is decided here, by parameter name.
"""

import math
from functools import partial
from typing import Any

import jax
import optax

from mixtrain_jax.models import resnet
from mixtrain_jax.types import Params


def make_schedule(config: Any, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Linear warm-up from `warmup_factor` of the rate, then either a drop to a tenth after each of
    `drop_steps`, or a half cosine to zero.

    Args:
      config: `config.optimizer`, resolved.
      steps: length of the whole training.
    """
    if config.schedule == "cosine":
        falling = optax.cosine_decay_schedule(config.learning_rate, steps)
    else:
        drops = tuple(config.drop_steps)
        falls = {step: math.prod(0.1 for drop in drops if drop == step) for step in drops}
        falling = optax.piecewise_constant_schedule(config.learning_rate, falls)
    if not config.warmup_steps:
        return falling
    first = config.warmup_factor
    rising = optax.linear_schedule(0.0, 1 - first, config.warmup_steps)
    return lambda step: falling(step) * (first + rising(step))


def make_optimizer(config: Any, backbone: Any, steps: int) -> optax.GradientTransformation:
    """Returns AdamW or SGD with momentum, with frozen parameters left alone.

    AdamW decays the weights of all layers but norms and relative position biases, as the released
    Swin configs do; SGD adds its decay to every gradient, as the released ResNet configs do.

    Args:
      config: `config.optimizer`, resolved.
      backbone: `config.model.backbone`; it says what is frozen.
      steps: length of the whole training.
    """
    rate = make_schedule(config, steps)
    if config.name == "adamw":
        first, second = config.betas
        moving = optax.adamw(rate, first, second, weight_decay=config.weight_decay, mask=_decays)
    else:
        moving = optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(rate, momentum=config.momentum),
        )
    kinds = {"trained": moving, "frozen": optax.set_to_zero()}
    return optax.partition(kinds, partial(_kinds, backbone))


def _kinds(backbone: Any, params: Params) -> Any:
    """Names each parameter trained or frozen; only a pretrained ResNet has frozen ones."""

    def kind(path: Any, _: Any) -> str:
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

    def decays(path: Any, _: Any) -> bool:
        names = _names(path)
        return names[-1] != "relative_position_bias" and not any("norm" in n for n in names)

    return jax.tree_util.tree_map_with_path(decays, params)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(key.key) for key in path)
