"""Where average precision is lost: by kind of error, by class, by size, by threshold, by image.

The kinds and what each of them costs follow TIDE (Bolya et al., "TIDE: A General Toolbox for
Identifying Object Detection Errors", ECCV 2020): a false positive has one kind, by the ground truth
box that it overlaps most; a kind's cost is the AP50 gained if all errors of that kind were mended
and nothing else. NumPy in, a dictionary of plain numbers out.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtrain_jax.auditing.labels import rows_by_image
from mixtrain_jax.evaluation.working_point import MOST
from mixtrain_jax.ops.boxes import COCO_SIZES
from mixtrain_jax.ops.numpy_boxes import covered, iou

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASS, PLACE, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
FOREGROUND, BACK = 0.5, 0.1  # IoU of a hit, and below which a detection is on background
RECALLS = np.linspace(0, 1, 101)  # at which precision is read, as COCO does


@dataclasses.dataclass(frozen=True)
class Boxes:
    """N boxes of I images.

    Attributes:
      image: [N] int, the row of the image, in 0..I-1.
      boxes: [N, 4] float, x1 y1 x2 y2 in pixels of the original image.
      labels: [N] int, classes in 0..K-1.
      scores: [N] float; None for the truth.
    """

    image: Ints
    boxes: Floats
    labels: Ints
    scores: Floats | None = None


@dataclasses.dataclass(frozen=True)
class _Matches:
    """What became of N detections and T true boxes at IoU 0.5.

    Attributes:
      hit: [N] the true box that a detection finds; -1 for a false positive.
      kind: [N] the kind of a false positive; -1 for a hit.
      target: [N] the true box whose detection it would be, were it mended; -1 without one.
      found: [T] bool.
      missed: [T] bool: no hit, and no false positive that mending would make one.
    """

    hit: Ints
    kind: Ints
    target: Ints
    found: Bools
    missed: Bools


def analyse(
    found: Boxes,
    truth: Boxes,
    class_names: Sequence[str],
    images: int,
) -> dict[str, Any]:
    """Takes the detections of a data set apart.

    Args:
      found: detections with scores, those that count; see `counted`.
      truth: what is there; crowds left out.
      class_names: of the K classes.
      images: the number of images.

    Returns:
      "AP50"; "lost": {kind: AP50 that mending it would gain}; "counts": {kind: errors};
      "per_class": [{"name", "boxes", "AP50", "lost", "threshold", "f1", "precision", "recall"}],
      threshold being the score with the best F1; "per_size": {size: {"boxes", "AP50", "found"}},
      found being the share that any detection hits; "curves": {name: [(recall, precision)]};
      "confusion": [K + 1][K + 1] counts at each class's best threshold, rows the truth, columns
      the detection, the last of each "nothing"; "images": [{"image", "hits", "false", "missed"}]
      at the same thresholds, the worst first.
    """
    assert found.scores is not None
    found = _by_score(found)
    groups = _groups(found, truth, images)
    matches = _match(found, truth, groups)
    scores = np.asarray(found.scores, np.float64)
    classes = range(len(class_names))
    base = _per_class_ap(matches.hit >= 0, found.labels, truth.labels, len(class_names))
    mended = {
        kind: _mend(kind, matches, found.labels, truth.labels, len(class_names))
        for kind in range(len(KINDS))
    }
    chosen = [_best_f1(matches.hit >= 0, scores, found.labels, truth.labels, c) for c in classes]
    thresholds = np.array([threshold for threshold, _, _, _ in chosen])
    kept = scores >= thresholds[found.labels] if len(scores) else np.zeros(0, bool)
    return {
        "AP50": _mean(base),
        "lost": {
            name: max(_mean(mended[kind]) - _mean(base), 0.0) for kind, name in enumerate(KINDS)
        },
        "counts": {
            name: int(matches.missed.sum() if kind == MISSED else (matches.kind == kind).sum())
            for kind, name in enumerate(KINDS)
        },
        "per_class": [
            {
                "name": class_names[c],
                "boxes": int((truth.labels == c).sum()),
                "AP50": _number(base[c]),
                "lost": {
                    name: max(_number(mended[kind][c]) - _number(base[c]), 0.0)
                    for kind, name in enumerate(KINDS)
                },
                **dict(zip(("threshold", "f1", "precision", "recall"), chosen[c])),
            }
            for c in classes
        ],
        "per_size": _per_size(matches, found, truth, len(class_names)),
        "curves": {
            class_names[c]: _curve(matches.hit >= 0, found.labels, truth.labels, c)
            for c in classes
            if (truth.labels == c).any()
        },
        "confusion": _confusion(found, truth, kept, groups, len(class_names)),
        "images": _images(matches, kept, found, truth, images),
    }


def average_precision(hits: Bools, positives: int) -> float:
    """Returns COCO's AP at one IoU: precision, made non-increasing, read at 101 recalls.

    Args:
      hits: [N] by falling score.
      positives: how many there are to find; with none the result is nan.
    """
    if not positives:
        return float("nan")
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(right / positives, RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(place, len(hits))].mean())


def _groups(found: Boxes, truth: Boxes, images: int) -> list[tuple[Ints, Ints, Floats]]:
    """Returns for each image its detections, its true boxes, and their IoU."""
    rows = (rows_by_image(each.image, images) for each in (found, truth))
    return [
        (seen, there, iou(found.boxes[seen], truth.boxes[there]))
        for seen, there in zip(*rows, strict=True)
    ]


def counted(found: Boxes, truth: Boxes, crowds: Boxes, images: int) -> Boxes:
    """The detections that count, best first: in an image `MOST` of a class, none in a crowd of it.

    A hit of an object counts wherever it is.
    """
    found = _best_of_class(_by_score(found))
    if not len(crowds.labels):
        return found
    hit = _match(found, truth, _groups(found, truth, images)).hit >= 0
    return _rows(found, hit | ~_in_crowd(found, crowds, images))


def _best_of_class(found: Boxes) -> Boxes:
    """The first `MOST` detections of each class in each image, in their order."""
    order = np.lexsort((found.labels, found.image))  # stable
    image, labels = found.image[order], found.labels[order]
    new = np.append(True, (image[1:] != image[:-1]) | (labels[1:] != labels[:-1]))[: len(order)]
    place = np.arange(len(order))
    rank = place - np.maximum.accumulate(np.where(new, place, 0))
    return _rows(found, np.sort(order[rank < MOST]))


def _by_score(found: Boxes) -> Boxes:
    assert found.scores is not None
    return _rows(found, np.argsort(-found.scores, kind="stable"))


def _rows(found: Boxes, rows: Any) -> Boxes:
    return Boxes(*(np.asarray(getattr(found, f.name))[rows] for f in dataclasses.fields(found)))


def _in_crowd(found: Boxes, crowds: Boxes, images: int) -> Bools:
    """[N] bool: half of a detection at least lies in a crowd of its class."""
    inside = np.zeros(len(found.labels), bool)
    rows = (rows_by_image(each.image, images) for each in (found, crowds))
    for seen, there in zip(*rows, strict=True):
        same = found.labels[seen][:, None] == crowds.labels[there]
        share = covered(found.boxes[seen], crowds.boxes[there])
        inside[seen] = (same & (share >= FOREGROUND)).any(axis=1)
    return inside


def _match(found: Boxes, truth: Boxes, groups: list[tuple[Ints, Ints, Floats]]) -> _Matches:
    """Matches by falling score within classes, as COCO does, and names each false positive."""
    hit = np.full(len(found.labels), -1)
    kind, target = np.full(len(found.labels), -1), np.full(len(found.labels), -1)
    taken = np.zeros(len(truth.labels), bool)
    for seen, there, table in groups:
        same = found.labels[seen][:, None] == truth.labels[there]
        for row in range(len(seen)):
            free = np.where(same[row] & ~taken[there], table[row], 0)
            best = int(free.argmax()) if len(there) else 0
            if len(there) and free[best] >= FOREGROUND:
                hit[seen[row]] = there[best]
                taken[there[best]] = True
    for seen, there, table in groups:
        same = found.labels[seen][:, None] == truth.labels[there]
        for i in np.flatnonzero(hit[seen] < 0):
            detection = seen[i]
            own = np.where(same[i], table[i], 0).max(initial=0)
            other = np.where(same[i], 0, table[i]).max(initial=0)
            if own >= FOREGROUND:
                kind[detection] = DUPLICATE
            elif own >= BACK:
                kind[detection] = PLACE
                target[detection] = there[np.where(same[i], table[i], 0).argmax()]
            elif other >= FOREGROUND:
                kind[detection] = CLASS
                target[detection] = there[np.where(same[i], 0, table[i]).argmax()]
            elif other >= BACK:
                kind[detection] = BOTH
            else:
                kind[detection] = BACKGROUND
    missed = ~taken
    missed[target[target >= 0]] = False
    return _Matches(hit, kind, target, taken, missed)


def _mend(kind: int, matches: _Matches, labels: Ints, truth: Ints, classes: int) -> Floats:
    """Returns AP50 by class [K] with all errors of one kind mended.

    A wrong class or place becomes a hit of its true box, unless that box is found already or by a
    stronger one; then it goes, as do duplicates, background and what is wrong in both. Missed true
    boxes leave the count.
    """
    hits, labels = matches.hit >= 0, labels.copy()
    keep = np.ones(len(hits), bool)
    if kind == MISSED:
        return _per_class_ap(hits, labels, truth[~matches.missed], classes)
    wrong = np.flatnonzero(matches.kind == kind)  # by falling score
    keep[wrong] = False
    if kind in (CLASS, PLACE):
        taken = matches.found.copy()
        for detection in wrong:
            box = matches.target[detection]
            if not taken[box]:
                taken[box] = keep[detection] = hits[detection] = True
                labels[detection] = truth[box]
    return _per_class_ap(hits[keep], labels[keep], truth, classes)


def _per_class_ap(hits: Bools, labels: Ints, truth: Ints, classes: int) -> Floats:
    """Returns AP50 by class [K] of detections by falling score."""
    return np.array(
        [average_precision(hits[labels == c], int((truth == c).sum())) for c in range(classes)]
    )


def _best_f1(
    hits: Bools, scores: Floats, labels: Ints, truth: Ints, label: int
) -> tuple[float, float, float, float]:
    """Returns (threshold, F1, precision, recall) of a class where F1 is largest; 1 and zeros."""
    mine, positives = labels == label, int((truth == label).sum())
    if not mine.any() or not positives:
        return 1.0, 0.0, 0.0, 0.0
    right, count = np.cumsum(hits[mine]), np.arange(1, mine.sum() + 1)
    f1 = 2 * right / (count + positives)
    # Detections of one score stand or fall together.
    last = np.append(np.diff(scores[mine]) != 0, True)
    best = int(np.where(last, f1, -1).argmax())
    precision, recall = right[best] / count[best], right[best] / positives
    return float(scores[mine][best]), float(f1[best]), float(precision), float(recall)


def _curve(hits: Bools, labels: Ints, truth: Ints, label: int) -> list[tuple[float, float]]:
    """Returns at most 101 points (recall, precision) of a class."""
    mine = hits[labels == label]
    if not len(mine):
        return []
    right = np.cumsum(mine)
    recall = right / int((truth == label).sum())
    precision = np.maximum.accumulate((right / np.arange(1, len(mine) + 1))[::-1])[::-1]
    place = np.unique(np.searchsorted(recall, RECALLS[recall[-1] >= RECALLS], side="left"))
    return [(round(float(recall[p]), 4), round(float(precision[p]), 4)) for p in place]


def _per_size(
    matches: _Matches, found: Boxes, truth: Boxes, classes: int
) -> dict[str, dict[str, float]]:
    """Returns AP50 by size of the true box; false positives count where their own size lies."""
    sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
    area = sides[:, 0] * sides[:, 1]
    own = found.boxes[:, 2:] - found.boxes[:, :2]
    size = (
        np.where(matches.hit >= 0, area[matches.hit], own[:, 0] * own[:, 1])
        if len(area)
        else (own[:, 0] * own[:, 1])
    )
    result = {}
    for name, (low, high) in COCO_SIZES.items():
        there, mine = (area >= low) & (area < high), (size >= low) & (size < high)
        hits = matches.hit[mine] >= 0
        ap = _per_class_ap(hits, found.labels[mine], truth.labels[there], classes)
        result[name] = {
            "boxes": int(there.sum()),
            "AP50": _mean(ap) if there.any() else float("nan"),
            "found": float(matches.found[there].mean()) if there.any() else float("nan"),
        }
    return result


def _confusion(
    found: Boxes,
    truth: Boxes,
    kept: Bools,
    groups: list[tuple[Ints, Ints, Floats]],
    classes: int,
) -> list[list[int]]:
    """Returns counts of (true class, found class); pairs by falling IoU, whatever the class."""
    table = np.zeros((classes + 1, classes + 1), int)
    for seen, there, overlap in groups:
        mine = np.flatnonzero(kept[seen])
        overlap = overlap[mine]
        free_seen, free_there = np.ones(len(mine), bool), np.ones(len(there), bool)
        rows, columns = np.nonzero(overlap >= FOREGROUND)
        for pair in np.argsort(-overlap[rows, columns], kind="stable"):
            i, j = rows[pair], columns[pair]
            if free_seen[i] and free_there[j]:
                free_seen[i] = free_there[j] = False
                table[truth.labels[there[j]], found.labels[seen[mine[i]]]] += 1
        extra, lost = found.labels[seen[mine[free_seen]]], truth.labels[there[free_there]]
        table[classes, :classes] += np.bincount(extra, minlength=classes)
        table[:classes, classes] += np.bincount(lost, minlength=classes)
    return [[int(value) for value in row] for row in table]


def _images(
    matches: _Matches, kept: Bools, found: Boxes, truth: Boxes, images: int
) -> list[dict[str, int]]:
    """Returns counts of each image, most errors first."""
    hit = kept & (matches.hit >= 0)
    hits = np.bincount(found.image[hit], minlength=images)
    false = np.bincount(found.image[kept & (matches.hit < 0)], minlength=images)
    missed = np.bincount(truth.image, minlength=images) - hits
    order = np.argsort(-(false + missed), kind="stable")
    return [
        {"image": int(i), "hits": int(hits[i]), "false": int(false[i]), "missed": int(missed[i])}
        for i in order
    ]


def _mean(values: Floats) -> float:
    """Returns the mean over classes that have boxes; 0 if none has."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else 0.0


def _number(value: float) -> float:
    return float(value) if np.isfinite(value) else 0.0
