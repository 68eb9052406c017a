"""What the teacher does: it sees its view of the images, and is then asked three things.

Which objects are there, how sure it is of each human box, and what it says of the RoIs the student
learns from: how much they look like background or, beyond the paper, all it makes of them. Its
view is the weak one; where it does the same for the normal half, teacher and student share a view.
Pure functions of its parameters and the view; nothing here has a gradient.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.mixtraining.targets import SAME_OBJECT, human_boxes
from mixtrain_jax.models.detector import Detector, bind
from mixtrain_jax.models.roi_heads import AskTeacher, TeacherAnswer
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.types import Array, Detections, Params, Targets, View

TINY = 1e-30  # least sum of probabilities by which one divides


class TeacherFeatures(NamedTuple):
    """The teacher's features of the weak view, and how to carry boxes to it and from it.

    Attributes:
      pyramid: features of the weak view.
      size: [B, 2] int32 height and width of the weak view.
      to_strong: [B, 3, 3] float32 matrix from the weak to the strong view.
      to_weak: [B, 3, 3] float32 matrix from the strong to the weak view.
    """

    pyramid: tuple[Array, ...]
    size: Array
    to_strong: Array
    to_weak: Array


class TeacherPredictions(NamedTuple):
    """What the teacher makes of a view.

    Attributes:
      view: the images as it sees them.
      features: of the view.
      detections: all of them, whatever their scores, in pixels of the view.
      exact: [B] bool, False where it had more candidates than it can weigh.
    """

    view: View
    features: TeacherFeatures
    detections: Detections
    exact: Array


def teacher_predictions(
    model: Detector, teacher: Params, weak: View, strong: View, keys: Array | None = None
) -> TeacherPredictions:
    """Computes features of the weak view and detects there; arguments as in `teacher_features`."""
    features = teacher_features(model, teacher, weak, strong, keys)
    detections, exact = bind(model, teacher).detect(features.pyramid, features.size)
    return TeacherPredictions(weak, features, detections, exact)


def teacher_features(
    model: Detector, teacher: Params, weak: View, strong: View, keys: Array | None = None
) -> TeacherFeatures:
    """Computes the teacher's features of the weak view.

    Args:
      model: the detector.
      teacher: its parameters.
      weak: the images as the teacher sees them.
      strong: the same images as the student sees them; only its matrices are used.
      keys: [B] PRNG keys that switch the teacher's stochastic depth on, as the released code has
        it.
    """
    pyramid = bind(model, teacher).features(weak.image, weak.size, keys)
    return TeacherFeatures(
        jax.lax.stop_gradient(pyramid),
        weak.size,
        to_strong=_between(weak.matrix, strong.matrix),
        to_weak=_between(strong.matrix, weak.matrix),
    )


def balance_scores(detections: Detections, balance: Array | None) -> Detections:
    """Multiplies the odds of scores by `balance` [classes]; None: they are as they are."""
    if balance is None:
        return detections
    weighed = detections.scores * balance[detections.labels]
    return dataclasses.replace(detections, scores=weighed / (weighed + 1 - detections.scores))


def keep_above(detections: Detections, threshold: Array | float) -> Detections:
    """The detections with a score above the threshold; the others are no longer valid."""
    return dataclasses.replace(detections, valid=detections.valid & (detections.scores > threshold))


def found_in_mirror(
    model: Detector, teacher: Params, view: View, detections: Detections, iou: float
) -> Array:
    """Tells which detections [B, K] the teacher finds in the mirrored view as well.

    Args:
      model: the detector.
      teacher: its parameters.
      view: in which they were detected.
      detections: in pixels of the view.
      iou: least overlap with a detection of the same class, mirrored back; its score may be any
        that the detector gives at all.
    """
    width = view.size[:, 1:]
    column = jnp.arange(view.image.shape[2])
    source = jnp.where(column < width, width - 1 - column, column)
    image = jnp.take_along_axis(view.image, source[:, None, :, None], axis=2)
    detector = bind(model, teacher)
    pyramid = detector.features(image, view.size)
    again, _ = detector.detect(pyramid, view.size)
    left, top, right, bottom = jnp.moveaxis(again.boxes, -1, 0)
    back = jnp.stack([width - right, top, width - left, bottom], axis=-1)
    same = box_ops.iou(detections.boxes, back) >= iou
    same &= detections.labels[..., :, None] == again.labels[..., None, :]
    same &= again.valid[..., None, :]
    return detections.valid & same.any(-1)


def confident_detections(
    model: Detector,
    teacher: Params,
    predictions: TeacherPredictions,
    config: Any,
    threshold: Array,
    balance: Array | None,
) -> Detections:
    """The detections of which pseudo boxes are made: the others are no longer valid.

    Args:
      model: the detector.
      teacher: its parameters.
      predictions: in its view.
      config: `config.mixtraining`; with `must_agree` they are found in the mirrored view too.
      threshold: [] float32, their scores are above it.
      balance: [classes] float32 by which the scores' odds are multiplied first, or None.
    """
    detections = keep_above(balance_scores(predictions.detections, balance), threshold)
    if not config.must_agree:
        return detections
    again = found_in_mirror(model, teacher, predictions.view, detections, config.agreement_iou)
    return dataclasses.replace(detections, valid=again)


def pseudo_boxes(detections: Detections, features: TeacherFeatures, strong_size: Array) -> Targets:
    """Carries detections from the weak to the strong view; without area they are not valid."""
    boxes, seen = box_ops.transform(detections.boxes, features.to_strong, strong_size)
    return Targets(boxes, detections.labels, detections.valid & seen)


def back_to_weak(human: Targets, features: TeacherFeatures) -> Targets:
    """Carries human boxes from the strong back to the weak view, as the released code does.

    Both ways the bounds of the moved edge mid-points are taken, so after a rotation by an angle a
    the sides are cos(a)^2 as long: after 15, 21 and 27 degrees the IoU with the box in the weak
    view is 0.87, 0.76 and 0.63.
    """
    boxes, _ = box_ops.transform(human.boxes, features.to_weak, features.size)
    return Targets(boxes, human.labels, human.valid)


def rate_human(
    model: Detector,
    teacher: Params,
    predictions: TeacherPredictions,
    student_view: View,
    config: Any,
    balance: Array | None,
) -> Array:
    """Rates the human boxes [B, N], in the place that `config.mixtraining.rate_boxes` names.

    Args:
      model: the detector.
      teacher: its parameters.
      predictions: in its view.
      student_view: the same images as the student sees them.
      config: `config.mixtraining`.
      balance: [classes] float32, as in `rate_boxes`.
    """
    human = human_boxes(student_view)
    if config.rate_boxes == "weak":  # whole objects, also where the strong view cuts them
        rated = Targets(predictions.view.boxes, human.labels, human.valid)
    else:
        rated = back_to_weak(human, predictions.features)
    return rate_boxes(
        model, teacher, predictions.features, rated,
        given_object=config.rate_given_object, balance=balance,
    )  # fmt: skip


def rate_boxes(
    model: Detector,
    teacher: Params,
    features: TeacherFeatures,
    human: Targets,
    *,
    given_object: bool = False,
    balance: Array | None = None,
) -> Array:
    """Returns the teacher's probability [B, N] of each human box's own class (section 3.2).

    Args:
      model: the detector.
      teacher: its parameters.
      features: what `teacher_features` returned.
      human: human boxes in pixels of the weak view; padding is rated 0.
      given_object: beyond the paper: the probability is among the classes, without the background.
      balance: [classes] float32 by which those of the classes are multiplied first; None: they are
        as they are.
    """
    probabilities = bind(model, teacher).score_boxes(features.pyramid, features.size, human.boxes)
    if balance is not None:
        probabilities = _normalised(probabilities * jnp.append(balance, 1))
    if given_object:
        probabilities = _normalised(probabilities[..., :-1])
    own = jnp.take_along_axis(probabilities, human.labels[..., None], axis=-1)[..., 0]
    return jnp.where(human.valid, own, 0)


def class_probabilities(
    model: Detector, teacher: Params, features: TeacherFeatures, boxes: Array
) -> Array:
    """Returns the teacher's probabilities [B, N, classes], given that each box is an object."""
    probabilities = bind(model, teacher).score_boxes(features.pyramid, features.size, boxes)
    return _normalised(probabilities[..., :-1])


