"""Mixed targets: which human boxes stay, and which of the teacher's boxes join them.

MixTraining, sections 3.2 and 3.3: a human box the teacher rates too low is too hard under strong
augmentation and is left out; one that overlaps a pseudo box is replaced by it; pseudo boxes that
overlap no human box are missing labels found. Beyond the paper, boxes rated above
`replace_score_threshold` stay, and a pseudo box that overlaps one of these replaces none. Static
shapes: N human and P pseudo slots, joined and masked.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.types import Array, Detections, Targets, View

SAME_OBJECT = 0.5  # IoU with which two boxes of a class are said to be of one object


class BoxAssignment(NamedTuple):
    """What became of each box of a half of the batch; all are bool and False for padding.

    Attributes:
      kept: [B, N] human boxes that are targets.
      replaced: [B, N] human boxes that a pseudo box replaces.
      dropped: [B, N] human boxes too hard to be targets.
      mending: [B, P] pseudo boxes that are targets and replace a human box.
      missing: [B, P] pseudo boxes that are targets and overlap none.
    """

    kept: Array
    replaced: Array
    dropped: Array
    mending: Array
    missing: Array


class TeacherOutput(NamedTuple):
    """What the teacher made of a half of the batch, for pictures and for counting.

    Attributes:
      detections: those of which pseudo boxes are made, in pixels of the teacher's view.
      human: the human boxes, in pixels of the student's view.
      ratings: [B, N] float32, the teacher's probability of each human box's class.
      targets: what the student is trained to find in its view.
      assignment: what became of each human and each pseudo box.
      exact: [B] bool, False where the teacher had more candidates than it could weigh.
    """

    detections: Detections
    human: Targets
    ratings: Array
    targets: Targets
    assignment: BoxAssignment
    exact: Array


def human_boxes(view: View) -> Targets:
    """The boxes that people drew, in pixels of a view."""
    return Targets(view.boxes, view.labels, view.valid)


def combine(
    human: Targets,
    ratings: Array,
    pseudo: Targets,
    config: Any,
    rating_threshold: Array | float | None,
) -> tuple[Targets, BoxAssignment]:
    """Joins human and pseudo boxes into the targets of a view.

    Args:
      human: N human boxes per image, in pixels of the view.
      ratings: [B, N] float32, the teacher's probability of each human box's class.
      pseudo: P pseudo boxes per image, in pixels of the view.
      config: `config.mixtraining`.
      rating_threshold: rating at or below which a human box is left out; None: none is.

    Returns:
      Targets with N + P slots, human boxes first, and what became of every box.
    """
    easy = human.valid
    if rating_threshold is not None:
        easy &= ratings > rating_threshold
    overlaps = box_ops.iou(human.boxes, pseudo.boxes) > config.iou_threshold
    overlaps &= human.valid[..., :, None] & pseudo.valid[..., None, :]
    # With a threshold of 1 every box is, as in the paper; a box that is left out always is.
    all_of_them = config.replace_score_threshold >= 1
    replaceable = all_of_them | ~easy | (ratings <= config.replace_score_threshold)
    replaces = overlaps.any(-2) & ~(overlaps & ~replaceable[..., None]).any(-2)

    overlaps_replacing = (overlaps & replaces[..., None, :]).any(-1)
    replaced = easy & replaceable & overlaps_replacing & config.replace_boxes
    assignment = BoxAssignment(
        kept=easy & ~replaced,
        replaced=replaced,
        dropped=human.valid & ~easy,
        mending=pseudo.valid & replaces & config.replace_boxes,
        missing=pseudo.valid & ~overlaps.any(-2) & config.add_missing,
    )
    targets = join(
        Targets(human.boxes, human.labels, assignment.kept),
        Targets(pseudo.boxes, pseudo.labels, assignment.mending | assignment.missing),
    )
    return targets, assignment


def join(first: Targets, second: Targets) -> Targets:
    """The N boxes of one table and the P of another, as N + P."""
    return Targets(
        jnp.concatenate([first.boxes, second.boxes], axis=-2),
        jnp.concatenate([first.labels, second.labels], axis=-1),
        jnp.concatenate([first.valid, second.valid], axis=-1),
    )


def nearest(human: Targets, found: Targets) -> tuple[Array, Array]:
    """The largest IoU [B, N] of each human box with a found one of its class, and which that is."""
    overlaps = box_ops.iou(human.boxes, found.boxes)
    same = human.labels[..., :, None] == found.labels[..., None, :]
    same &= human.valid[..., :, None] & found.valid[..., None, :]
    overlaps = jnp.where(same, overlaps, 0)
    return overlaps.max(-1), overlaps.argmax(-1)


def draw_anew(human: Targets, found: Targets, share: Array) -> Targets:
    """Beyond the paper: draws human boxes between themselves and what the teacher finds there.

    Args:
      human: N human boxes per image.
      found: P detections of the teacher, in pixels of the same view.
      share: [] float32, of the human box in the new one.

    Returns:
      The human boxes; those that a detection of their class overlaps by IoU of at least 0.5 are so
      much of themselves, and for the rest the detection that overlaps most.
    """
    overlap, which = nearest(human, found)
    drawn = jnp.take_along_axis(found.boxes, which[..., None], axis=-2)
    mean = share * human.boxes + (1 - share) * drawn
    boxes = jnp.where((overlap >= SAME_OBJECT)[..., None], mean, human.boxes)
    return Targets(boxes, human.labels, human.valid)
