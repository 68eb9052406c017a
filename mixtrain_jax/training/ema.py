"""The teacher's parameters: an exponential moving average of the student's (MixTraining, 3.1)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mixtrain_jax.types import Array, Params


def momentum(config: Any, step: Array) -> Array:
    """The momentum before iteration `step`: a linear ramp from 0, then constant.

    Args:
      config: `config.mixtraining`.
      step: [] int32, 0-based iteration.
    """
    ramp = jnp.minimum(step / max(config.ema_warmup_steps, 1), 1) if config.ema_warmup_steps else 1
    return jnp.asarray(config.ema_momentum * ramp)


def update(teacher: Params, student: Params, momentum: Array) -> Params:
    """Returns momentum * teacher + (1 - momentum) * student."""
    return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, student)


def distance(teacher: Params, student: Params) -> Array:
    """Returns |teacher - student| / |student| over all parameters."""
    difference = jax.tree.map(jnp.subtract, teacher, student)
    return jnp.asarray(optax.tree.norm(difference) / optax.tree.norm(student))
