"""One training step: MixTraining from top to bottom.

The teacher follows the student, looks at the weak view, rates the human boxes and finds its own;
targets are combined; the student learns from the normal and the strong view, its background
softened by the teacher; gradients, update. Plain training is the same function on a batch without
a mixed half.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixtrain_jax.mixtraining import state as states
from mixtrain_jax.mixtraining import targets as mixing
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.models.detector import Detector, call
from mixtrain_jax.models.roi_heads import Soften, StageRecord
from mixtrain_jax.types import Array, Batch, Detections, Params, Targets, TrainState, View

Metrics = dict[str, Array]


class Lesson(NamedTuple):
    """What the teacher made of the mixed half, for pictures and for counting.

    Attributes:
      found: the teacher's detections above the threshold, in pixels of the weak view.
      human: the human boxes, in pixels of the strong view.
      ratings: [B, N] float32, the teacher's probability of each human box's class.
      targets: what the student is trained to find in the strong view.
      fate: what became of each human and each pseudo box.
      exact: [B] bool, False where the teacher had more candidates than it could weigh.
    """

    found: Detections
    human: Targets
    ratings: Array
    targets: Targets
    fate: mixing.Fate
    exact: Array


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Detector,
    optimizer: optax.GradientTransformation,
    config,
    total: Callable[[Array], Array],
) -> tuple[TrainState, Metrics, Lesson | None]:
    """Takes one step on this device's share of a batch.

    Args:
      state: the train state, the same on all devices.
      batch: this device's photographs; without a mixed half the step is plain training.
      model: the detector.
      optimizer: what `state.make_optimizer` returned.
      config: the whole config.
      total: sums a number over all devices.

    Returns:
      The next state and metrics, the same on all devices, and the teacher's lesson for this
      device's photographs (None in plain training). If the loss, the gradient or the update is not
      finite the parameters and the optimizer stay as they were and the metric `update/bad` is 1.
    """
    teacher = states.follow(
        state.teacher, state.student, states.momentum(config.mixtraining, state.step)
    )
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)

    def gradients(part: Batch):
        lesson, soften, told = None, None, {}
        if part.weak is not None and part.strong is not None:
            lesson, soften = teach(model, teacher, part.weak, part.strong, key, config.mixtraining)
            told = describe(lesson, part.strong, total)
        differentiate = jax.value_and_grad(student_loss, has_aux=True)
        (_, metrics), grads = differentiate(
            state.student, part, lesson, soften, key, model, config.mixtraining, total
        )
        return total(grads), metrics | told, lesson

    grads, metrics, lesson = in_parts(gradients, batch, config.accumulate)
    updates, moved = optimizer.update(grads, state.optimizer, state.student)
    student = optax.apply_updates(state.student, updates)

    size = optax.tree.norm(grads)
    numbers = jnp.stack([metrics["loss"], size, optax.tree.norm(updates)])
    good = jnp.isfinite(numbers).all()
    student, moved = jax.tree.map(
        lambda new, old: jnp.where(good, new, old),
        (student, moved),
        (state.student, state.optimizer),
    )
    metrics |= {
        "update/gradient_norm": size,
        "teacher/distance": states.distance(teacher, student),
        "update/bad": 1 - good.astype(jnp.float32),
    }
    return TrainState(state.step + 1, student, teacher, moved), metrics, lesson


def teach(
    model: Detector, teacher: Params, weak: View, strong: View, key: Array, config
) -> tuple[Lesson, Soften | None]:
    """The teacher's part: one look at the weak view, and mixed targets for the strong view.

    Args:
      model: the detector.
      teacher: its parameters.
      weak: the photographs as the teacher sees them.
      strong: the same photographs as the student sees them.
      key: PRNG key of this step.
      config: `config.mixtraining`.

    Returns:
      The lesson, and the background probabilities to soften the student's loss with (or None).
    """
    human = Targets(strong.boxes, strong.labels, strong.valid)
    keys = image_keys(jax.random.fold_in(key, 1), weak) if config.teacher_drop_path else None
    look = teaching.look(model, teacher, weak, strong, keys)
    found, exact = teaching.find(model, teacher, look, config.pseudo_score_threshold)
    ratings = teaching.rate(model, teacher, look, human)
    pseudo = teaching.pseudo_boxes(found, look, strong.size)
    combined, fate = mixing.combine(human, ratings, pseudo, config)
    lesson = Lesson(found, human, ratings, combined, fate, exact)
    soften = teaching.background(model, teacher, look) if config.soft_background else None
    return jax.lax.stop_gradient(lesson), soften


def student_loss(
    student: Params,
    batch: Batch,
    lesson: Lesson | None,
    soften: Soften | None,
    key: Array,
    model: Detector,
    config,
    total: Callable[[Array], Array],
) -> tuple[Array, Metrics]:
    """The student's part: losses of the normal half plus weighted losses of the mixed half.

    Both halves go through the network together; each is normalised by its own counts.

    Returns:
      This device's share of the loss, and metrics over all devices.
    """
    normal, strong = batch.normal, batch.strong
    seen = normal if strong is None else _join(normal, strong)
    keys = image_keys(key, seen)
    pyramid = call(model, student, "features", seen.image, seen.size, keys)

    def losses(rows: slice, view: View, targets: Targets, soften: Soften | None):
        own = tuple(level[rows] for level in pyramid)
        return call(model, student, "losses", own, view.size, targets, keys[rows], total, soften)

    count = len(normal.image)
    human = Targets(normal.boxes, normal.labels, normal.valid)
    found, records = losses(slice(0, count), normal, human, None)
    loss = sum(found.values(), start=jnp.zeros(()))
    metrics = _named("normal", found, records, total)
    if strong is not None and lesson is not None:
        found, records = losses(slice(count, None), strong, lesson.targets, soften)
        loss += config.mixed_loss_weight * sum(found.values())
        metrics |= _named("mixed", found, records, total)
    return loss, metrics | {"loss": total(loss)}


def describe(lesson: Lesson, strong: View, total: Callable[[Array], Array]) -> Metrics:
    """Sums up a lesson: what an operator needs to see whether the teacher helps.

    Box counts are means over the photographs of the mixed half. `easy` is the share of human boxes
    the teacher rates easy, overall and by size (COCO's limits, in the original photograph).
    """
    fate, human = lesson.fate, lesson.human
    photographs = total(jnp.float32(len(strong.image)))
    metrics = {
        f"boxes/{name}": total(mask.sum()) / photographs for name, mask in fate._asdict().items()
    }
    metrics["boxes/human"] = total(human.valid.sum()) / photographs
    easy = fate.kept | fate.replaced
    shrink = jnp.abs(jnp.linalg.det(strong.matrix[:, :2, :2]))[:, None]
    sides = human.boxes[..., 2:] - human.boxes[..., :2]
    area = sides.prod(-1) / shrink
    groups = {
        "": human.valid,
        "_small": human.valid & (area < 32**2),
        "_medium": human.valid & (area >= 32**2) & (area < 96**2),
        "_large": human.valid & (area >= 96**2),
    }
    for name, group in groups.items():
        metrics[f"teacher/easy{name}"] = _share(easy & group, group, total)
    metrics["teacher/rating"] = _share(lesson.ratings * human.valid, human.valid, total)
    metrics["teacher/score"] = _share(
        lesson.found.scores * lesson.found.valid, lesson.found.valid, total
    )
    full = lesson.found.valid.all(-1) | ~lesson.exact
    metrics["teacher/at_limit"] = total(full.sum()) / photographs
    return metrics


def in_parts(gradients: Callable, batch: Batch, parts: int):
    """Runs `gradients` on a batch, or on equal parts of it one after the other.

    Gradients and metrics of the parts are averaged; a part needs only its own share of the memory.
    """
    if parts == 1:
        return gradients(batch)

    def split(x):
        return x.reshape(parts, len(x) // parts, *x.shape[1:])

    def join(x):
        return x.reshape(-1, *x.shape[2:])

    split_batch = jax.tree.map(split, batch)
    shapes = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], split_batch))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])

    def add(sums, part):
        grads, metrics, lesson = gradients(part)
        return jax.tree.map(jnp.add, sums, (grads, metrics)), lesson

    sums, lessons = jax.lax.scan(add, zeros, split_batch)
    grads, metrics = jax.tree.map(lambda x: x / parts, sums)
    return grads, metrics, jax.tree.map(join, lessons)


def image_keys(key: Array, view: View) -> Array:
    """Returns a PRNG key for each image, a pure function of the step's key and the photograph."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(view.index)


def _join(first: View, second: View) -> View:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _share(part: Array, whole: Array, total: Callable[[Array], Array]) -> Array:
    return total(part.sum()) / jnp.maximum(total(whole.sum()), 1)


def _named(half: str, losses: Metrics, records: list[StageRecord], total) -> Metrics:
    named = {f"{half}/{name}": total(value) for name, value in losses.items()}
    for stage, record in enumerate(records):
        named[f"{half}/stage{stage}_accuracy"] = _share(record.correct, record.valid, total)
    return named
