"""The thresholds and shares that a step judges boxes by, computed from the step's own data.

All of this is beyond the paper, and off in the paper's recipes.

Where labels are wrong, no score that human boxes suggest is the right threshold: what people leave
out is often another sort (small, cut by the border) than what they draw. But the teacher can tell:
an object is found again, in nearly the same place, when the image is mirrored; a false detection
often is not. Where most labels are wrong, no threshold is right: there labels are soft, and in
ratings and scores the teacher's classes are held to be as common as people's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.mixtraining.targets import SAME_OBJECT, human_boxes, nearest
from mixtrain_jax.mixtraining.teacher import (
    TeacherPredictions,
    balance_scores,
    class_probabilities,
    found_in_mirror,
)
from mixtrain_jax.models.detector import Detector
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.types import Array, Detections, Params, SumOverDevices, Targets

SCORES = 100  # steps from 0 to 1 among which a threshold is chosen
ALIKE = 0.75  # IoU of two boxes that are drawn alike
ROUNDS = 4  # fixed-point iterations of `class_balance`
FEWEST = 10  # detections above a score that can tell whether it is high enough


class Criteria(NamedTuple):
    """By what a step judges the teacher's boxes and the human ones; the same on all devices.

    Attributes:
      score_threshold: [] float32, the score above which detections are pseudo boxes.
      balance: [classes] float32 by which the teacher's probabilities of the classes and the odds of
        its scores are multiplied; None: they are as they are.
      label_share: [] float32, of the labels in class targets; None: there are no soft labels.
      box_share: [] float32, of the human boxes where they are drawn anew; None: they are not.
      rating_threshold: [] float32, at or below which human boxes are left out in either half; None:
        as the config has it.
    """

    score_threshold: Array
    balance: Array | None = None
    label_share: Array | None = None
    box_share: Array | None = None
    rating_threshold: Array | None = None


def compute_criteria(
    model: Detector,
    teacher: Params,
    mixed: TeacherPredictions,
    normal: TeacherPredictions | None,
    config: Any,
    sum_over_devices: SumOverDevices,
) -> Criteria:
    """Returns what this step judges by.

    Args:
      model: the detector.
      teacher: its parameters.
      mixed: its predictions in this device's mixed half, with stochastic depth where its own boxes
        are found so.
      normal: those in the normal half; None: nothing here or in the losses asks for them.
      config: `config.mixtraining`.
      sum_over_devices: sums arrays over all devices.
    """
    both = [mixed] if normal is None else [mixed, normal]
    balance = None
    if config.balance_classes:
        balance = class_balance(both, model.num_classes, sum_over_devices)
    labels, boxes, rating = None, None, None
    if config.auto_share:
        labels, boxes = agreement(model, teacher, both, sum_over_devices, balance)
        rating = even_rating(labels, model.num_classes) if config.mixed_augmentation else None
    elif config.label_share < 1:
        labels = boxes = jnp.float32(config.label_share)
    judged = both if config.mend_normal else [mixed]
    threshold = find_score_threshold(model, teacher, judged, config, sum_over_devices, balance)
    return Criteria(threshold, balance, labels, boxes, rating)


def rating_threshold_of(config: Any, criteria: Criteria, of_half: float) -> Array | float | None:
    """The rating at or below which a half's human boxes are left out; None: none is.

    Args:
      config: `config.mixtraining`.
      criteria: by which this step judges.
      of_half: the one that the config has for the half; 0: none.
    """
    if not config.mixed_augmentation:
        return None
    if criteria.rating_threshold is not None:
        return criteria.rating_threshold
    return of_half or None


def even_rating(share: Array, classes: int) -> Array:
    """The rating at which a label is as likely to be wrong as right, by Bayes' rule.

    Before the teacher is asked, a label is right with probability `share`, and else any of the
    other classes. What it then says of the class, given that there is an object, is taken for the
    chance of the evidence.

    Args:
      share: [] float32, how often labels are right.
      classes: number of classes, 2 at least.
    """
    return (1 - share) / (1 - share + share * (classes - 1))


def agreement(
    model: Detector,
    teacher: Params,
    predictions: Sequence[TeacherPredictions],
    sum_over_devices: SumOverDevices,
    balance: Array | None = None,
) -> tuple[Array, Array]:
    """How often the teacher agrees with the labels: in the class, and in the place.

    Args:
      model: the detector.
      teacher: its parameters.
      predictions: its predictions in this device's images.
      sum_over_devices: sums arrays over all devices.
      balance: [classes] float32 by which its probabilities of the classes are multiplied first.

    Returns:
      [] float32 each: the share of this step's human boxes whose class it holds for the best; and,
      of those it finds in that class, the share it draws alike (IoU of at least 0.75), or the
      former share where that is less. 1 where there are none.
    """
    named, count, alike, met = (jnp.zeros(()) for _ in range(4))
    for view, features, detections, _ in predictions:
        chances = class_probabilities(model, teacher, features, view.boxes)
        chances *= 1 if balance is None else balance
        named += ((chances.argmax(-1) == view.labels) & view.valid).sum()
        count += view.valid.sum()
        there = Targets(detections.boxes, detections.labels, detections.valid)
        overlaps, _ = nearest(human_boxes(view), there)
        alike += (overlaps >= ALIKE).sum()
        met += (overlaps >= SAME_OBJECT).sum()
    named, count, alike, met = sum_over_devices((named, count, alike, met))
    of_labels = jnp.where(count > 0, named / jnp.maximum(count, 1), 1.0)
    of_boxes = jnp.where(met > 0, alike / jnp.maximum(met, 1), 1.0)
    return of_labels, jnp.minimum(of_labels, of_boxes)


def class_balance(
    predictions: Sequence[TeacherPredictions], classes: int, sum_over_devices: SumOverDevices
) -> Array:
    """Factors [classes] that make the teacher's classes as common as people's in this step.

    With the odds of its detections' scores multiplied by them, the scores of a class sum to about
    that class's share of the human boxes. Detections are counted and not what the teacher says of
    human boxes: of a box where no object is it can say a class that it never finds. One box more of
    every class is counted as drawn and as found, the latter as often as its factor says: so no
    factor is infinite, and that of a class that is rarely drawn and found in the step is near 1. A
    teacher that learns from its own judgement can else forget the classes it is least sure of
    (compare ReMixMatch's distribution alignment, arXiv 1911.09785).

    Args:
      predictions: the teacher's, in this device's images.
      classes: number of classes.
      sum_over_devices: sums arrays over all devices.
    """

    def found_per_class(balance: Array) -> Array:
        weighed = [balance_scores(each.detections, balance) for each in predictions]
        total: Array = sum_over_devices(
            sum(_by_class(each.labels, each.valid * each.scores, classes) for each in weighed)
        )
        return total

    views = [each.view for each in predictions]
    labelled = sum_over_devices(sum(_by_class(v.labels, v.valid, classes) for v in views))
    balance = jnp.ones(classes)
    expected = labelled * found_per_class(balance).sum() / jnp.maximum(labelled.sum(), 1)
    for _ in range(ROUNDS):  # scores near 1 move less than their odds
        balance *= (expected + 1) / (found_per_class(balance) + balance)
    return jnp.where(labelled.sum() > 0, balance, 1.0)


def _by_class(labels: Array, amounts: Array, classes: int) -> Array:
    """Sums amounts [..., N] by class [classes]."""
    named = jax.nn.one_hot(labels, classes) * amounts[..., None]
    return named.reshape(-1, classes).sum(0)


def find_score_threshold(
    model: Detector,
    teacher: Params,
    predictions: Sequence[TeacherPredictions],
    config: Any,
    sum_over_devices: SumOverDevices,
    balance: Array | None = None,
) -> Array:
    """The score above which the teacher's detections are pseudo boxes.

    By `auto_count` or `auto_agreement`, whichever is above 0, or else `pseudo_score_threshold`.

    Args:
      model: the detector.
      teacher: its parameters.
      predictions: its predictions in this device's images.
      config: `config.mixtraining`.
      sum_over_devices: sums arrays over all devices.
      balance: [classes] float32 by which scores are multiplied first.
    """
    balanced = [
        each._replace(detections=balance_scores(each.detections, balance)) for each in predictions
    ]
    if config.auto_count:
        return threshold_by_count(balanced, config.auto_count, sum_over_devices)
    if config.auto_agreement:
        return threshold_by_agreement(model, teacher, balanced, config, sum_over_devices)
    return jnp.float32(config.pseudo_score_threshold)


def threshold_by_count(
    predictions: Sequence[TeacherPredictions], most: float, sum_over_devices: SumOverDevices
) -> Array:
    """The lowest score, in hundredths, with few enough detections above it; 1 without such.

    Args:
      predictions: the teacher's, in this device's images.
      most: detections above the score per human box of the step.
      sum_over_devices: sums arrays over all devices.
    """
    found, human = jnp.zeros(SCORES), jnp.zeros(())
    for view, _, detections, _ in predictions:
        found += _count_above(detections, detections.valid)
        human += view.valid.sum()
    found, human = sum_over_devices((found, human))
    return _least_score(found <= most * human)


def threshold_by_agreement(
    model: Detector,
    teacher: Params,
    predictions: Sequence[TeacherPredictions],
    config: Any,
    sum_over_devices: SumOverDevices,
) -> Array:
    """The lowest score, in hundredths, above which the teacher agrees with itself.

    Of the detections above it that overlap no human box at least `auto_agreement` are found again
    in the mirrored view; 1 where there is no such score, or fewer than ten such detections.

    Args:
      model: the detector.
      teacher: its parameters.
      predictions: its predictions in this device's images.
      config: `config.mixtraining`.
      sum_over_devices: sums arrays over all devices.
    """
    found, agreeing = jnp.zeros(SCORES), jnp.zeros(SCORES)
    for view, _, detections, _ in predictions:
        overlaps = box_ops.iou(detections.boxes, view.boxes) > config.iou_threshold
        overlaps &= view.valid[:, None]
        alone = detections.valid & ~overlaps.any(-1)
        same = alone & found_in_mirror(model, teacher, view, detections, config.agreement_iou)
        found += _count_above(detections, alone)
        agreeing += _count_above(detections, same)
    found, agreeing = sum_over_devices((found, agreeing))
    return _least_score((found >= FEWEST) & (agreeing >= config.auto_agreement * found))


def _count_above(detections: Detections, which: Array) -> Array:
    """How many [SCORES] of some detections, [B, K] bool, are above each score in hundredths."""
    above = detections.scores[..., None] > jnp.arange(SCORES) / SCORES
    return (which[..., None] & above).sum((0, 1))


def _least_score(good: Array) -> Array:
    """The lowest score in hundredths that is good [SCORES]; 1 where none is."""
    return jnp.min(jnp.where(good, jnp.arange(SCORES) / SCORES, 1.0))
