"""COCO-format annotation files: read once, checked to the last id, turned into a `Dataset`."""

import json
import math
import os
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np
from etils import epath

from mixtrain_jax.data import records
from mixtrain_jax.runtime.errors import UserError

_LARGEST_ID = 2**53  # ids pass through float64 when detections are scored


def load(annotations: str, images: str, max_boxes: int, *, name: str = "coco") -> records.Dataset:
    """Reads a COCO annotation file and makes sure that its images exist.

    Args:
      annotations: path of the instances JSON.
      images: the folder that its file names are relative to.
      max_boxes: a photograph's further boxes are cut.
      name: how messages call this data set.

    Raises:
      UserError: the file is missing or unreadable or not COCO, ids are repeated, annotations name
        images or categories that are not there, or image files are missing.
    """
    content = _read(annotations)
    photos = _by_id(annotations, "images", content)
    classes = dict(sorted(_by_id(annotations, "categories", content).items()))
    boxes_by_id = _by_id(annotations, "annotations", content)
    for field, entries in (("images", photos), ("categories", classes)):
        if not entries:
            raise UserError(f"{annotations}: the list '{field}' is empty")
    sizes = {key: _size(annotations, key, photo) for key, photo in photos.items()}
    files = [_text(annotations, "images", key, p, "file_name") for key, p in photos.items()]
    categories = [
        {"id": key, "name": _text(annotations, "categories", key, c, "name")}
        for key, c in classes.items()
    ]
    _check_files(images, files)

    truth = _annotations(annotations, boxes_by_id, photos, classes)
    of_image: dict[int, list[dict[str, Any]]] = {key: [] for key in photos}
    for each in truth:
        of_image[each["image_id"]].append(each)
    label_of = {key: label for label, key in enumerate(classes)}
    targets = records.Targets(max_boxes)
    boxes, labels = [], []
    for key, group in of_image.items():
        xywh = np.array([each["bbox"] for each in group], np.float64).reshape(-1, 4)
        with np.errstate(invalid="ignore", over="ignore"):
            xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        kept = targets.select(
            sizes[key],
            xyxy,
            np.array([label_of[each["category_id"]] for each in group], np.int32),
            np.array([each["iscrowd"] for each in group], bool),
            [each["id"] for each in group],
        )
        boxes.append(kept[0])
        labels.append(kept[1])

    folder = epath.Path(images)
    return records.Dataset(
        name=name,
        image_ids=np.array(list(photos), np.int64),
        sizes=np.array(list(sizes.values()), np.int32),
        boxes=boxes,
        labels=labels,
        categories=categories,
        read=lambda row: (folder / files[row]).read_bytes(),
        names=lambda row: files[row],
        ground_truth={
            "info": {},
            "images": [
                {"id": key, "file_name": file, "height": size[0], "width": size[1]}
                for (key, size), file in zip(sizes.items(), files, strict=True)
            ],
            "annotations": [each for each in truth if np.isfinite(each["bbox"]).all()],
            "categories": categories,
        },
        report=records.report(name, annotations, labels, categories, targets.left_out),
    )


def categories(path: str) -> list[dict[str, Any]]:
    """The 'id' and 'name' of each class an annotation file lists, in label order; no more is read.

    Raises:
      UserError: the file lists no categories.
    """
    try:
        listed = json.loads(epath.Path(path).read_text())["categories"]
        named = [{"id": int(c["id"]), "name": str(c["name"])} for c in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} lists no categories: {error}") from error
    return sorted(named, key=lambda category: category["id"])


def _read(path: str) -> dict[str, Any]:
    try:
        content = json.loads(epath.Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the annotation file ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not a JSON file ({first})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO file, its top level must be an object with 'images'")
    return content


def _by_id(path: str, field: str, content: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """One of the file's lists, keyed by id."""
    entries = content.get(field)
    if not isinstance(entries, list):
        raise UserError(f"{path}: not a COCO file, it has no list '{field}'")
    keyed: dict[int, dict[str, Any]] = {}
    repeated = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: entry {place} of '{field}' is not an object")
        key = _integer(entry.get("id"))
        if key is None or abs(key) > _LARGEST_ID:
            raise UserError(f"{path}: entry {place} of '{field}' has no integer 'id'")
        if key in keyed:
            repeated.append(key)
        keyed[key] = entry
    if repeated:
        raise UserError(f"{path}: ids used twice in '{field}': {_some(repeated)}")
    return keyed


def _annotations(
    path: str,
    entries: dict[int, dict[str, Any]],
    photos: dict[int, Any],
    classes: dict[int, Any],
) -> list[dict[str, Any]]:
    """The annotations with just the fields that matter, every reference checked."""
    truth = []
    unknown: dict[str, list[str]] = {"image": [], "category": []}
    for key, entry in entries.items():
        image = _integer(entry.get("image_id"))
        category = _integer(entry.get("category_id"))
        if image not in photos:
            unknown["image"].append(f"{key} (image_id {entry.get('image_id')!r})")
        if category not in classes:
            unknown["category"].append(f"{key} (category_id {entry.get('category_id')!r})")
        bbox = _bbox(path, key, entry.get("bbox"))
        area = entry.get("area")
        area = _float(area) if _number(area) else math.nan
        if not math.isfinite(area):
            area = bbox[2] * bbox[3]
        truth.append(
            {
                "id": key,
                "image_id": image,
                "category_id": category,
                "bbox": bbox,
                "area": area,
                "iscrowd": int(bool(entry.get("iscrowd", 0))),
            }
        )
    for kind, found in unknown.items():
        if found:
            raise UserError(
                f"{path}: {len(found)} annotations name an unknown {kind}: {_some(found)}"
            )
    return truth


def _bbox(path: str, key: int, value: Any) -> list[float]:
    """x, y, width, height; null, which some writers put for NaN, is NaN."""
    if not isinstance(value, list) or len(value) != 4:
        raise UserError(f"{path}: annotation {key} has no 'bbox' of four numbers")
    if not all(number is None or _number(number) for number in value):
        raise UserError(f"{path}: the 'bbox' of annotation {key} is not four numbers")
    return [math.nan if number is None else _float(number) for number in value]


def _size(path: str, key: int, photo: dict[str, Any]) -> tuple[int, int]:
    height, width = _integer(photo.get("height")), _integer(photo.get("width"))
    if height is None or width is None or not (0 < height < 2**31 and 0 < width < 2**31):
        raise UserError(f"{path}: image {key} has no positive integer 'height' and 'width'")
    return height, width


def _text(path: str, field: str, key: int, entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value:
        raise UserError(f"{path}: entry with id {key} of '{field}' has no text '{name}'")
    return value


def _check_files(images: str, files: list[str]) -> None:
    """Raises UserError if files are missing. Lists folders: faster than to ask for each file."""
    folder = epath.Path(images)
    present: dict[str, set[str]] = {}
    missing = []
    for file in files:
        parent, name = os.path.split(file)
        if parent not in present:
            present[parent] = _listing(folder / parent)
        if name not in present[parent]:
            missing.append(file)
    if missing:
        raise UserError(
            f"{images}: {len(missing)} of {len(files)} images are missing: {_some(missing)}; "
            "check config.data.*.images"
        )


def _listing(folder: epath.Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return set()


def _number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _integer(value: Any) -> int | None:
    """The value as an int if it is one, also when written as 1.0; else None."""
    whole = _number(value) and (isinstance(value, int) or value.is_integer())
    return int(value) if whole else None


def _some(values: Iterable[Any]) -> str:
    """The first few, for a message that stays one short line."""
    values = [str(value).replace("\n", " ")[:80] for value in values]
    return ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")
