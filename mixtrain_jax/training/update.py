"""One update of the train state: the teacher follows, the student learns, bad numbers are left out.

What the student learns from is the method's (`mixtraining/step.py`); here its gradients are summed
over devices and parts of the batch, and handed to the optimizer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mixtrain_jax.mixtraining.metrics import Metrics, Numbers, as_numbers
from mixtrain_jax.mixtraining.step import compute_gradients
from mixtrain_jax.mixtraining.targets import TeacherOutput
from mixtrain_jax.models import pixels
from mixtrain_jax.models.detector import Detector
from mixtrain_jax.training import ema
from mixtrain_jax.types import Array, Batch, Params, SumOverDevices, TrainState

GradientFunction = Callable[[Batch], tuple[Params, Metrics, TeacherOutput | None]]


def create_state(optimizer: optax.GradientTransformation, params: Params) -> TrainState:
    """Returns the state before the first step: the teacher is a copy of the student."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=params,
        teacher=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
    )


def make_step(
    config: Any,
    model: Detector,
    optimizer: optax.GradientTransformation,
    sum_over_devices: SumOverDevices,
) -> Callable[[TrainState, Batch], tuple[TrainState, Numbers, TeacherOutput | None]]:
    """Returns `train_step` as a function of state and batch.

    Args:
      config: the whole config, resolved.
      model: the detector.
      optimizer: what `make_optimizer` returned.
      sum_over_devices: sums arrays over all devices.
    """
    return partial(
        train_step,
        model=model,
        optimizer=optimizer,
        config=config.mixtraining,
        sum_over_devices=sum_over_devices,
        mean=config.data.mean,
        std=config.data.std,
        seed=config.seed,
        accumulate=config.accumulate,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Detector,
    optimizer: optax.GradientTransformation,
    config: Any,
    sum_over_devices: SumOverDevices,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    accumulate: int = 1,
) -> tuple[TrainState, Numbers, TeacherOutput | None]:
    """Takes one step on this device's share of a batch.

    Args:
      state: the train state, the same on all devices.
      batch: this device's images; without a mixed half the step is plain training.
      model: the detector.
      optimizer: what `make_optimizer` returned.
      config: `config.mixtraining`.
      sum_over_devices: sums arrays over all devices.
      mean: of the pixels' three channels, by which images are normalised.
      std: likewise.
      seed: of sampling and stochastic depth.
      accumulate: parts of the batch that are computed one after the other.

    Returns:
      The next state and metrics, the same on all devices, and what the teacher made of this
      device's images (None in plain training). If the loss, the gradient or the update is not
      finite the parameters and the optimizer stay as they were, except that the learning rate's
      schedule counts the step, and the metric `update/bad` is 1.
    """
    teacher = ema.update(state.teacher, state.student, ema.momentum(config, state.step))
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def gradients(part: Batch) -> tuple[Params, Metrics, TeacherOutput | None]:
        return compute_gradients(
            state.student, teacher, pixels.normalise(part, mean, std), key,
            model=model, config=config, sum_over_devices=sum_over_devices,
        )  # fmt: skip

    own_grads, own_metrics, output = in_parts(gradients, batch, accumulate)
    grads, sums = sum_over_devices((own_grads, own_metrics))
    metrics = as_numbers(sums)
    updates, optimizer_state = optimizer.update(grads, state.optimizer, state.student)
    student = optax.apply_updates(state.student, updates)

    size = optax.tree.norm(grads)
    numbers = jnp.stack([metrics["loss"], size, optax.tree.norm(updates)])
    good = jnp.isfinite(numbers).all()
    student, optimizer_state = _if_good(
        good, (student, optimizer_state), (state.student, state.optimizer)
    )
    metrics |= {
        "update/gradient_norm": jnp.asarray(size),
        "teacher/distance": ema.distance(teacher, student),
        "update/bad": 1 - good.astype(jnp.float32),
    }
    return TrainState(state.step + 1, student, teacher, optimizer_state), metrics, output


def _if_good(good: Array, new: Any, old: Any) -> Any:
    """`new` or, after a bad step, `old`; schedules go on all the same, as steps are counted."""

    def is_schedule(state: Any) -> bool:
        return isinstance(state, optax.ScaleByScheduleState)

    def choose(new: Any, old: Any) -> Any:
        return new if is_schedule(new) else jnp.where(good, new, old)

    return jax.tree.map(choose, new, old, is_leaf=is_schedule)


def in_parts(
    gradients: GradientFunction, batch: Batch, parts: int
) -> tuple[Params, Metrics, TeacherOutput | None]:
    """Runs `gradients` on a batch, or on equal parts of it one after the other.

    Gradients and metrics of the parts are averaged (of ratios both numbers, so that they are those
    of the whole batch); a part needs only its own share of the memory.

    Args:
      gradients: of a batch or a part of one: gradients, metrics, and what the teacher made of it.
      batch: [B, ...] arrays; B is a multiple of `parts`.
      parts: how many; 1: the batch as it is.

    Returns:
      What `gradients` returns of the whole batch, images in their order.
    """
    if parts == 1:
        return gradients(batch)

    def split(x: Any) -> Any:
        return x.reshape(parts, len(x) // parts, *x.shape[1:])

    def join(x: Any) -> Any:
        return x.reshape(-1, *x.shape[2:])

    split_batch = jax.tree.map(split, batch)
    shapes = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], split_batch))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])

    def add(sums: Any, part: Batch) -> tuple[Any, Any]:
        grads, metrics, output = gradients(part)
        return jax.tree.map(jnp.add, sums, (grads, metrics)), output

    sums, outputs = jax.lax.scan(add, zeros, split_batch)
    grads, metrics = jax.tree.map(lambda x: x / parts, sums)
    return grads, metrics, jax.tree.map(join, outputs)
