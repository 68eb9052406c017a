"""What the teacher does: it sees the weak view once, and is then asked three things.

Which objects are there, how sure it is of each human box, and what it says of the RoIs the student
learns from: how much they look like background or, beyond the paper, all it makes of them. Pure
functions of the teacher's parameters and the weak view; nothing here has a gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.mixtraining import targets as mixing
from mixtrain_jax.models.detector import Detector, bind
from mixtrain_jax.models.roi_heads import AskTeacher, Opinion
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.types import Array, Detections, Params, Targets, View

TINY = 1e-30  # least sum of probabilities by which one divides


class TeacherView(NamedTuple):
    """The weak view as the teacher sees it, and how to carry boxes to it and from it.

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


class Look(NamedTuple):
    """What the teacher makes of a view.

    Attributes:
      view: the images as it sees them.
      seen: what it sees.
      found: all its detections, whatever their scores, in pixels of the view.
      exact: [B] bool, False where it had more candidates than it can weigh.
    """

    view: View
    seen: TeacherView
    found: Detections
    exact: Array


def look(
    model: Detector, teacher: Params, weak: View, strong: View, keys: Array | None = None
) -> Look:
    """Shows the teacher the weak view, and has it find objects there; for arguments see `see`."""
    seen = see(model, teacher, weak, strong, keys)
    detector = bind(model, teacher)
    proposals = detector.proposals(seen.pyramid, seen.size)
    found, exact = detector.detect(seen.pyramid, seen.size, proposals)
    return Look(weak, seen, found, exact)


def see(
    model: Detector, teacher: Params, weak: View, strong: View, keys: Array | None = None
) -> TeacherView:
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
    return TeacherView(
        jax.lax.stop_gradient(pyramid),
        weak.size,
        to_strong=_between(weak.matrix, strong.matrix),
        to_weak=_between(strong.matrix, weak.matrix),
    )


def weigh(found: Detections, balance: Array | None) -> Detections:
    """Multiplies the odds of scores by those of `balance` [classes]; None: they are as they are."""
    if balance is None:
        return found
    weighed = found.scores * balance[found.labels]
    scores = weighed / (weighed + 1 - found.scores)
    return Detections(found.boxes, scores, found.labels, found.valid)


def above(found: Detections, threshold: Array | float) -> Detections:
    """The detections with a score above the threshold; the others are no longer valid."""
    valid = found.valid & (found.scores > threshold)
    return Detections(found.boxes, found.scores, found.labels, valid)


def agrees(model: Detector, teacher: Params, view: View, found: Detections, iou: float) -> Array:
    """Tells which detections [B, K] the teacher finds in the mirrored view as well.

    Args:
      model: the detector.
      teacher: its parameters.
      view: where `found` was found.
      found: detections in pixels of the view.
      iou: least overlap with a detection of the same class, mirrored back; its score may be any
        that the detector gives at all.
    """
    width = view.size[:, 1:]
    column = jnp.arange(view.image.shape[2])
    source = jnp.where(column < width, width - 1 - column, column)
    image = jnp.take_along_axis(view.image, source[:, None, :, None], axis=2)
    detector = bind(model, teacher)
    pyramid = detector.features(image, view.size)
    again, _ = detector.detect(pyramid, view.size, detector.proposals(pyramid, view.size))
    left, top, right, bottom = jnp.moveaxis(again.boxes, -1, 0)
    back = jnp.stack([width - right, top, width - left, bottom], axis=-1)
    same = box_ops.iou(found.boxes, back) >= iou
    same &= (found.labels[..., :, None] == again.labels[..., None, :]) & again.valid[..., None, :]
    return found.valid & same.any(-1)


def pseudo_boxes(found: Detections, view: TeacherView, strong_size: Array) -> Targets:
    """Carries detections from the weak to the strong view; without area they are not valid."""
    boxes, seen = box_ops.transform(found.boxes, view.to_strong, strong_size)
    return Targets(boxes, found.labels, found.valid & seen)


