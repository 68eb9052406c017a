"""Detections in image files as reports: our own JSON, a COCO file, YOLO's label files."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

REPORT = "detections.json"
COCO = "detections_coco.json"
CLASSES = "classes.txt"
RECORD = ".predicted"  # names the files that a folder has from here, and that may be replaced
FORMATS = ("json", "coco", "yolo")


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found in one image.

    Attributes:
      path: of the image.
      size: its height and width in pixels.
      boxes: [n, 4] x1 y1 x2 y2 in pixels of the image, best first.
      scores: [n] in [0, 1].
      labels: [n].
    """

    path: str
    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def write(
    output: epath.Path,
    found: Sequence[Found],
    stems: Mapping[str, str],
    categories: Sequence[dict[str, Any]],
    form: str,
) -> list[epath.Path]:
    """Writes detections.json, and the report of another format beside it.

    Args:
      output: directory.
      found: of each image.
      stems: by path of an image, its name for YOLO's label files.
      categories: 'id' and 'name' of each label.
      form: one of FORMATS.

    Returns:
      The files and folders that were written.

    Raises:
      UserError: a file cannot be written.
    """
    storage.write_json(output / REPORT, [_entry(each, categories) for each in found])
    if form == "coco":
        storage.write_json(output / COCO, coco(found, categories))
        return [output / REPORT, output / COCO]
    if form == "yolo":
        names = "".join(f"{category['name']}\n" for category in categories)
        storage.write(output / CLASSES, names.encode())
        for each in found:
            storage.write(_label_file(output, stems[each.path]), yolo(each).encode())
        return [output / REPORT, output / "labels"]
    return [output / REPORT]


def claim(output: epath.Path, files: Sequence[epath.Path]) -> None:
    """Notes in a folder which files are about to be written there.

    Args:
      output: directory of the report.
      files: in it, or in folders below.

    Raises:
      UserError: one is there already, and no earlier report wrote it.
    """
    record = output / RECORD
    ours = set(json.loads(storage.read(record))) if storage.exists(record) else set()
    there = {folder: set(storage.list_folder(folder)) for folder in {file.parent for file in files}}
    names = {str(file.relative_to(output)): file for file in files}
    for name, file in names.items():
        if file.name in there[file.parent] and name not in ours:
            raise UserError(f"{file} is there, and no prediction wrote it; change --output")
    storage.write_json(record, sorted(ours | names.keys()), indent=0)


def files_of(output: epath.Path, stems: Mapping[str, str], form: str) -> list[epath.Path]:
    """The files that `write` may write; arguments as there."""
    if form == "coco":
        return [output / REPORT, output / COCO]
    if form == "yolo":
        labels = [_label_file(output, stem) for stem in stems.values()]
        return [output / REPORT, output / CLASSES, *labels]
    return [output / REPORT]


def _label_file(output: epath.Path, stem: str) -> epath.Path:
    return output / "labels" / f"{stem}.txt"


def _entry(found: Found, categories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "image": found.path,
        "height": found.size[0],
        "width": found.size[1],
        "detections": [
            {
                "category": categories[label]["name"],
                "category_id": categories[label]["id"],
                "box": [round(x, 2) for x in box],
                "score": round(score, 4),
            }
            for box, score, label in zip(
                found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
            )
        ],
    }


def coco(found: Sequence[Found], categories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A COCO file with images, numbered from 1, categories, and scored annotations.

    Its list of annotations alone is a COCO results file for these image ids.
    """
    annotations: list[dict[str, Any]] = []
    for number, each in enumerate(found, 1):
        for box, score, label in zip(
            each.boxes.tolist(), each.scores.tolist(), each.labels.tolist()
        ):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": categories[label]["id"],
                    "bbox": [round(x, 2) for x in (x1, y1, x2 - x1, y2 - y1)],
                    "area": round((x2 - x1) * (y2 - y1), 2),
                    "iscrowd": 0,
                    "score": round(score, 4),
                }
            )
    images = [
        {"id": number, "file_name": each.path, "height": each.size[0], "width": each.size[1]}
        for number, each in enumerate(found, 1)
    ]
    return {"images": images, "annotations": annotations, "categories": list(categories)}


def yolo(found: Found) -> str:
    """Lines of label, centre x and y, width and height as shares of the image's, and score."""
    height, width = found.size
    lines = []
    for box, score, label in zip(
        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
    ):
        x1, y1, x2, y2 = box
        centre = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
        shares = (*centre, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{label} {' '.join(f'{share:.6f}' for share in shares)} {score:.4f}\n")
    return "".join(lines)
