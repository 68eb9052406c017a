"""Boxes of a whole data set as flat arrays: human labels, true labels, detections.

A flat table holds the boxes of all images one after the other, and `image` says which image each
row belongs to. Everything in the audit takes and returns such tables. Boxes are x1 y1 x2 y2 in
pixels of the original image, in continuous coordinates (the left edge of the first pixel is 0).
"""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtrain_jax.errors import UserError

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Labels:
    """N labelled boxes of I images.

    Attributes:
      image: [N] int32, the row of the image each box belongs to, in 0..I-1.
      boxes: [N, 4] float32, x1 y1 x2 y2 in pixels of the original image.
      labels: [N] int32, classes in 0..K-1.
    """

    image: Ints
    boxes: Floats
    labels: Ints

    def __post_init__(self) -> None:
        if not (len(self.image) == len(self.boxes) == len(self.labels)):
            lengths = (len(self.image), len(self.boxes), len(self.labels))
            raise ValueError(f"image, boxes and labels have {lengths} rows")
        if self.boxes.shape != (len(self.boxes), 4):
            raise ValueError(f"boxes has shape {self.boxes.shape}, expected (N, 4)")

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: Any) -> "Labels":
        """Returns the given rows (indices or a mask), in their order."""
        return Labels(self.image[rows], self.boxes[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Detections:
    """N detections in I images, after non-maximum suppression.

    Attributes:
      image, boxes, labels: as in `Labels`.
      scores: [N] float32 in [0, 1].
    """

    image: Ints
    boxes: Floats
    labels: Ints
    scores: Floats

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: Any) -> "Detections":
        """Returns the given rows (indices or a mask), in their order."""
        return Detections(self.image[rows], self.boxes[rows], self.labels[rows], self.scores[rows])


def rows_by_image(image: Ints, count: int) -> list[Ints]:
    """Returns, for each of `count` images, the rows of a flat table that belong to it, in order."""
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, count)))


def from_coco(coco: dict[str, Any], where: str) -> tuple[Labels, Ints, list[int]]:
    """Reads the boxes of a COCO annotation file; crowds and boxes without area are left out.

    Args:
      coco: the file's contents.
      where: the file's name, for messages.

    Returns:
      (labels, annotations, category_ids): `labels` with images in the order of coco["images"] and
      classes in the order of category_ids, which is ascending; `annotations` [N] int64, the place
      of each row in coco["annotations"].

    Raises:
      UserError: a field is missing, or an annotation names an image or a category that is not
        there.
    """
    try:
        images = {entry["id"]: row for row, entry in enumerate(coco["images"])}
        category_ids = sorted(entry["id"] for entry in coco["categories"])
        classes = {category: label for label, category in enumerate(category_ids)}
        image, boxes, labels, places = [], [], [], []
        for place, entry in enumerate(coco["annotations"]):
            if entry["image_id"] not in images:
                raise UserError(
                    f"{where}: annotation {place} names image {entry['image_id']}, "
                    "which 'images' lacks; add the image or remove the annotation"
                )
            if entry["category_id"] not in classes:
                raise UserError(
                    f"{where}: annotation {place} names category {entry['category_id']}, "
                    "which 'categories' lacks; add the category or remove the annotation"
                )
            x, y, width, height = entry["bbox"]
            usable = width > 0 and height > 0 and math.isfinite(x + y + width + height)
            if entry.get("iscrowd") or not usable:
                continue
            image.append(images[entry["image_id"]])
            boxes.append((x, y, x + width, y + height))
            labels.append(classes[entry["category_id"]])
            places.append(place)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: not a COCO annotation file ({type(error).__name__}: {error}); it needs "
            "'images', 'categories' and 'annotations' with 'image_id', 'category_id' and 'bbox'"
        ) from error
    table = Labels(
        np.asarray(image, np.int32),
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(labels, np.int32),
    )
    return table, np.asarray(places, np.int64), category_ids
