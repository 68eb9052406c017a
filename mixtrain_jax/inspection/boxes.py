"""Boxes that are near-certain mistakes, or that no detector learns: arrays in, problems out."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.views.geometry import resized
from mixtrain_jax.inspection.problems import DOUBT, MISTAKE, NOTE, Problem, of_places
from mixtrain_jax.models.rpn import STRIDES
from mixtrain_jax.ops import anchors, numpy_boxes

SAME = 0.95  # IoU from which two boxes are one
WHOLE = 0.98  # share of both sides of its image that a box of everything has
LONGEST = 20.0  # long side over short side
LEAST_INSIDE = 0.5  # share of a box's area inside its image
MANY = 0.05  # share of the objects that is no small loss
_COMPARED = 2000  # boxes of an image whose pairs are looked at


@dataclasses.dataclass(frozen=True)
class Table:
    """The boxes of a split as they are annotated, those of no finite area left away.

    Attributes:
      split: its name.
      files: of the N images.
      names: of the classes.
      sizes: [N, 2] height and width in pixels.
      rows: [M] the image of each box, ascending.
      labels: [M].
      boxes: [M, 4] float64 x1 y1 x2 y2 in pixels of the image, not clipped.
    """

    split: str
    files: list[str]
    names: list[str]
    sizes: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray

    def place(self, box: int) -> str:
        """Where a box stands, for people."""
        numbers = " ".join(f"{value:g}" for value in np.round(self.boxes[box], 1))
        return f"{self.files[self.rows[box]]}: {self.names[self.labels[box]]} at {numbers}"


def table(dataset: Dataset) -> Table:
    """The boxes of a data set, without crowds and without those of no finite area."""
    found = dataset.annotations.by_image()
    with np.errstate(invalid="ignore", over="ignore"):
        good = np.isfinite(found.boxes).all(axis=1) & (found.boxes[:, 2:] > 0).all(axis=1)
    good &= ~found.crowd
    boxes = found.boxes[good]
    return Table(
        split=dataset.name,
        files=[dataset.file_name(row) for row in range(len(dataset))],
        names=[str(category["name"]) for category in dataset.categories],
        sizes=dataset.sizes,
        rows=found.rows[good],
        labels=found.labels[good],
        boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
    )


def check(data: Table, scale: tuple[int, int], model: Any) -> list[Problem]:
    """Looks for mistakes and for objects that cannot be learned.

    Args:
      data: the boxes of a split.
      scale: longest long side and short side that images are seen at.
      model: `config.model`.
    """
    found = []
    if len(data.boxes):
        found += _doubled(data) + _copied(data) + _odd_shapes(data)
        found += _unseen(data, scale, model.rpn) + _too_many(data, model)
    return found


def _doubled(data: Table) -> list[Problem]:
    """Pairs of boxes of one image that are the same: of two classes, or of one."""
    two_classes, one_class = [], []
    starts = np.searchsorted(data.rows, np.arange(len(data.sizes) + 1))
    for start, end in itertools.pairwise(starts.tolist()):
        if end - start < 2:
            continue
        end = min(end, start + _COMPARED)
        some = data.boxes[start:end]
        first, second = np.nonzero(np.triu(numpy_boxes.iou(some, some) >= SAME, 1))
        for a, b in zip((first + start).tolist(), (second + start).tolist()):
            if data.labels[a] != data.labels[b]:
                two_classes.append(f"{data.place(a)} and {data.names[data.labels[b]]}")
            elif (data.boxes[a] != data.boxes[b]).any():  # equal ones are trained on once
                one_class.append(data.place(a))
    return [
        *of_places(
            MISTAKE,
            data.split,
            "pairs of boxes that are one box with two classes",
            two_classes,
            "both are trained on; keep one",
        ),
        *of_places(
            MISTAKE,
            data.split,
            f"boxes drawn twice, with an IoU of {SAME} or more",
            one_class,
            "both are trained on; keep one",
        ),
    ]


def _copied(data: Table) -> list[Problem]:
    """Images that have exactly the boxes of another image, three or more of them."""
    first: dict[bytes, int] = {}
    places = []
    starts = np.searchsorted(data.rows, np.arange(len(data.sizes) + 1))
    for row, (start, end) in enumerate(itertools.pairwise(starts.tolist())):
        if end - start >= 3:
            columns = np.column_stack([data.boxes[start:end], data.labels[start:end]])
            key = columns[np.lexsort(columns.T)].tobytes()
            if key in first:
                places.append(f"{data.files[row]} as {data.files[first[key]]}")
            first.setdefault(key, row)
    return of_places(
        DOUBT,
        data.split,
        "images have exactly the boxes of another image",
        places,
        "trained on; see whether the images are the same too",
    )


def _odd_shapes(data: Table) -> list[Problem]:
    sides = data.sizes[data.rows][:, ::-1].astype(np.float64)
    wide = data.boxes[:, 2:] - data.boxes[:, :2]
    inside = np.clip(data.boxes, 0, np.concatenate([sides, sides], axis=1))
    kept = (inside[:, 2:] - inside[:, :2]).prod(axis=1) / wide.prod(axis=1)
    whole = ((inside[:, 2:] - inside[:, :2]) >= WHOLE * sides).all(axis=1)
    long = wide.max(axis=1) > LONGEST * wide.min(axis=1)
    out = (kept < LEAST_INSIDE) & (kept > 0)

    def places(hit: np.ndarray) -> list[str]:
        return [data.place(box) for box in np.flatnonzero(hit).tolist()]

    # Where nearly every image has one, the box of everything is what people meant.
    kind = MISTAKE if len(np.unique(data.rows[whole])) < 0.1 * len(data.sizes) else DOUBT
    return [
        *of_places(kind, data.split, "boxes cover their whole image", places(whole), "trained on"),
        *of_places(
            DOUBT,
            data.split,
            f"boxes are more than {LONGEST:g} times as long as wide",
            places(long),
            "trained on",
        ),
        *of_places(
            MISTAKE,
            data.split,
            "boxes lie for more than half outside their image",
            places(out),
            "clipped to the image",
        ),
    ]


def _unseen(data: Table, scale: tuple[int, int], rpn: Any) -> list[Problem]:
    """Objects that are too small or too unlike all anchors at the scale images are seen at."""
    sides = seen(data.boxes[:, 2:] - data.boxes[:, :2], data.rows, data.sizes, scale)
    small = sides.max(axis=1) < STRIDES[0]
    ious = best_ious(sides, rpn.anchor_scale, rpn.anchor_ratios)
    unmatched = ~small & (ious < rpn.negative_iou)
    seen_at = f"at the scale of val, {scale[1]} (at most {scale[0]})"
    return [
        *of_places(
            DOUBT,
            data.split,
            f"objects are smaller than {STRIDES[0]} pixels, the finest stride, {seen_at}",
            [data.place(box) for box in np.flatnonzero(small).tolist()],
            "hardly learned; make config.data.*.scale larger",
        ),
        *of_places(
            DOUBT if unmatched.mean() > MANY else NOTE,
            data.split,
            f"objects overlap no anchor by an IoU of {rpn.negative_iou:g} {seen_at}",
            [data.place(box) for box in np.flatnonzero(unmatched).tolist()],
            "never proposed in training; change config.model.rpn.anchor_scale, "
            "config.model.rpn.anchor_ratios or the scale",
        ),
    ]


def seen(
    sides: np.ndarray, rows: np.ndarray, sizes: np.ndarray, scale: tuple[int, int]
) -> np.ndarray:
    """[M, 2] width and height of objects in pixels of views.

    Args:
      sides: [M, 2] width and height in pixels of their images.
      rows: [M] the image of each.
      sizes: [N, 2] height and width of the images.
      scale: longest long side and short side of the views.
    """
    factor = resized(sizes, *scale) / sizes  # of height and width
    return sides * factor[rows][:, ::-1]


def _too_many(data: Table, model: Any) -> list[Problem]:
    """Images with more objects than the detector can find in one."""
    name, most = min(
        ("config.model.roi_head.detections", model.roi_head.detections),
        ("config.model.rpn.test_proposals", model.rpn.test_proposals),
        key=lambda field: field[1],
    )
    counts = np.bincount(data.rows, minlength=len(data.sizes))
    return of_places(
        DOUBT,
        data.split,
        f"images have more objects than a detector finds in one, {name} = {most}",
        [f"{data.files[row]}: {counts[row]}" for row in np.flatnonzero(counts > most).tolist()],
        "the surest are found; raise config.model.roi_head.detections and nms_candidates, and "
        "config.model.rpn.test_proposals and test_candidates",
    )


def best_ious(sides: np.ndarray, anchor_scale: float, ratios: Sequence[float]) -> np.ndarray:
    """[M] the IoU of boxes [M, 2] (width, height) with the best anchor of the same centre."""
    best, area = np.zeros(len(sides)), sides.prod(axis=1)
    for stride in STRIDES:
        level = anchors.pyramid_anchors(((1, 1),), (stride,), anchor_scale, tuple(ratios))
        for wide, high in (level[:, 2:] - level[:, :2]).tolist():
            both = np.minimum(sides[:, 0], wide) * np.minimum(sides[:, 1], high)
            best = np.maximum(best, both / (area + wide * high - both))
    return best
