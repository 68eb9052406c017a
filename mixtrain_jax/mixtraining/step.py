"""The method: what one step of MixTraining learns from, from top to bottom.

The teacher sees the weak view, finds boxes of its own and rates the human ones; targets are
combined; the student learns from the normal and the strong view, and the teacher is asked in the
loss. What comes out are gradients; `training/update.py` applies them and lets the teacher follow
the student. Plain training is the same on a batch without a mixed half. Beyond the paper, the
teacher can do for the normal half what it does for the mixed one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.mixtraining.criteria import Criteria, compute_criteria, rating_threshold_of
from mixtrain_jax.mixtraining.metrics import (
    Metrics,
    box_metrics,
    criteria_metrics,
    half_metrics,
    teacher_metrics,
)
from mixtrain_jax.mixtraining.targets import TeacherOutput, combine, draw_anew, human_boxes, join
from mixtrain_jax.mixtraining.teacher import (
    TeacherPredictions,
    confident_detections,
    make_ask_teacher,
    pseudo_boxes,
    rate_human,
    teacher_predictions,
)
from mixtrain_jax.models.detector import Detector, bind
from mixtrain_jax.models.roi_heads import AskTeacher
from mixtrain_jax.types import Array, Batch, Params, SumOverDevices, Targets, View


class Supervision(NamedTuple):
    """What the student is trained on in a view.

    Attributes:
      targets: what it is to find, in pixels of the view.
      ask_teacher: tells what the teacher makes of the RoIs that the student is trained on; None: it
        is not asked.
    """

    targets: Targets
    ask_teacher: AskTeacher | None = None


def human_supervision(view: View) -> Supervision:
    """What people drew in a view, and no more: plain training."""
    return Supervision(human_boxes(view))


def compute_gradients(
    student: Params,
    teacher: Params,
    batch: Batch,
    key: Array,
    *,
    model: Detector,
    config: Any,
    sum_over_devices: SumOverDevices,
) -> tuple[Params, Metrics, TeacherOutput | None]:
    """What this device's share of a batch teaches the student.

    Args:
      student: parameters to be trained.
      teacher: their moving average.
      batch: this device's images; without a mixed half this is plain training.
      key: PRNG key of this step.
      model: the detector.
      config: `config.mixtraining`.
      sum_over_devices: sums arrays over all devices.

    Returns:
      This device's share of the gradients and of the metrics, and what the teacher made of its
      images (None in plain training).
    """
    student_key, teacher_key = jax.random.split(key)
    output, mixed = None, None
    of_teacher: Metrics = {}
    normal = human_supervision(batch.normal)
    if batch.weak is not None and batch.strong is not None:
        drop_path = config.teacher_drop_path
        keys = image_keys(teacher_key, batch.weak) if drop_path else None
        in_mixed, in_normal = predict_both_halves(model, teacher, batch, config, keys)
        criteria = compute_criteria(model, teacher, in_mixed, in_normal, config, sum_over_devices)
        output, mixed = teacher_supervision(
            model, teacher, in_mixed, batch.strong, config, criteria,
            rating_threshold=config.gt_score_threshold, soften=config.soft_background,
        )  # fmt: skip
        of_normal: Metrics = {}
        if in_normal is not None:
            normal, of_normal = normal_supervision(model, teacher, in_normal, config, criteria)
        of_teacher = of_normal | criteria_metrics(criteria) | teacher_metrics(output, batch.weak)
    differentiate = jax.value_and_grad(student_loss, has_aux=True)
    (_, metrics), grads = differentiate(
        student, batch, normal, mixed, student_key, model, config, sum_over_devices
    )
    return grads, metrics | of_teacher, output


def predict_both_halves(
    model: Detector, teacher: Params, batch: Batch, config: Any, keys: Array | None = None
) -> tuple[TeacherPredictions, TeacherPredictions | None]:
    """What the teacher predicts in the mixed half and, where that is asked for, in the normal half.

    Args:
      model: the detector.
      teacher: its parameters.
      batch: this device's images, with a mixed half.
      config: `config.mixtraining`.
      keys: [B] PRNG keys that switch its stochastic depth on in the mixed half.
    """
    assert batch.weak is not None and batch.strong is not None
    mixed = teacher_predictions(model, teacher, batch.weak, batch.strong, keys)
    judged = config.balance_classes or config.auto_share
    if not (judged or config.mend_normal or config.soften_normal):
        return mixed, None
    return mixed, teacher_predictions(model, teacher, batch.normal, batch.normal)


def teacher_supervision(
    model: Detector,
    teacher: Params,
    predictions: TeacherPredictions,
    view: View,
    config: Any,
    criteria: Criteria,
    *,
    rating_threshold: float,
    soften: bool,
) -> tuple[TeacherOutput, Supervision]:
    """The teacher's part: its predictions in its own view become targets for the student's.

    Args:
      model: the detector.
      teacher: its parameters.
      predictions: in its own view.
      view: the same images as the student sees them.
      config: `config.mixtraining`.
      criteria: by which it is done.
      rating_threshold: human boxes rated at or below it are left out, unless the criteria have one;
        0: none is.
      soften: the teacher is asked of the RoIs in the student's loss.

    Returns:
      What the teacher made of the images, and what the student is trained on.
    """
    features, human = predictions.features, human_boxes(view)
    detections = confident_detections(
        model, teacher, predictions, config, criteria.score_threshold, criteria.balance
    )
    ratings = rate_human(model, teacher, predictions, view, config, criteria.balance)
    there = pseudo_boxes(predictions.detections, features, view.size)
    pseudo = Targets(there.boxes, there.labels, there.valid & detections.valid)
    drawn = human
    if criteria.box_share is not None:
        drawn = draw_anew(human, there, criteria.box_share)
    least = rating_threshold_of(config, criteria, rating_threshold)
    targets, assignment = combine(drawn, ratings, pseudo, config, least)
    output = TeacherOutput(detections, human, ratings, targets, assignment, predictions.exact)
    ask_teacher = None
    if soften:
        ask_teacher = make_ask_teacher(
            model, teacher, features, criteria.label_share,
            people=Targets(drawn.boxes, drawn.labels, assignment.kept),
            others=join(
                Targets(human.boxes, human.labels, assignment.dropped),
                Targets(pseudo.boxes, pseudo.labels, assignment.mending | assignment.missing),
            ),
        )  # fmt: skip
    output = jax.lax.stop_gradient(output)
    return output, Supervision(output.targets, ask_teacher)


def normal_supervision(
    model: Detector,
    teacher: Params,
    predictions: TeacherPredictions,
    config: Any,
    criteria: Criteria,
) -> tuple[Supervision, Metrics]:
    """What the normal half is trained on: its human boxes or, with `mend_normal`, mixed targets.

    Weak and strong view are the same here, so no box is left out as too hard: only where the
    teacher rates it as low as a wrong one, at or below `normal_gt_score_threshold`.

    Args:
      model: the detector.
      teacher: its parameters.
      predictions: in the normal half.
      config: `config.mixtraining`.
      criteria: by which it is done.

    Returns:
      What the student is trained on, and this device's share of the metrics.
    """
    if config.mend_normal:
        output, supervision = teacher_supervision(
            model, teacher, predictions, predictions.view, config, criteria,
            rating_threshold=config.normal_gt_score_threshold, soften=config.soften_normal,
        )  # fmt: skip
        return supervision, box_metrics(output.assignment, "_normal")
    if config.soften_normal:
        human = human_boxes(predictions.view)
        nothing = Targets(human.boxes, human.labels, jnp.zeros_like(human.valid))
        ask_teacher = make_ask_teacher(
            model, teacher, predictions.features, criteria.label_share, people=human, others=nothing
        )
        return Supervision(human, ask_teacher), {}
    return human_supervision(predictions.view), {}


def student_loss(
    student: Params,
    batch: Batch,
    normal: Supervision,
    mixed: Supervision | None,
    key: Array,
    model: Detector,
    config: Any,
    sum_over_devices: SumOverDevices,
) -> tuple[Array, Metrics]:
    """The student's part: losses of the normal half plus weighted losses of the mixed half.

    Both halves go through the network together; each is normalised by its own counts.

    Args:
      student: its parameters.
      batch: this device's images.
      normal: what it is trained on in the normal half.
      mixed: the same of the strong view; None: there is no mixed half.
      key: PRNG key of its stochastic depth and of the sampling of anchors and RoIs.
      model: the detector.
      config: `config.mixtraining`.
      sum_over_devices: sums arrays over all devices.

    Returns:
      This device's share of the loss and of the metrics.
    """
    strong = batch.strong
    views = batch.normal if strong is None else _join(batch.normal, strong)
    drop_key, sample_key = jax.random.split(key)
    keys = image_keys(sample_key, views)
    detector = bind(model, student)
    pyramid = detector.features(views.image, views.size, image_keys(drop_key, views))

    def half(name: str, rows: slice, view: View, supervision: Supervision) -> tuple[Array, Metrics]:
        levels = tuple(level[rows] for level in pyramid)
        losses, records = detector.losses(
            levels,
            view.size,
            supervision.targets,
            keys[rows],
            sum_over_devices,
            supervision.ask_teacher,
        )
        return sum(losses.values(), start=jnp.zeros(())), half_metrics(name, losses, records)

    count = len(batch.normal.image)
    loss, metrics = half("normal", slice(0, count), batch.normal, normal)
    if strong is not None and mixed is not None:
        more, of_mixed = half("mixed", slice(count, None), strong, mixed)
        loss += config.mixed_loss_weight * more
        metrics |= of_mixed
    return loss, metrics | {"loss": loss}


def image_keys(key: Array, view: View) -> Array:
    """Returns a PRNG key for each image, a pure function of the step's key and its place."""
    places = view.index if view.place is None else view.place
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)


def _join(first: View, second: View) -> View:
    joined: View = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    return joined
