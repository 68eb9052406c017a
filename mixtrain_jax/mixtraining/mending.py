"""Beyond the paper: a threshold found in the data, and mixed targets for the normal half too.

Where labels are wrong, the normal half of a batch goes on teaching what is wrong with them, such as
that an object without a box is background. And no score that human boxes suggest is the right
threshold: what people leave out is often another sort (small, cut by the border) than what they
draw. But the teacher can tell: an object is found again, in nearly the same place, when the image
is mirrored; a false detection often is not. All of this is off in the paper's recipes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mixtrain_jax.mixtraining import targets as mixing
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.models.detector import Detector
from mixtrain_jax.models.roi_heads import BackgroundWeight
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.types import Array, Batch, Params, Targets, View

Sum = Callable[[Any], Any]

LEVELS = 100  # of the scores among which a threshold is looked for
FEWEST = 10  # detections it takes to judge a level


def least_score(
    model: Detector, teacher: Params, batch: Batch, config: Any, sum_over_devices: Sum
) -> Array:
    """The score above which the teacher's detections are pseudo boxes.

    With `auto_agreement` a > 0 it is the lowest score, to a hundredth, such that a share a of this
    step's detections above it that overlap no human box are there in the mirrored view too; 1 where
    no score is, or fewer than ten detections can tell. Else it is `pseudo_score_threshold`.

    Args:
      model: the detector.
      teacher: its parameters.
      batch: this device's images, with a mixed half.
      config: `config.mixtraining`.
      sum_over_devices: sums arrays over all devices.
    """
    if not config.auto_agreement:
        return jnp.float32(config.pseudo_score_threshold)
    assert batch.weak is not None
    views: Sequence[View] = (batch.weak, batch.normal) if config.mend_normal else (batch.weak,)
    levels = jnp.arange(LEVELS) / LEVELS
    found, agreeing = jnp.zeros(LEVELS), jnp.zeros(LEVELS)
    for view in views:
        seen, _ = teaching.find(model, teacher, teaching.see(model, teacher, view, view), 0)
        overlaps = box_ops.iou(seen.boxes, view.boxes) > config.iou_threshold
        overlaps &= view.valid[:, None]
        alone = seen.valid & ~overlaps.any(-1)
        same = alone & teaching.agrees(model, teacher, view, seen, config.agreement_iou)
        above = seen.scores[..., None] > levels
        found += (alone[..., None] & above).sum((0, 1))
        agreeing += (same[..., None] & above).sum((0, 1))
    found, agreeing = sum_over_devices((found, agreeing))
    good = (found >= FEWEST) & (agreeing >= config.auto_agreement * found)
    return jnp.min(jnp.where(good, levels, 1.0))


def normal_half(
    model: Detector,
    teacher: Params,
    view: View,
    least: Array,
    config: Any,
    sum_over_devices: Sum,
) -> tuple[Targets, BackgroundWeight | None, dict[str, Array]]:
    """Targets of the normal half: its human boxes or, with `mend_normal`, mixed targets.

    They are made as those of the mixed half are, of what the teacher says of the same view: its
    boxes replace human ones or join them. Only nothing is too hard here: human boxes are left out
    where it rates them as low as wrong ones, at or below `normal_gt_score_threshold`.

    Args:
      model: the detector.
      teacher: its parameters.
      view: the normal half.
      least: what `least_score` returned.
      config: `config.mixtraining`.
      sum_over_devices: sums arrays over all devices.

    Returns:
      The targets, what weighs the background (or None), and metrics over all devices.
    """
    human = Targets(view.boxes, view.labels, view.valid)
    if not (config.mend_normal or config.soften_normal):
        return human, None, {}
    seen = teaching.see(model, teacher, view, view)
    weight = teaching.background(model, teacher, seen) if config.soften_normal else None
    if not config.mend_normal:
        return human, weight, {}
    found, _ = teaching.find(model, teacher, seen, least)
    valid = found.valid
    if config.must_agree:
        valid = teaching.agrees(model, teacher, view, found, config.agreement_iou)
    pseudo = Targets(found.boxes, found.labels, valid)
    ratings = teaching.rate(model, teacher, seen, human)
    combined, assignment = mixing.combine(
        human, ratings, pseudo, config, config.normal_gt_score_threshold
    )
    images = sum_over_devices(jnp.float32(len(view.image)))
    metrics = {
        f"boxes/{name}_normal": sum_over_devices(mask.sum()) / images
        for name, mask in assignment._asdict().items()
    }
    return jax.lax.stop_gradient(combined), weight, metrics
