"""What the teacher does: it looks once at the weak view, and is then asked three things.

Which objects are there, how sure it is of each human box, and how much each RoI looks like
background. Pure functions of the teacher's parameters and the weak view; nothing here has a
gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.models.detector import Detector, call
from mixtrain_jax.models.roi_heads import Soften
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.types import Array, Detections, Params, Targets, View


class Look(NamedTuple):
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


def look(
    model: Detector, teacher: Params, weak: View, strong: View, keys: Array | None = None
) -> Look:
    """Computes the teacher's features of the weak view.

    Args:
      model: the detector.
      teacher: its parameters.
      weak: the photographs as the teacher sees them.
      strong: the same photographs as the student sees them; only its matrices are used.
      keys: [B] PRNG keys that switch the teacher's stochastic depth on, as the released code has
        it.
    """
    pyramid = call(model, teacher, "features", weak.image, weak.size, keys)
    return Look(
        jax.lax.stop_gradient(pyramid),
        weak.size,
        to_strong=_between(weak.matrix, strong.matrix),
        to_weak=_between(strong.matrix, weak.matrix),
    )


def find(
    model: Detector, teacher: Params, look: Look, threshold: float
) -> tuple[Detections, Array]:
    """Returns the teacher's detections in the weak view with a score above the threshold.

    Also returns [B] bool, False where the detector had more candidates than it could weigh.
    """
    proposals = call(model, teacher, "proposals", look.pyramid, look.size)
    found, exact = call(model, teacher, "detect", look.pyramid, look.size, proposals)
    return found.replace(valid=found.valid & (found.scores > threshold)), exact


def pseudo_boxes(found: Detections, look: Look, strong_size: Array) -> Targets:
    """Carries detections from the weak to the strong view; without area they are not valid."""
    boxes, seen = box_ops.transform(found.boxes, look.to_strong, strong_size)
    return Targets(boxes, found.labels, found.valid & seen)


def rate(model: Detector, teacher: Params, look: Look, human: Targets) -> Array:
    """Returns the teacher's probability [B, N] of each human box's own class (section 3.2).

    Args:
      model: the detector.
      teacher: its parameters.
      look: what `look` returned.
      human: human boxes in pixels of the strong view; padding is rated 0.
    """
    boxes, _ = box_ops.transform(human.boxes, look.to_weak, look.size)
    probabilities = call(model, teacher, "score_boxes", look.pyramid, look.size, boxes)
    own = jnp.take_along_axis(probabilities, human.labels[..., None], axis=-1)[..., 0]
    return jnp.where(human.valid, own, 0)


def background(model: Detector, teacher: Params, look: Look) -> Soften:
    """Returns a function of (stage, RoIs in the strong view): the teacher's background probability.

    In Cascade R-CNN each stage of the student is answered by the same stage of the teacher.
    """

    def soften(stage: int, rois: Array) -> Array:
        boxes, _ = box_ops.transform(rois, look.to_weak, look.size)
        probabilities = call(model, teacher, "score_boxes", look.pyramid, look.size, boxes, stage)
        return jax.lax.stop_gradient(probabilities[..., -1])

    return soften


def _between(source: Array, target: Array) -> Array:
    """Returns the matrix from one view to another, given those from the photograph to each."""
    exact = jax.lax.Precision.HIGHEST  # accelerators round products of float32 otherwise
    return jnp.matmul(target, jnp.linalg.inv(source), precision=exact)
