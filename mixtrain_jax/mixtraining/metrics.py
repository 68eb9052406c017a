"""What a step tells of itself: losses of each half, and whether the teacher helps.

Everything here is of one device's share of a batch; `training/update.py` sums it.
"""

from typing import NamedTuple

import jax.numpy as jnp

from mixtrain_jax.mixtraining.criteria import Criteria
from mixtrain_jax.mixtraining.targets import BoxAssignment, TeacherOutput
from mixtrain_jax.models.roi_heads import StageRecord
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.types import Array, View


class Ratio(NamedTuple):
    """A metric that is a ratio: over devices and parts of a batch both numbers are summed first.

    Attributes:
      part: [] float32.
      whole: [] float32.
    """

    part: Array
    whole: Array


Numbers = dict[str, Array]
Metrics = dict[str, Array | Ratio]


def as_numbers(metrics: Metrics) -> Numbers:
    """The same with every ratio divided; 0 where there was nothing."""

    def number(value: Array | Ratio) -> Array:
        if not isinstance(value, Ratio):
            return value
        return value.part / jnp.where(value.whole > 0, value.whole, 1)

    return {name: number(value) for name, value in metrics.items()}


def half_metrics(half: str, losses: Numbers, records: list[StageRecord]) -> Metrics:
    """Names the losses of a half ("normal/rpn_boxes"), and the accuracy of its sampled RoIs."""
    metrics: Metrics = {f"{half}/{name}": value for name, value in losses.items()}
    for stage, record in enumerate(records):
        metrics[f"{half}/stage{stage}_accuracy"] = _ratio(record.correct, record.valid)
    return metrics


def box_metrics(assignment: BoxAssignment, suffix: str = "") -> Metrics:
    """Says what became of boxes, as means over images."""
    return {
        f"boxes/{name}{suffix}": _per_image(mask) for name, mask in assignment._asdict().items()
    }


def criteria_metrics(criteria: Criteria) -> Metrics:
    """Says by what a step judges boxes, which is the same on all devices."""
    numbers = criteria._replace(balance=None)._asdict()  # which is of each class
    return {
        f"teacher/{name}": Ratio(value, jnp.ones(()))
        for name, value in numbers.items()
        if value is not None
    }


def teacher_metrics(output: TeacherOutput, weak: View) -> Metrics:
    """Sums up what the teacher made of the mixed half.

    Box counts are means over the images of the mixed half. `easy` is the share of human boxes the
    teacher rates easy, overall and by size (COCO's limits, in the original image).

    Args:
      output: what the teacher made of the images.
      weak: its view of them, by which sizes are told, as it is never turned.
    """
    human, detections, assignment = output.human, output.detections, output.assignment
    metrics = box_metrics(assignment) | {"boxes/human": _per_image(human.valid)}
    easy = assignment.kept | assignment.replaced
    area = box_ops.area(weak.boxes) / jnp.abs(jnp.linalg.det(weak.matrix[:, :2, :2]))[:, None]
    metrics["teacher/easy"] = _ratio(easy, human.valid)
    for name, (low, high) in box_ops.COCO_SIZES.items():
        group = human.valid & (area >= low) & (area < high)
        metrics[f"teacher/easy_{name}"] = _ratio(easy & group, group)
    metrics["teacher/rating"] = _ratio(output.ratings * human.valid, human.valid)
    metrics["teacher/score"] = _ratio(detections.scores * detections.valid, detections.valid)
    metrics["teacher/at_limit"] = _per_image(detections.valid.all(-1) | ~output.exact)
    return metrics


def _ratio(part: Array, whole: Array) -> Ratio:
    return Ratio(jnp.float32(part.sum()), jnp.float32(whole.sum()))


def _per_image(mask: Array) -> Ratio:
    """How many of [B, ...] are true, an image."""
    return Ratio(jnp.float32(mask.sum()), jnp.float32(len(mask)))