def back_to_weak(human: Targets, view: TeacherView) -> Targets:
    """Carries human boxes from the strong back to the weak view, as the released code does.

    Both ways the bounds of the moved edge mid-points are taken, so after a rotation by an angle a
    the sides are cos(a)^2 as long: after 15, 21 and 27 degrees the IoU with the box in the weak
    view is 0.87, 0.76 and 0.63.
    """
    boxes, _ = box_ops.transform(human.boxes, view.to_weak, view.size)
    return Targets(boxes, human.labels, human.valid)


def rate(
    model: Detector,
    teacher: Params,
    view: TeacherView,
    human: Targets,
    *,
    given_object: bool = False,
    balance: Array | None = None,
) -> Array:
    """Returns the teacher's probability [B, N] of each human box's own class (section 3.2).

    Args:
      model: the detector.
      teacher: its parameters.
      view: what `see` returned.
      human: human boxes in pixels of the weak view; padding is rated 0.
      given_object: beyond the paper: the probability is among the classes, without the background.
      balance: [classes] float32 by which those of the classes are multiplied first; None: they are
        as they are.
    """
    probabilities = bind(model, teacher).score_boxes(view.pyramid, view.size, human.boxes)
    if balance is not None:
        probabilities = _normalised(probabilities * jnp.append(balance, 1))
    if given_object:
        probabilities = _normalised(probabilities[..., :-1])
    own = jnp.take_along_axis(probabilities, human.labels[..., None], axis=-1)[..., 0]
    return jnp.where(human.valid, own, 0)


def classes_of(model: Detector, teacher: Params, view: TeacherView, boxes: Array) -> Array:
    """Returns the teacher's probabilities [B, N, classes], given that each box is an object."""
    probabilities = bind(model, teacher).score_boxes(view.pyramid, view.size, boxes)
    return _normalised(probabilities[..., :-1])


def opinions(
    model: Detector,
    teacher: Params,
    view: TeacherView,
    label_share: Array | None,
    *,
    people: Targets,
    others: Targets,
) -> AskTeacher:
    """Returns what says of RoIs in the strong view what the teacher makes of them.

    In Cascade R-CNN each stage of the student is answered by the same stage of the teacher. Without
    a share of the labels this is the soft background: how much RoIs look like background. Beyond
    the paper, with one, labels are soft (the soft bootstrapping of Reed et al., arXiv 1412.6596):
    class targets are so much of the label, and for the rest what the teacher says. RoIs that
    overlap another box by IoU of at least 0.5, and more than any that people drew, are the
    teacher's alone, as nobody else says what is there: a label made of its own judgement would only
    make it surer.

    Args:
      model: the detector.
      teacher: its parameters.
      view: what `see` returned.
      label_share: [] float32, of the labels in class targets; None: the soft background.
      people: N human boxes per image in pixels of the strong view; valid where they are targets.
      others: M boxes per image in the same pixels; valid where they are pseudo boxes that are
        targets, or human ones that are left out.
    """

    def most(rois: Array, those: Targets) -> Array:
        overlaps = box_ops.iou(rois, those.boxes) * those.valid[..., None, :]
        return overlaps.max(-1)

    def of_rois(stage: int, rois: Array) -> Opinion:
        boxes, _ = box_ops.transform(rois, view.to_weak, view.size)
        probabilities = bind(model, teacher).score_boxes(view.pyramid, view.size, boxes, stage)
        share = None
        if label_share is not None:
            overlap = most(rois, others)
            alone = (overlap >= mixing.SAME) & (overlap > most(rois, people))
            share = jnp.where(alone, 0, label_share)
        return jax.lax.stop_gradient(Opinion(probabilities, share))

    return of_rois


def _normalised(probabilities: Array) -> Array:
    """Returns [..., C] probabilities scaled to a sum of 1."""
    return probabilities / jnp.maximum(probabilities.sum(-1, keepdims=True), TINY)


def _between(source: Array, target: Array) -> Array:
    """Returns the matrix from one view to another, given those from the image to each."""
    exact = jax.lax.Precision.HIGHEST  # accelerators round products of float32 otherwise
    return jnp.matmul(target, box_ops.inverse(source), precision=exact)
