"""By what a step judges boxes: beyond the paper, all of it found in the step's own data.

Where labels are wrong, no score that human boxes suggest is the right threshold: what people leave
out is often another sort (small, cut by the border) than what they draw. But the teacher can tell:
an object is found again, in nearly the same place, when the image is mirrored; a false detection
often is not. Where most labels are wrong, no threshold is right: there labels are soft, and in
ratings and scores the teacher's classes are held to be as common as people's. All of this is off in
the paper's recipes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.models.detector import Detector
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.types import Array, Batch, Params, View

Sum = Callable[[Any], Any]

LEVELS = 100  # of the scores among which a threshold is looked for
ALIKE = 0.75  # IoU of two boxes that are drawn alike
FEWEST = 10  # detections it takes to judge a level


class Criteria(NamedTuple):
    """By what a step judges the teacher's boxes and the human ones; the same on all devices.

    Attributes:
      least_score: [] float32, the score above which detections are pseudo boxes.
      balance: [classes] float32 by which the teacher's probabilities of the classes are multiplied;
        None: they are as they are.
      shares: of the labels in class targets, and of the true boxes in the boxes' targets; None:
        there are no soft labels.
    """

    least_score: Array
    balance: Array | None = None
    shares: tuple[Array, Array] | None = None


def of_step(
    model: Detector, teacher: Params, batch: Batch, config: Any, sum_over_devices: Sum
) -> Criteria:
    """Returns what this step judges by.

    Args:
      model: the detector.
      teacher: its parameters.
      batch: this device's images, with a mixed half.
      config: `config.mixtraining`.
      sum_over_devices: sums arrays over all devices.
    """
    balance = None
    if config.balance_classes:
        balance = class_balance(model, teacher, batch, sum_over_devices)
    shares = None
    if config.auto_share:
        shares = agreement(model, teacher, batch, sum_over_devices, balance)
    elif config.label_share < 1:
        shares = (jnp.float32(config.label_share),) * 2
    least = least_score(model, teacher, batch, config, sum_over_devices, balance)
    return Criteria(least, balance, shares)


def agreement(
    model: Detector,
    teacher: Params,
    batch: Batch,
    sum_over_devices: Sum,
    balance: Array | None = None,
) -> tuple[Array, Array]:
    """How often the teacher agrees with the labels: in the class, and in the place.

    Args:
      model: the detector.
      teacher: its parameters.
      batch: this device's images, with a mixed half.
      sum_over_devices: sums arrays over all devices.
      balance: [classes] float32 by which its probabilities of the classes are multiplied first.

    Returns:
      [] float32 each, shares of this step's human boxes: those whose class it holds for the best;
      and those it draws with an IoU of at least 0.75 when asked about them, or the former share
      where that is less: of an object that is not there no box is right. 1 where there are none.
    """
    named, drawn, count = jnp.zeros(()), jnp.zeros(()), jnp.zeros(())
    for view in (batch.weak, batch.normal):
        assert view is not None
        seen = teaching.see(model, teacher, view, view)
        probabilities, boxes = teaching.judge(model, teacher, seen, view.boxes)
        chances = probabilities[..., :-1] * (1 if balance is None else balance)
        same = chances.argmax(-1) == view.labels
        alike = jnp.diagonal(box_ops.iou(view.boxes, boxes), axis1=-2, axis2=-1) >= ALIKE
        named += (same & view.valid).sum()
        drawn += (alike & view.valid).sum()
        count += view.valid.sum()
    named, drawn, count = sum_over_devices((named, drawn, count))
    shares = jnp.where(count > 0, jnp.array([named, drawn]) / jnp.maximum(count, 1), 1.0)
    return shares[0], shares.min()


def class_balance(model: Detector, teacher: Params, batch: Batch, sum_over_devices: Sum) -> Array:
    """How much more often each class [classes] is labelled in this step than the teacher says.

    What it says of the human boxes is asked as if each held an object. One box more is counted of
    every class on either side, so that the ratio is finite. It is of this step's boxes alone, so a
    rare class has ratios far from 1. A teacher that learns from its own judgement can else forget
    the classes it is least sure of (ReMixMatch's distribution alignment, arXiv 1911.09785, where
    the ratio is one over many batches).

    Args:
      model: the detector.
      teacher: its parameters.
      batch: this device's images, with a mixed half.
      sum_over_devices: sums arrays over all devices.
    """
    labelled, said = jnp.zeros(model.num_classes), jnp.zeros(model.num_classes)
    for view in (batch.weak, batch.normal):
        assert view is not None
        seen = teaching.see(model, teacher, view, view)
        chances = teaching.classes_of(model, teacher, seen, view.boxes)
        said += (chances * view.valid[..., None]).sum((0, 1))
        named = jax.nn.one_hot(view.labels, model.num_classes) * view.valid[..., None]
        labelled += named.sum((0, 1))
    labelled, said = sum_over_devices((labelled, said))
    return (labelled + 1) / (said + 1)


def least_score(
    model: Detector,
    teacher: Params,
    batch: Batch,
    config: Any,
    sum_over_devices: Sum,
    balance: Array | None = None,
) -> Array:
    """The score above which the teacher's detections are pseudo boxes.

    With `auto_count` c > 0 it is the lowest score, to a hundredth, above which this step's
    detections are at most c times as many as its human boxes. With `auto_agreement` a > 0 it is the
    lowest such that a share a of the detections above it that overlap no human box are there in the
    mirrored view too; 1 where no score is, or fewer than ten detections can tell. Else it is
    `pseudo_score_threshold`.

    Args:
      model: the detector.
      teacher: its parameters.
      batch: this device's images, with a mixed half.
      config: `config.mixtraining`.
      sum_over_devices: sums arrays over all devices.
      balance: [classes] float32 by which scores are multiplied first.
    """
    if not (config.auto_agreement or config.auto_count):
        return jnp.float32(config.pseudo_score_threshold)
    assert batch.weak is not None
    views: Sequence[View] = (batch.weak, batch.normal) if config.mend_normal else (batch.weak,)
    levels = jnp.arange(LEVELS) / LEVELS
    found, agreeing, human = jnp.zeros(LEVELS), jnp.zeros(LEVELS), jnp.zeros(())
    for view in views:
        teachers = teaching.see(model, teacher, view, view)
        seen, _ = teaching.find(model, teacher, teachers, 0, balance)
        if config.auto_count:
            found += (seen.valid[..., None] & (seen.scores[..., None] > levels)).sum((0, 1))
            human += view.valid.sum()
            continue
        overlaps = box_ops.iou(seen.boxes, view.boxes) > config.iou_threshold
        overlaps &= view.valid[:, None]
        alone = seen.valid & ~overlaps.any(-1)
        same = alone & teaching.agrees(model, teacher, view, seen, config.agreement_iou)
        above = seen.scores[..., None] > levels
        found += (alone[..., None] & above).sum((0, 1))
        agreeing += (same[..., None] & above).sum((0, 1))
    found, agreeing, human = sum_over_devices((found, agreeing, human))
    if config.auto_count:
        return jnp.min(jnp.where(found <= config.auto_count * human, levels, 1.0))
    good = (found >= FEWEST) & (agreeing >= config.auto_agreement * found)
    return jnp.min(jnp.where(good, levels, 1.0))
