"""From findings and decisions to corrected labels, and how often people erred.

Nothing here changes what it is given: corrected labels are new tables and new dictionaries.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixtrain_jax.auditing.findings import (
    CLASS,
    DUPLICATE,
    KINDS,
    MATCH_IOU,
    MISSING,
    ONE_PLACE,
    PLACE,
    SPURIOUS,
    Findings,
)
from mixtrain_jax.auditing.labels import Bools, Floats, Ints, Labels, rows_by_image
from mixtrain_jax.ops.numpy_boxes import area, iou

THRESHOLD = 0.5  # a finding that is likelier right than wrong is worth applying
Z = 1.96  # of a 95% interval


@dataclasses.dataclass(frozen=True)
class Corrected:
    """Corrected labels.

    Attributes:
      labels: sorted by image.
      source: [N] int32, the human box each one comes from; -1 for an added one.
      finding: [N] int32, the finding that changed or added it; -1 where nothing was changed.
      removed: rows of the human boxes that are gone, ascending: those that were to go, and those
        that, renamed or moved, would double another.
      spared: rows of human boxes that were to go as duplicates and stay, since the box they double
        is gone already.
    """

    labels: Labels
    source: Ints
    finding: Ints
    removed: Ints
    spared: Ints


def apply(human: Labels, findings: Findings, accepted: Bools) -> Corrected:
    """Applies the accepted findings; of two boxes that are each other's duplicate one stays.

    First boxes are taken away, renamed and moved. One that then lies on another of its class, and
    did not before, says the same again, and goes. Duplicates come last, so scores decide only which
    of two that double each other stays.

    Args:
      human: the human boxes that were audited.
      findings: F findings.
      accepted: [F] bool.
    """
    now = Labels(human.image, human.boxes.copy(), human.labels.copy())
    changed = np.full(len(human), -1, np.int32)
    gone = np.zeros(len(human), bool)
    order = np.argsort(-findings.score, kind="stable")
    falling = order[accepted[order] & (findings.human[order] >= 0)]
    box_of, kind_of = findings.human, findings.kind

    gone[box_of[falling[kind_of[falling] == SPURIOUS]]] = True
    renamed, moved = (falling[kind_of[falling] == kind] for kind in (CLASS, PLACE))
    now.labels[box_of[renamed]] = findings.labels[renamed]
    now.boxes[box_of[moved]] = findings.boxes[moved]
    others = falling[np.isin(kind_of[falling], (CLASS, PLACE))]
    changed[box_of[others]] = others
    images = max(human.image.max(initial=-1), findings.image.max(initial=-1)) + 1
    of_image = rows_by_image(human.image, int(images))

    def beside(box: int) -> Ints:
        rows = of_image[human.image[box]]
        return rows[~gone[rows] & (rows != box)]

    for box in box_of[others][::-1].tolist():
        rows = beside(box)
        lay, lies = (
            _lies_on(table, rows, table.boxes[box], table.labels[box], ONE_PLACE)
            for table in (human, now)
        )
        gone[box] = (lies & ~lay).any()

    spared = []
    for box in box_of[falling[kind_of[falling] == DUPLICATE]].tolist():
        if _lies_on(now, beside(box), now.boxes[box], now.labels[box], MATCH_IOU).any():
            gone[box] = True
        else:
            spared.append(box)
    added = np.flatnonzero(accepted & (findings.kind == MISSING)).astype(np.int32)
    there = np.zeros(len(added), bool)  # now that others are renamed or moved
    for place, row in enumerate(added.tolist()):
        rows = of_image[findings.image[row]]
        rows = rows[(changed[rows] >= 0) & ~gone[rows]]
        box, label = findings.boxes[row], findings.labels[row]
        there[place] = _lies_on(now, rows, box, label, ONE_PLACE).any()
    added = added[~there]
    kept = np.flatnonzero(~gone).astype(np.int32)
    table = Labels(
        np.concatenate([human.image[kept], findings.image[added]]).astype(np.int32),
        np.concatenate([now.boxes[kept], findings.boxes[added]]).astype(np.float32),
        np.concatenate([now.labels[kept], findings.labels[added]]).astype(np.int32),
    )
    source = np.concatenate([kept, np.full(len(added), -1, np.int32)])
    finding = np.concatenate([changed[kept], added])
    order = np.argsort(table.image, kind="stable")
    return Corrected(
        table.take(order),
        source[order],
        finding[order],
        np.flatnonzero(gone),
        np.array(spared, np.int64),
    )


def _lies_on(table: Labels, rows: Ints, box: Floats, label: int, least: float) -> Bools:
    """On which boxes [n] of these rows, of one image, a box [4] of a class lies as one of them."""
    return (table.labels[rows] == label) & (iou(box[None], table.boxes[rows])[0] >= least)


def correct_coco(
    coco: dict[str, Any],
    places: Ints,
    image_ids: Sequence[Any],
    category_ids: Sequence[Any],
    corrected: Corrected,
    findings: Findings,
) -> dict[str, Any]:
    """Returns the COCO annotations with corrections applied; what was given stays as it is.

    A changed or added annotation says why under "audit": {"kind", "score"}. A moved box loses its
    segmentation, which no longer fits. Crowds and what was not audited stay.

    Args:
      coco: the original file's contents.
      places: [H] place of each audited box in coco["annotations"].
      image_ids: of each row of the audited images; `coco` may have more of them.
      category_ids: of each label.
      corrected: what `apply` returned.
      findings: what it was given.
    """
    annotations = copy.deepcopy(coco["annotations"])
    table = corrected.labels
    added = []
    numbers = [str(e.get("id")).removesuffix(".0") for e in annotations]  # also 7.0 and "7"
    next_id = max((int(each) for each in numbers if each.isdecimal()), default=0) + 1
    for row, (source, finding) in enumerate(zip(corrected.source, corrected.finding)):
        if finding < 0:
            continue
        kind = int(findings.kind[finding])
        if source >= 0:
            entry = annotations[places[source]]
        else:
            entry = {"id": next_id, "image_id": image_ids[table.image[row]], "iscrowd": 0}
            next_id += 1
            added.append(entry)
        entry["category_id"] = category_ids[table.labels[row]]
        if kind in (PLACE, MISSING):
            entry["bbox"] = to_bbox(table.boxes[row])
            entry["area"] = round(float(area(table.boxes[row])), 2)
            entry.pop("segmentation", None)
        score = round(float(findings.score[finding]), 4)
        entry["audit"] = {"kind": KINDS[kind], "score": score}
    gone = set(places[corrected.removed].tolist())
    kept = [entry for place, entry in enumerate(annotations) if place not in gone]
    rest = {key: copy.deepcopy(value) for key, value in coco.items() if key != "annotations"}
    return rest | {"annotations": kept + added}


def summarise(
    human: Labels, findings: Findings, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Estimates how many labels of each class are wrong, and in which way.

    The expected number of errors is the sum of the findings' scores. Rates are shares of the human
    boxes of the class; for "missing", of the objects there are: human boxes and missing ones. What
    the detector does not see is in no number.

    Returns:
      A row for each class and kind, and for "all" classes: {"class", "kind", "boxes", "errors",
      "rate", "low", "high"}; low and high are the Wilson interval of 95%, as wide as so many boxes
      make it: that the scores may be wrong is not in it.
    """
    classes = findings.labels.copy()
    mine = findings.human >= 0
    classes[mine] = human.labels[findings.human[mine]]
    rows = []
    for label, name in [*enumerate(class_names), (None, "all")]:
        boxes = len(human) if label is None else int((human.labels == label).sum())
        mine = np.ones(len(findings), bool) if label is None else classes == label
        for kind, word in enumerate(KINDS):
            errors = float(findings.score[mine & (findings.kind == kind)].sum())
            total = boxes + (errors if kind == MISSING else 0)
            low, high = wilson(errors, total)
            rows.append(
                {
                    "class": name,
                    "kind": word,
                    "boxes": boxes,
                    "errors": round(errors, 2),
                    "rate": round(errors / total, 5) if total else 0.0,
                    "low": round(low, 5),
                    "high": round(high, 5),
                }
            )
    return rows


def wilson(count: float, total: float) -> tuple[float, float]:
    """Returns the 95% Wilson interval of a share; (0, 1) where nothing was counted."""
    if total <= 0:
        return 0.0, 1.0
    share = min(count / total, 1.0)
    center = share + Z**2 / (2 * total)
    half = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    scale = 1 + Z**2 / total
    return max((center - half) / scale, 0.0), min((center + half) / scale, 1.0)


def to_bbox(box: Floats) -> list[float]:
    """Returns [x, y, width, height] of a box [4], to a hundredth of a pixel."""
    x1, y1, x2, y2 = (float(side) for side in box)
    return [round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)]


def from_bbox(bboxes: Sequence[Sequence[float]]) -> Floats:
    """Returns [N, 4] float32 x1 y1 x2 y2 of N boxes [x, y, width, height]."""
    boxes = np.array(bboxes, np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.float32)
