"""COCO's results format and COCO's twelve numbers, as pycocotools computes them.

Detections in pixels of the original images become the list of dictionaries that a COCO
results file holds; the list is scored against the annotations; the scores become a table for
people. What is scored is the very list that is written, so pycocotools run on the file gives the
same numbers. faster-coco-eval computes them, in a fraction of the time; pycocotools itself can be
asked to.
"""

import contextlib
import io
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mixtrain_jax.data.sources.dataset import Dataset, names_apart
from mixtrain_jax.types import Detections

SCORERS = FASTER, PYCOCOTOOLS = "faster_coco_eval", "pycocotools"
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def results(detections: Detections, index: np.ndarray, dataset: Dataset) -> list[dict[str, Any]]:
    """Turns a batch of detections into entries of a COCO results file.

    Args:
      detections: of B images, NumPy arrays; boxes in pixels of the original images.
      index: [B] the images' rows in the data set; -1 for a filler, which gives nothing.
      dataset: tells the original ids of images and categories.

    Returns:
      A list of {"image_id", "category_id", "bbox" [x, y, width, height], "score"} of Python
      numbers, boxes to a thousandth of a pixel, scores to a millionth; in the order given.
    """
    entries = []
    corners = np.asarray(detections.boxes, np.float64)
    boxes = np.concatenate([corners[..., :2], corners[..., 2:] - corners[..., :2]], axis=-1)
    boxes = np.round(boxes, 3)
    scores = np.round(np.asarray(detections.scores, np.float64), 6)
    for image, row in enumerate(np.asarray(index).tolist()):
        if row < 0:
            continue
        image_id = int(dataset.image_ids[row])
        for slot in np.flatnonzero(detections.valid[image]):
            label = int(detections.labels[image, slot])
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": dataset.categories[label]["id"],
                    "bbox": boxes[image, slot].tolist(),
                    "score": float(scores[image, slot]),
                }
            )
    return entries


def with_original_ids(entries: list[dict[str, Any]], dataset: Dataset) -> list[dict[str, Any]]:
    """The entries of a results file with the ids of the annotation file, also where it has texts.

    Scores are computed with numbers in their place; see `Annotations.original_ids`.
    """
    table = dataset.annotations
    if table.original_ids is None and table.original_categories is None:
        return entries
    image_of = dict(zip(dataset.image_ids.tolist(), dataset.given_image_ids, strict=True))
    classes = zip(dataset.categories, dataset.given_categories, strict=True)
    class_of = {ours["id"]: given["id"] for ours, given in classes}
    return [
        each
        | {"image_id": image_of[each["image_id"]], "category_id": class_of[each["category_id"]]}
        for each in entries
    ]


def _matchable(annotation: dict[str, Any]) -> dict[str, Any]:
    """The annotation, with no area where its box is not finite."""
    if all(map(math.isfinite, annotation["bbox"])):
        return annotation
    return annotation | {"bbox": [0.0, 0.0, 0.0, 0.0], "area": 0.0}


def score(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    image_ids: Iterable[int] | None = None,
    scorer: str = FASTER,
) -> dict[str, Any]:
    """Scores detections against annotations as pycocotools does; leaves both as they are.

    Annotations may lack `iscrowd` (taken as 0) and `area` (the box's is taken). Their ids play no
    part: pycocotools takes an object whose annotation id is 0 for one that was never found. An
    object whose box is not finite is missed: it has none here, as any box would match it.

    Args:
      ground_truth: annotations in COCO format, boxes in pixels.
      results: entries as in `results`; may be empty.
      image_ids: the images to score; None takes all of the ground truth.
      scorer: which of `SCORERS` computes; their numbers differ in the last bit at most.

    Returns:
      COCO's twelve numbers by the names in `KEYS`, and "per_class": {name: {"AP", "AP50"}}, the
      name with the id where several categories have it. A number is -1, as pycocotools has it,
      where there is no object to find (say, no large one).

    Raises:
      ValueError: a result names an image that the ground truth lacks.
    """
    strangers = {r["image_id"] for r in results} - {image["id"] for image in ground_truth["images"]}
    if strangers:
        raise ValueError(f"results on {len(strangers)} unknown images, such as {min(strangers)}")
    annotations = [
        {"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a, "id": number}
        for number, a in enumerate(map(_matchable, ground_truth["annotations"]), 1)
    ]
    found = [
        {**r, "id": number, "iscrowd": 0, "area": r["bbox"][2] * r["bbox"][3]}
        for number, r in enumerate(results, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        evaluation = _evaluation(ground_truth, annotations, found, scorer)
        if image_ids is not None:
            evaluation.params.imgIds = sorted(int(i) for i in image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    categories = ground_truth["categories"]
    names = {c["id"]: name for c, name in zip(categories, names_apart(categories), strict=True)}
    # [IoU threshold, recall, class]; the first threshold is 0.50.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {
        names[category]: {
            "AP": _mean(precision[:, :, number]),
            "AP50": _mean(precision[0, :, number]),
        }
        for number, category in enumerate(evaluation.params.catIds)
    }
    numbers = (float(value) for value in evaluation.stats)
    return {**dict(zip(KEYS, numbers, strict=True)), "per_class": per_class}


def _evaluation(
    ground_truth: dict[str, Any],
    annotations: list[dict[str, Any]],
    found: list[dict[str, Any]],
    scorer: str,
) -> Any:
    """An evaluation of boxes that has not begun, as either library has it."""
    if scorer == PYCOCOTOOLS:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluation

    def index(entries: list[dict[str, Any]]) -> Any:
        """What `loadRes` would make, which refuses an empty list."""
        coco = COCO()
        coco.dataset = {
            "images": ground_truth["images"],
            "categories": ground_truth["categories"],
            "annotations": entries,
        }
        coco.createIndex()
        return coco

    return Evaluation(index(annotations), index(found), "bbox")


def _mean(values: np.ndarray) -> float:
    """Mean of the entries that exist; -1 where none does."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def table(metrics: dict[str, Any]) -> str:
    """Lays out what `score` returns as plain text; a dash means there was nothing to find."""

    def number(value: float) -> str:
        return f"{value:8.3f}" if value >= 0 else f"{'-':>8}"

    lines = [f"{'':8}" + "".join(f"{head:>8}" for head in ("all", "small", "medium", "large"))]
    for row in (
        ("AP", "AP", "APs", "APm", "APl"),
        ("AP50", "AP50"),
        ("AP75", "AP75"),
        ("AR1", "AR1"),
        ("AR10", "AR10"),
        ("AR100", "AR100", "ARs", "ARm", "ARl"),
    ):
        lines.append(f"{row[0]:8}" + "".join(number(metrics[key]) for key in row[1:]))

    classes = metrics["per_class"]
    width = max([8, *(len(name) for name in classes)])
    cells = [
        f"{name:{width}}{number(each['AP'])}{number(each['AP50'])}"
        for name, each in classes.items()
    ]
    columns = 1 if len(cells) <= 20 else 3
    height = -(-len(cells) // columns)
    head = f"{'class':{width}}{'AP':>8}{'AP50':>8}"
    lines += ["", "    ".join([head] * columns)]
    lines += ["    ".join(cells[row::height]) for row in range(height)]
    return "\n".join(lines)
