"""Several looks at the same images made into one.

A mirrored image, another scale or another checkpoint errs elsewhere. Detections that mean one
object are fused into one box, and ratings of human boxes are averaged. One look stays as it is.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.labels import Detections, Floats, Ints, rows_by_image
from mixtrain_jax.ops.numpy_boxes import iou

SAME_IOU = 0.5  # of detections of two looks that mean one object
TINY = 1e-12  # least score with which a box counts where boxes are averaged


@dataclasses.dataclass(frozen=True)
class Merged:
    """What several looks say together.

    Attributes:
      look: fused detections, sorted by image and falling score, and mean ratings.
      agreement: [N] share of the looks that see each detection, in (0, 1].
      steadiness: [N] mean IoU of a detection with what the looks saw of it; 1 for a single look.
    """

    look: Look
    agreement: Floats
    steadiness: Floats


def merge(looks: Sequence[Look], images: int) -> Merged:
    """Fuses the detections of several looks, class by class, and averages their ratings.

    From the strongest on, a detection gathers the best one of each look with IoU >= `SAME_IOU`. The
    fused box is their mean weighted by score; the fused score is the sum of their scores over the
    number of looks, so that what only one look sees counts little.

    Args:
      looks: of the same images and the same human boxes; at least one.
      images: the number of images.
    """
    single = looks[0].detections
    if len(looks) == 1:
        ones = np.ones(len(single))
        return Merged(looks[0], ones, ones)
    joined = Detections(
        *(
            np.concatenate([getattr(look.detections, name) for look in looks])
            for name in ("image", "boxes", "labels", "scores")
        )
    )
    origin = np.repeat(np.arange(len(looks)), [len(look.detections) for look in looks])
    groups = [
        group
        for rows in rows_by_image(joined.image, images)
        for label in np.unique(joined.labels[rows])
        for group in _groups(joined, origin, rows[joined.labels[rows] == label])
    ]
    leaders = np.array([group[0] for group in groups], np.int64)
    boxes = np.zeros((len(groups), 4))
    scores, agreement, steadiness = (np.zeros(len(groups)) for _ in range(3))
    for place, group in enumerate(groups):
        weights = joined.scores[group].astype(np.float64)
        boxes[place] = np.average(joined.boxes[group], axis=0, weights=np.maximum(weights, TINY))
        scores[place] = weights.sum() / len(looks)
        agreement[place] = len(group) / len(looks)
        steadiness[place] = iou(boxes[place][None], joined.boxes[group]).mean()
    order = np.lexsort((-scores, joined.image[leaders]))
    leaders = leaders[order]
    fused = Detections(
        joined.image[leaders],
        boxes[order].astype(np.float32),
        joined.labels[leaders],
        scores[order].astype(np.float32),
    )
    look = Look(
        fused,
        _mean([look.probabilities for look in looks]),
        _mean([look.refined for look in looks]),
    )
    return Merged(look, agreement[order], steadiness[order])


def _groups(found: Detections, origin: Ints, rows: Ints) -> list[Ints]:
    """Returns groups of rows that mean one object, at most one row of each look, leader first."""
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    table = iou(found.boxes[rows], found.boxes[rows])
    free = np.ones(len(rows), bool)
    groups = []
    for leader in range(len(rows)):
        if not free[leader]:
            continue
        free[leader] = False
        group = [leader]
        mates = np.flatnonzero(free & (table[leader] >= SAME_IOU))
        mates = mates[origin[rows[mates]] != origin[rows[leader]]]
        best = mates[np.argsort(-table[leader, mates], kind="stable")]
        _, first = np.unique(origin[rows[best]], return_index=True)
        group += best[first].tolist()
        free[group] = False
        groups.append(rows[group])
    return groups


def _mean(arrays: Sequence[Floats | None]) -> Floats | None:
    """Returns the mean of those that are there; None if none is."""
    there = [array for array in arrays if array is not None]
    if not there:
        return None
    total = there[0].astype(np.float64)
    for array in there[1:]:  # without a copy of all of them
        total += array
    return total / len(there)
