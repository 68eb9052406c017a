"""What a step tells of itself: losses of each half, and whether the teacher helps."""

from typing import NamedTuple

import jax.numpy as jnp

from mixtrain_jax.mixtraining.criteria import Criteria
from mixtrain_jax.mixtraining.targets import BoxAssignment
from mixtrain_jax.models.roi_heads import StageRecord
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.types import Array, Detections, SumOverDevices, Targets, View


class Share(NamedTuple):
    """A metric that is a share: sums over parts of a batch are taken of both, then it is divided.

    Attributes:
      part: [] float32, over all devices.
      whole: [] float32, likewise.
    """

    part: Array
    whole: Array


Numbers = dict[str, Array]
Metrics = dict[str, Array | Share]


def as_numbers(metrics: Metrics) -> Numbers:
    """The same with every share divided; 0 where there was nothing."""

    def number(value: Array | Share) -> Array:
        if not isinstance(value, Share):
            return value
        return value.part / jnp.where(value.whole > 0, value.whole, 1)

    return {name: number(value) for name, value in metrics.items()}


def half_metrics(
    half: str, losses: Numbers, records: list[StageRecord], sum_over_devices: SumOverDevices
) -> Metrics:
    """Names the losses of a half ("normal/rpn_boxes"), and the accuracy of its sampled RoIs."""
    metrics: Metrics = {f"{half}/{name}": sum_over_devices(value) for name, value in losses.items()}
    for stage, record in enumerate(records):
        metrics[f"{half}/stage{stage}_accuracy"] = _share(
            record.correct, record.valid, sum_over_devices
        )
    return metrics


def box_metrics(
    assignment: BoxAssignment, suffix: str, sum_over_devices: SumOverDevices
) -> Metrics:
    """Says what became of boxes, as means over images."""
    images = sum_over_devices(jnp.float32(len(assignment.kept)))
    return {
        f"boxes/{name}{suffix}": sum_over_devices(mask.sum()) / images
        for name, mask in assignment._asdict().items()
    }


def criteria_metrics(criteria: Criteria) -> Metrics:
    """Says by what a step judges boxes."""
    numbers = criteria._replace(balance=None)._asdict()  # which is of each class
    return {f"teacher/{name}": value for name, value in numbers.items() if value is not None}


def teacher_metrics(
    human: Targets,
    ratings: Array,
    detections: Detections,
    exact: Array,
    assignment: BoxAssignment,
    weak: View,
    sum_over_devices: SumOverDevices,
) -> Metrics:
    """Sums up what the teacher made of the mixed half.

    Box counts are means over the images of the mixed half. `easy` is the share of human boxes the
    teacher rates easy, overall and by size (COCO's limits, in the original image; the weak view
    tells, which is never turned). See `step.TeacherOutput` for the other arguments.
    """
    images = sum_over_devices(jnp.float32(len(weak.image)))
    metrics = box_metrics(assignment, "", sum_over_devices)
    metrics["boxes/human"] = sum_over_devices(human.valid.sum()) / images
    easy = assignment.kept | assignment.replaced
    area = box_ops.area(weak.boxes) / jnp.abs(jnp.linalg.det(weak.matrix[:, :2, :2]))[:, None]
    metrics["teacher/easy"] = _share(easy, human.valid, sum_over_devices)
    for name, (low, high) in box_ops.COCO_SIZES.items():
        group = human.valid & (area >= low) & (area < high)
        metrics[f"teacher/easy_{name}"] = _share(easy & group, group, sum_over_devices)
    metrics["teacher/rating"] = _share(ratings * human.valid, human.valid, sum_over_devices)
    metrics["teacher/score"] = _share(
        detections.scores * detections.valid, detections.valid, sum_over_devices
    )
    full = detections.valid.all(-1) | ~exact
    metrics["teacher/at_limit"] = sum_over_devices(full.sum()) / images
    return metrics


def _share(part: Array, whole: Array, sum_over_devices: SumOverDevices) -> Share:
    return Share(*(jnp.float32(sum_over_devices(x.sum())) for x in (part, whole)))