def make_ask_teacher(
    model: Detector,
    teacher: Params,
    features: TeacherFeatures,
    label_share: Array | None,
    *,
    people: Targets,
    others: Targets,
) -> AskTeacher:
    """Returns a function that gives the teacher's probabilities for RoIs of the strong view.

    In Cascade R-CNN each stage of the student asks the same stage of the teacher. Without a
    `label_share` only the probability of background is used: the paper's soft background. Beyond
    the paper, with one, labels are soft (the soft bootstrapping of Reed et al., arXiv 1412.6596):
    so much of a class target is the label, the rest the teacher's probabilities. A RoI that
    overlaps a box of `others` by IoU of at least 0.5, and more than any of `people`, takes the
    teacher's alone: a label made of its own predictions would only make it surer. Of a RoI that is
    not in the weak view the teacher has seen nothing; it keeps its label whole.

    Args:
      model: the detector.
      teacher: its parameters.
      features: what `teacher_features` returned.
      label_share: [] float32, of the labels in class targets; None: the soft background.
      people: N human boxes per image in pixels of the strong view; valid where they are targets.
      others: M boxes per image in the same pixels; valid where they are pseudo boxes that are
        targets, or human ones that are left out.
    """

    def most(rois: Array, those: Targets) -> Array:
        overlaps = box_ops.iou(rois, those.boxes) * those.valid[..., None, :]
        return overlaps.max(-1)

    def of_rois(stage: int, rois: Array) -> TeacherAnswer:
        boxes, seen = box_ops.transform(rois, features.to_weak, features.size)
        detector = bind(model, teacher)
        probabilities = detector.score_boxes(features.pyramid, features.size, boxes, stage)
        share = None
        if label_share is not None:
            overlap = most(rois, others)
            alone = (overlap >= SAME_OBJECT) & (overlap > most(rois, people))
            share = jnp.where(seen, jnp.where(alone, 0, label_share), 1)
        return jax.lax.stop_gradient(TeacherAnswer(probabilities, share))

    return of_rois


def _normalised(probabilities: Array) -> Array:
    """Returns [..., C] probabilities scaled to a sum of 1."""
    return probabilities / jnp.maximum(probabilities.sum(-1, keepdims=True), TINY)


def _between(source: Array, target: Array) -> Array:
    """Returns the matrix from one view to another, given those from the image to each."""
    exact = jax.lax.Precision.HIGHEST  # accelerators round products of float32 otherwise
    return jnp.matmul(target, box_ops.inverse(source), precision=exact)
