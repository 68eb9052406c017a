"""A data set as plain numbers, checked once at the start.

Every source ends in one `Dataset`; what follows it knows no formats. `assemble` makes it of what a
reader found: boxes to train on are chosen, clipped and counted, the others are named in the report,
and all of them stay in the ground truth, as pycocotools has it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mixtrain_jax.data.sources import image_files
from mixtrain_jax.data.sources.annotations import Annotations
from mixtrain_jax.data.sources.image_files import Reading, UnreadableImage
from mixtrain_jax.data.sources.ragged import Ragged
from mixtrain_jax.data.sources.report import LEFT_OUT, MENDED, NOTE, WARNING, Report
from mixtrain_jax.errors import UserError

SMALLEST_SIDE = 32  # images with a shorter side are not in the normal half
_COCO_LIMIT = 100  # detections of a class in an image that COCO's scores look at


@dataclasses.dataclass(frozen=True)
class Dataset:
    """N images and the boxes people drew on them.

    Attributes:
      name: a short name for messages, such as 'train'.
      image_ids: [N] int64, the source's own ids, or 1 to N where these are no numbers.
      sizes: [N, 2] int32, height and width in pixels.
      boxes: N arrays [n, 4] float32, x1 y1 x2 y2 in pixels of the image, inside it; cut out of
        one array when asked for.
      labels: N arrays [n] int32, 0-based and contiguous.
      crowd: N arrays [c, 4] float32, boxes of groups or otherwise to be ignored, likewise.
      categories: {'id', 'name'} of each label, in label order; the ids are the source's own.
      read: the encoded bytes of a row's image file.
      file_name: of a row, for messages.
      annotations: all annotations as they were found.
      reading: how the image files are to be decoded.
      report: what was found at start-up and what was left out.
    """

    name: str
    image_ids: np.ndarray
    sizes: np.ndarray
    boxes: Ragged
    labels: Ragged
    crowd: Ragged
    categories: list[dict[str, Any]]
    read: Callable[[int], bytes]
    file_name: Callable[[int], str]
    annotations: Annotations
    reading: Reading
    report: Report

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in label order; with its id where two have the same."""
        return names_apart(self.categories)

    def take(self, rows: np.ndarray) -> "Dataset":
        """Returns the data set of some rows, in their order."""
        return dataclasses.replace(
            self,
            image_ids=self.image_ids[rows],
            sizes=self.sizes[rows],
            boxes=self.boxes.take(rows),
            labels=self.labels.take(rows),
            crowd=self.crowd.take(rows),
            read=lambda row: self.read(int(rows[row])),
            file_name=lambda row: self.file_name(int(rows[row])),
            annotations=self.annotations.take(rows),
        )

    def trainable(self) -> np.ndarray:
        """Which images [N] bool may be in the normal half: with boxes, and not too small."""
        return (self.boxes.counts > 0) & (self.sizes.min(axis=1) >= SMALLEST_SIDE)

    def pixels(self, row: int) -> np.ndarray:
        """A row's image as training and detection see it, [H, W, 3] uint8 RGB.

        Raises:
          UnreadableImage: it cannot be decoded, or has another size than the data set says.
          OSError: it cannot be read.
        """
        height, width = self.sizes[row].tolist()
        return image_files.decode(self.read(row), (height, width), self.reading)

    def picture(self, row: int) -> Image.Image:
        """A row's image for a page; grey where it cannot be read."""
        try:
            return Image.fromarray(self.pixels(row))
        except (UnreadableImage, OSError):
            height, width = self.sizes[row].tolist()
            return Image.new("RGB", (width, height), (128, 128, 128))

    @property
    def given_image_ids(self) -> list[Any]:
        """The images' ids as the labels have them, which can be text."""
        return list(self.annotations.original_ids or self.image_ids.tolist())

    @property
    def given_categories(self) -> list[dict[str, Any]]:
        """'id' and 'name' of each class, the id as the labels have it."""
        ids = self.annotations.original_categories or [each["id"] for each in self.categories]
        return [each | {"id": i} for each, i in zip(self.categories, ids, strict=True)]

    @functools.cached_property
    def ground_truth(self) -> dict[str, Any]:
        """The annotations in COCO format, crowds included, for scoring; made when first asked for.

        Boxes that no detection can match (of no area, outside their image, not finite) are in it:
        pycocotools counts them as objects too.
        """
        return coco_format(self.annotations)


