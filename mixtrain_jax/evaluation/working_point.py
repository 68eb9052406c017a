"""How good a detector is at one score threshold, where average precision only asks for an order.

Missing labels hurt the order of detections little and their scores much, so a detector trained on
them can keep its average precision and be of no use at the threshold people set. `match` pairs
detections with objects once, as COCO does. The rest are pure functions of what it returns, pooled
over images and classes: F1 at a threshold, the best F1, recall at a precision, calibration. A
threshold chosen on one set of labels (`best_f1`, `at_recall`) is judged on another with `at`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST = 100  # detections of one class in one image that count, the best, as in COCO's AP


class Matches(NamedTuple):
    """Which detections found an object; those on a crowd are left out, right or wrong.

    Attributes:
      scores: [D] float64, descending.
      right: [D] bool, whether the detection is matched with an object.
      objects: how many objects there are to find, crowds not counted.
    """

    scores: Floats
    right: NDArray[np.bool_]
    objects: int


class Point(NamedTuple):
    """A working point: every detection with at least this score is taken.

    Attributes:
      threshold: least score of a detection that is taken; infinite if none is.
      precision: share of the taken detections that are right; 1 if none is taken.
      recall: share of the objects that are found; 0 if there are none.
      f1: harmonic mean of both, 2 right / (taken + objects); 0 if nothing is right.
    """

    threshold: float
    precision: float
    recall: float
    f1: float


def match(
    ground_truth: Mapping[str, Any],
    results: Iterable[Mapping[str, Any]],
    image_ids: Iterable[int] | None = None,
    iou: float = 0.5,
) -> Matches:
    """Matches detections with objects of their class, as pycocotools does at one IoU.

    In each image and class the detections choose in order of their score; each takes the object,
    among those not yet taken, that it overlaps most, if that is by at least `iou`. One that finds
    none is wrong, unless `iou` of its own area lies in a crowd: then it does not count.

    Args:
      ground_truth: annotations in COCO format; `iscrowd` may be absent.
      results: entries of a COCO results file: image_id, category_id, bbox [x, y, width, height] in
        pixels, score.
      image_ids: the images to look at; None takes all of the ground truth.
      iou: least overlap of a match.

    Raises:
      ValueError: a result names an image that the ground truth lacks.
    """
    known = {int(image["id"]) for image in ground_truth["images"]}
    chosen = known if image_ids is None else {int(number) for number in image_ids}
    results = list(results)
    strangers = {int(result["image_id"]) for result in results} - known
    if strangers:
        raise ValueError(f"results on {len(strangers)} unknown images, such as {min(strangers)}")

    objects: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    crowds: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    found: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for each in ground_truth["annotations"]:
        (crowds if each.get("iscrowd", 0) else objects)[_key(each)].append(each)
    for each in results:
        found[_key(each)].append(each)

    scores, right = [np.zeros(0)], [np.zeros(0, bool)]
    for key, of_class in found.items():
        if key[0] not in chosen:
            continue
        all_scores = np.array([each["score"] for each in of_class], np.float64)
        order = np.argsort(-all_scores, kind="stable")[:MOST]
        boxes = _boxes(of_class)[order]
        hit = _take(_overlaps(boxes, _boxes(objects[key])), iou)
        in_crowd = (_overlaps(boxes, _boxes(crowds[key]), of_first=True) >= iou).any(axis=1)
        counts = hit | ~in_crowd
        scores.append(all_scores[order][counts])
        right.append(hit[counts])
    pooled, flags = np.concatenate(scores), np.concatenate(right)
    order = np.argsort(-pooled, kind="stable")
    count = sum(len(each) for key, each in objects.items() if key[0] in chosen)
    return Matches(pooled[order], flags[order], count)


def curve(matches: Matches) -> list[Point]:
    """Returns a working point for each distinct score, from the highest threshold down."""
    ends = np.flatnonzero(np.diff(matches.scores, append=-np.inf))
    hits = np.cumsum(matches.right)
    return [
        _point(float(matches.scores[end]), int(hits[end]), int(end) + 1, matches.objects)
        for end in ends
    ]


def at(matches: Matches, threshold: float) -> Point:
    """The working point at a given threshold."""
    taken = matches.scores >= threshold
    hits = int(matches.right[taken].sum())
    return _point(threshold, hits, int(taken.sum()), matches.objects)


def best_f1(matches: Matches) -> Point:
    """The working point with the highest F1; of several, the one with the highest threshold."""
    return max(curve(matches), key=lambda point: point.f1, default=_nothing(matches))


def at_precision(matches: Matches, precision: float) -> Point:
    """The working point with the most recall among those of at least this precision.

    Where no threshold is as precise, nothing is taken and the recall is 0.
    """
    precise = [point for point in curve(matches) if point.precision >= precision]
    return max(precise, key=lambda point: point.recall, default=_nothing(matches))


def at_recall(matches: Matches, recall: float) -> Point:
    """The working point with the highest threshold among those of at least this recall.

    Recall is what labels that lack objects still tell. Where no threshold reaches it, everything is
    taken.
    """
    points = curve(matches)
    reaching = (point for point in points if point.recall >= recall)
    return next(reaching, points[-1] if points else _nothing(matches))


def calibration_error(matches: Matches, bins: int = 10, least: float = 0.0) -> float:
    """How far scores are from the share of detections that are right.

    Detections are ordered by score and cut into bins of equal count (within one); the error is the
    mean over detections of |mean score - share right| of their bin. It depends on how many
    detections of low score there are, so compare detectors with one `least` score.

    Args:
      matches: what `match` returned.
      bins: how many; fewer where there are fewer detections.
      least: detections with a lower score are left out.

    Returns:
      The error in [0, 1]; 0 if there are no detections.
    """
    kept = matches.scores >= least
    scores, right = matches.scores[kept], matches.right[kept]
    if not len(scores):
        return 0.0
    parts = np.array_split(np.arange(len(scores)), min(bins, len(scores)))
    gaps = [len(part) * abs(scores[part].mean() - right[part].mean()) for part in parts]
    return float(sum(gaps) / len(scores))


def _point(threshold: float, hits: int, taken: int, objects: int) -> Point:
    return Point(
        threshold,
        precision=hits / taken if taken else 1.0,
        recall=hits / objects if objects else 0.0,
        f1=2 * hits / (taken + objects) if hits else 0.0,
    )


def _nothing(matches: Matches) -> Point:
    return _point(np.inf, 0, 0, matches.objects)


def _key(entry: Mapping[str, Any]) -> tuple[int, int]:
    return int(entry["image_id"]), int(entry["category_id"])


def _boxes(entries: Sequence[Mapping[str, Any]]) -> Floats:
    """Boxes [n, 4] as x, y, width, height."""
    return np.array([each["bbox"] for each in entries], np.float64).reshape(-1, 4)


def _overlaps(first: Floats, second: Floats, of_first: bool = False) -> Floats:
    """IoU [D, N] of boxes x, y, width, height; or the share of the first box in the second."""
    (low, high), (lows, highs) = _corners(first[:, None]), _corners(second[None])
    shared = np.clip(np.minimum(high, highs) - np.maximum(low, lows), 0, None).prod(axis=-1)
    area, areas = first[:, None, 2:].prod(axis=-1), second[None, :, 2:].prod(axis=-1)
    whole = np.broadcast_to(area, shared.shape) if of_first else area + areas - shared
    return np.asarray(shared / np.maximum(whole, np.finfo(np.float64).tiny))


def _corners(boxes: Floats) -> tuple[Floats, Floats]:
    return boxes[..., :2], boxes[..., :2] + boxes[..., 2:]


def _take(overlaps: Floats, iou: float) -> NDArray[np.bool_]:
    """Whether each detection [D], best first, gets an object; the last of equal overlaps."""
    free = overlaps.copy()
    hit = np.zeros(len(overlaps), bool)
    if not overlaps.shape[1]:
        return hit
    last = overlaps.shape[1] - 1
    for row in range(len(overlaps)):
        choice = last - int(free[row, ::-1].argmax())
        if free[row, choice] >= iou:
            hit[row] = True
            free[:, choice] = -1.0
    return hit