def names_apart(categories: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each category, in their order; with its id where two have the same."""
    names = [str(category["name"]) for category in categories]
    return [
        f"{name} ({category['id']})" if names.count(name) > 1 else name
        for name, category in zip(names, categories, strict=True)
    ]


def assemble(table: Annotations, reading: Reading, name: str, max_boxes: int) -> Dataset:
    """Makes a data set of annotations whose sizes are known and whose boxes are in pixels.

    Args:
      table: the annotations.
      reading: how the image files are to be decoded.
      name: of the split.
      max_boxes: an image's further boxes are cut.

    Raises:
      UserError: the boxes are evidently no x, y, width, height in pixels.
    """
    table = table.by_image()
    sides = table.sizes[table.rows][:, ::-1].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        corners = np.concatenate([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]], 1)
    _check_meaning(table, corners, sides, name)
    inside = np.clip(corners.reshape(-1, 2, 2), 0, sides[:, None]).reshape(-1, 4)
    del sides
    keep, area = _select(table, corners, inside, max_boxes)
    del corners
    _warn(table, name, ~area & ~table.crowd)

    def of_images(values: np.ndarray, chosen: np.ndarray) -> Ragged:
        counts = np.bincount(table.rows[chosen], minlength=len(table))
        return Ragged.of(values[chosen], counts)

    if name == "train":
        small = np.flatnonzero(table.sizes.min(axis=1) < SMALLEST_SIDE)
        text = f"images have a side below {SMALLEST_SIDE} pixels and are not in the normal half"
        table.findings.add(NOTE, [table.files[row] for row in small.tolist()], text, of="")
    boxes = of_images(inside.astype(np.float32), keep)
    labels = of_images(table.labels, keep)
    counts = np.bincount(table.labels[keep], minlength=len(table.categories))
    return Dataset(
        name=name,
        image_ids=table.image_ids,
        sizes=table.sizes,
        boxes=boxes,
        labels=labels,
        crowd=of_images(inside.astype(np.float32), table.crowd & area),
        categories=table.categories,
        read=table.content,
        file_name=lambda row: table.files[row],
        annotations=table,
        reading=reading,
        report=Report(
            name=name,
            source=table.source,
            images=len(table),
            empty=int((boxes.counts == 0).sum()),
            categories=table.categories,
            boxes=counts.tolist(),
            findings=tuple(table.findings),
        ),
    )


def _select(
    table: Annotations, corners: np.ndarray, inside: np.ndarray, max_boxes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the boxes to train on, and notes why the others are not.

    Args:
      table: the annotations, the boxes of an image together.
      corners: [M, 4] x1 y1 x2 y2 as annotated.
      inside: the same, clipped to the image.
      max_boxes: of one image.

    Returns:
      [M] bool, the boxes to train on; [M] bool, those with area inside their image.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        wide, high = table.boxes[:, 2], table.boxes[:, 3]
        outside = ~(inside[:, 2:] > inside[:, :2]).all(axis=1)
        reasons = (
            ("boxes with NaN or infinite coordinates", ~np.isfinite(table.boxes).all(axis=1)),
            ("boxes with negative width or height", (wide < 0) | (high < 0)),
            ("boxes of zero area", (wide == 0) | (high == 0)),
            ("boxes outside their image", outside),
            ("crowd boxes", table.crowd),
            ("boxes narrower or lower than one pixel", (wide < 1) | (high < 1)),
        )
    keep, area = np.ones(len(wide), bool), np.ones(len(wide), bool)
    for number, (reason, hit) in enumerate(reasons):
        table.findings.add(LEFT_OUT, _ids(table, hit & keep), reason)
        keep &= ~hit
        area &= ~hit if number < 4 else area
    twin = keep & _repeats(table, keep)
    table.findings.add(LEFT_OUT, _ids(table, twin), "boxes that repeat another of their class")
    keep &= ~twin
    before = np.concatenate([[0], np.cumsum(keep)])
    first = np.searchsorted(table.rows, table.rows)  # the image's first box
    excess = keep & (before[1:] - before[first] > max_boxes)
    reason = f"boxes beyond the first {max_boxes} of an image"
    table.findings.add(LEFT_OUT, _ids(table, excess), reason)
    keep &= ~excess
    reach = keep & (np.abs(inside - corners) > 1).any(axis=1)
    table.findings.add(
        MENDED, _ids(table, reach), "boxes that reach out of their image by more than a pixel"
    )
    return keep, area


def _repeats(table: Annotations, among: np.ndarray) -> np.ndarray:
    """[M] bool: the same box of the same class came before in the same image."""
    hit = np.zeros(len(among), bool)
    chosen = np.flatnonzero(among)
    # Equal boxes have equal sums; only those that share theirs with another are compared in full.
    mixed = np.zeros(len(chosen), np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, 6, np.uint64) | np.uint64(1)
    columns = [table.rows, table.labels.astype(np.int64), *(table.boxes.T + 0.0)]
    for column, factor in zip(columns, factors, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(29))) * factor + column[chosen].view(np.uint64)
    ordered = np.sort(mixed)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    chosen = chosen[np.isin(mixed, twice)]
    keys = np.column_stack([column[chosen] for column in columns])
    _, first = np.unique(keys, axis=0, return_index=True)
    hit[chosen] = True
    hit[chosen[first]] = False
    return hit


def _check_meaning(table: Annotations, corners: np.ndarray, sides: np.ndarray, name: str) -> None:
    """Raises UserError if the boxes look like corners, or like shares of the image's sides."""
    boxes = table.boxes
    finite = np.isfinite(corners).all(axis=1)
    if not finite.all():
        boxes, corners, sides = boxes[finite], corners[finite], sides[finite]
    count = len(boxes)
    if count < 4:  # too few to tell
        return
    large = sides.min(axis=1) > 4
    if large.all() and (boxes > 0).any() and (np.abs(boxes) <= 1).all():
        raise UserError(
            f"{name}: the numbers of all {count} boxes are between 0 and 1, so they look like "
            f"shares of the image's sides; 'bbox' is x, y, width, height in pixels: correct "
            f"{table.source}"
        )
    leave = (corners[:, 2:] > sides + 1).any(axis=1)
    fits = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (boxes[:, 2:] <= sides + 1).all(axis=1)
    if leave.mean() > 0.5 and fits.mean() > 0.99:
        raise UserError(
            f"{name}: {leave.sum()} of {count} boxes leave their image as x, y, width, height, and "
            f"all fit as x1, y1, x2, y2: 'bbox' seems to hold corners; correct {table.source}"
        )


def _warn(table: Annotations, name: str, unmatched: np.ndarray) -> None:
    names: dict[str, list[Any]] = {}
    for category in table.categories:
        names.setdefault(str(category["name"]), []).append(category["id"])
    table.findings.add(
        WARNING,
        [f"{key}: {', '.join(map(str, ids))}" for key, ids in names.items() if len(ids) > 1],
        "class names are used by several ids, which stay apart",
        of="ids",
    )
    if name != "train":
        of_class = table.rows * len(table.categories) + table.labels
        places, objects = np.unique(of_class[~table.crowd], return_counts=True)
        crowded = np.unique(places[objects > _COCO_LIMIT] // max(1, len(table.categories)))
        table.findings.add(
            WARNING,
            _ids(table, unmatched),
            "boxes that no detection can match are scored as missed, as pycocotools does",
        )
        table.findings.add(
            WARNING,
            [table.files[row] for row in crowded.tolist()],
            f"images have more than {_COCO_LIMIT} objects of a class: COCO's scores look at "
            f"{_COCO_LIMIT} detections of a class in an image, so that AP and AR cannot reach 1",
            of="",
        )


def _ids(table: Annotations, hit: np.ndarray) -> Sequence[Any]:
    found = table.ids_at(np.flatnonzero(hit))
    return found.tolist() if isinstance(found, np.ndarray) else found


def coco_format(table: Annotations) -> dict[str, Any]:
    """Annotations as the dictionary that a COCO file holds; sizes known, boxes in pixels."""
    with np.errstate(invalid="ignore", over="ignore"):
        of_boxes = table.boxes[:, 2] * table.boxes[:, 3]
    areas = np.where(np.isfinite(table.areas), table.areas, of_boxes)
    columns = (table.rows, table.labels, table.boxes, areas, table.crowd)
    ids = table.ids.tolist() if isinstance(table.ids, np.ndarray) else table.ids
    image_ids = table.image_ids.tolist()
    return {
        "info": {},
        "images": [
            {"id": key, "file_name": file, "height": size[0], "width": size[1]}
            for key, file, size in zip(image_ids, table.files, table.sizes.tolist(), strict=True)
        ],
        "annotations": [
            {
                "id": key,
                "image_id": image_ids[row],
                "category_id": table.categories[label]["id"],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for key, row, label, box, area, crowd in zip(
                ids, *(column.tolist() for column in columns), strict=True
            )
        ],
        "categories": table.categories,
    }


def with_boxes_of(table: Annotations, content: dict[str, Any]) -> Annotations:
    """The images of a table with the boxes of a COCO file on the same images and categories.

    Args:
      table: the images.
      content: as `coco_format` makes it of a table with these image and category ids.
    """
    row_of = {key: row for row, key in enumerate(table.image_ids.tolist())}
    label_of = {category["id"]: label for label, category in enumerate(table.categories)}
    entries = content["annotations"]
    return dataclasses.replace(
        table,
        ids=[entry["id"] for entry in entries],
        rows=np.array([row_of[entry["image_id"]] for entry in entries], np.int64),
        labels=np.array([label_of[entry["category_id"]] for entry in entries], np.int32),
        boxes=np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
        areas=np.array([entry["area"] for entry in entries], np.float64),
        crowd=np.array([bool(entry["iscrowd"]) for entry in entries], bool),
    )
