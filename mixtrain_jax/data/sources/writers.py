"""Data sets back into files: one split of `Annotations` as COCO, VOC or YOLO.

All three write what --data finds again: COCO's annotations/instances_SPLIT.json and images/SPLIT,
VOC's Annotations, JPEGImages and ImageSets/Main, YOLO's data.yaml, images/SPLIT and labels/SPLIT.
What a format cannot hold is counted in the findings that are returned.
"""

import json
import os
import posixpath
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from etils import epath

from mixtrain_jax.data.sources import yolo
from mixtrain_jax.data.sources.annotations import Annotations
from mixtrain_jax.data.sources.dataset import coco_format, names_apart
from mixtrain_jax.data.sources.report import LEFT_OUT, NOTE, WARNING, Findings
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

Images = Literal["copy", "link", "none"]


def write_coco(table: Annotations, folder: epath.Path, split: str, images: Images) -> Findings:
    """Writes one split as a COCO file, with the ids that its source has.

    Args:
      table: the split; sizes known, boxes in pixels.
      folder: of the new data set.
      split: "train", "val" or "test".
      images: what becomes of the image files: copied, linked symbolically, or left where they are.

    Returns:
      what was left out.

    Raises:
      UserError: a file is there already, or two images would have one name.
    """
    findings = Findings()
    content = coco_format(_finite(table, findings))
    names = file_names(table)
    originals = table.original_ids or table.image_ids.tolist()
    classes = table.original_categories or [category["id"] for category in table.categories]
    image_of = dict(zip(table.image_ids.tolist(), originals, strict=True))
    class_of = {c["id"]: own for c, own in zip(table.categories, classes, strict=True)}
    for entry, name in zip(content["images"], names, strict=True):
        entry.update(id=image_of[entry["id"]], file_name=name)
    for number, entry in enumerate(content["annotations"], 1):
        own = {
            "image_id": image_of[entry["image_id"]],
            "category_id": class_of[entry["category_id"]],
        }
        entry.update(own, id=entry["id"] if isinstance(entry["id"], int) else number)
    content["categories"] = [each | {"id": class_of[each["id"]]} for each in content["categories"]]
    _write(folder / "annotations" / f"instances_{split}.json", json.dumps(content))
    _place(table, names, folder / "images" / split, images)
    return findings


def write_voc(table: Annotations, folder: epath.Path, split: str, images: Images) -> Findings:
    """Writes one split as VOC: whole pixels counted from 1, crowds as `difficult`; see above."""
    findings = Findings()
    table = _finite(table, findings).by_image()
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if storage.exists(listing):
        raise UserError(f"{listing} is there already; choose another --output")
    names = file_names(table)
    stems = [os.path.splitext(name)[0] for name in names]
    others = folder / "Annotations"  # of another split, perhaps
    if any(storage.exists(others / f"{stem}.xml") for stem in stems):
        names = [f"{split}_{name}".replace("/", "_") for name in names]
        stems = [os.path.splitext(name)[0] for name in names]
    _check_stems(table, stems, "VOC has one XML for both")
    corners = np.concatenate([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]], axis=1)
    corners = np.rint(corners).astype(np.int64) + [1, 1, 0, 0]
    flat = table.boxes[:, 2:] == 0  # equal corners
    corners[:, 2:] += flat
    thin = ((corners[:, 2:] <= corners[:, :2]) & ~flat).any(axis=1)
    findings.add(
        WARNING,
        table.ids_at(np.flatnonzero(thin)),
        "boxes one pixel wide or high have equal corners in VOC, which are read as no area",
    )
    rounded = np.flatnonzero((table.boxes % 1 != 0).any(axis=1))
    findings.add(NOTE, table.ids_at(rounded), "boxes are rounded to whole pixels")
    ends = np.searchsorted(table.rows, np.arange(len(table) + 1))
    class_names = names_apart(table.categories)
    for row, (name, stem) in enumerate(zip(names, stems, strict=True)):
        root = ElementTree.Element("annotation")
        _child(root, "folder", "JPEGImages")
        _child(root, "filename", name)
        size = ElementTree.SubElement(root, "size")
        for side, value in zip(("height", "width"), table.sizes[row].tolist(), strict=True):
            _child(size, side, value)
        _child(size, "depth", 3)
        for i in range(ends[row], ends[row + 1]):
            each = ElementTree.SubElement(root, "object")
            _child(each, "name", class_names[table.labels[i]])
            _child(each, "difficult", int(table.crowd[i]))
            box = ElementTree.SubElement(each, "bndbox")
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners[i].tolist()):
                _child(box, side, value)
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode")
        _write(folder / "Annotations" / f"{stem}.xml", text + "\n")
    _write(listing, "".join(f"{stem}\n" for stem in stems))
    classes = "".join(f"{name}\n" for name in class_names)
    storage.write(folder / "classes.txt", classes.encode())
    _place(table, names, folder / "JPEGImages", images)
    return findings


def write_yolo(table: Annotations, folder: epath.Path, split: str, images: Images) -> Findings:
    """Writes one split as YOLO; crowds are left out, as YOLO cannot mark them; see above."""
    import yaml

    findings = Findings()
    table = _finite(table, findings).by_image()
    crowd = np.flatnonzero(table.crowd)
    findings.add(LEFT_OUT, table.ids_at(crowd), "crowd boxes")
    table = table.boxes_at(np.flatnonzero(~table.crowd))
    names = yolo_names(table)
    stems = [os.path.splitext(name)[0] for name in names]
    _check_stems(table, stems, "YOLO has one label file for both")
    sides = table.sizes[table.rows][:, ::-1].astype(np.float64)
    centers = (table.boxes[:, :2] + table.boxes[:, 2:] / 2) / sides
    numbers = np.concatenate([centers, table.boxes[:, 2:] / sides], axis=1)
    ends = np.searchsorted(table.rows, np.arange(len(table) + 1))
    for row, stem in enumerate(stems):
        lines = [
            f"{table.labels[i]} " + " ".join(f"{number:.7g}" for number in numbers[i])
            for i in range(ends[row], ends[row + 1])
        ]
        path = folder / "labels" / split / f"{stem}.txt"
        _write(path, "".join(f"{line}\n" for line in lines))
    _place(table, names, folder / "images" / split, images)
    path = folder / "data.yaml"
    content = yaml.safe_load(storage.read(path)) if storage.exists(path) else {}
    content[split] = f"images/{split}"
    content["names"] = {i: str(c["name"]) for i, c in enumerate(table.categories)}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    storage.write(path, text.encode())
    return findings


Writer = Callable[[Annotations, epath.Path, str, Images], Findings]
WRITERS: dict[str, Writer] = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def file_names(table: Annotations) -> list[str]:
    """Names for the image files, below one folder: those of the source without what leaves it."""
    names = [
        posixpath.normpath("/" + file.replace("\\", "/").replace(":", "_")).lstrip("/")
        for file in table.files
    ]
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two images of {table.source} are called {again}")
    return names


def yolo_names(table: Annotations) -> list[str]:
    """The same for YOLO: no folder below may be called images, or labels are not found."""
    return [
        "/".join(f"{part}_" if part in yolo.IMAGE_FOLDERS else part for part in name.split("/"))
        for name in file_names(table)
    ]


def _check_stems(table: Annotations, stems: Sequence[str], why: str) -> None:
    """Raises UserError if two names without extension are the same."""
    if len(set(stems)) < len(stems):
        again = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"two images of {table.source} are called {again}: {why}")


def _finite(table: Annotations, findings: Findings) -> Annotations:
    keep = np.isfinite(table.boxes).all(axis=1)
    lost = table.ids_at(np.flatnonzero(~keep))
    findings.add(LEFT_OUT, lost, "boxes with NaN or infinite coordinates")
    return table if keep.all() else table.boxes_at(np.flatnonzero(keep))


def _child(parent: ElementTree.Element, name: str, value: object) -> None:
    ElementTree.SubElement(parent, name).text = str(value)


def _write(path: epath.Path, text: str) -> None:
    if storage.exists(path):
        raise UserError(f"{path} is there already; choose another --output")
    try:
        storage.write(path, text.encode())
    except UnicodeEncodeError:
        what = path.name.encode(errors="backslashreplace").decode()
        raise UserError(f"{what}: its image's name is not UTF-8; rename the image") from None


def _place(table: Annotations, names: Sequence[str], folder: epath.Path, images: Images) -> None:
    """Copies or links the image files into a folder, under the names given."""
    if images == "none":
        return
    for row, name in enumerate(names):
        target = folder / name
        if storage.exists(target):
            raise UserError(f"{target} is there already; choose another --output")
        of_file = bool(table.paths) and storage.is_local(table.paths[row])
        if images == "link" and table.paths and not (of_file and storage.is_local(target)):
            where = target if of_file else table.paths[row]
            raise UserError(f"{where}: a bucket knows no links; --images=copy copies")
        try:
            if not (of_file and storage.is_local(target)):
                storage.write(target, table.content(row))
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if images == "link":
                os.symlink(os.path.abspath(table.paths[row]), target)
            else:
                shutil.copyfile(table.paths[row], target)
        except OSError as error:
            reason = storage.reason(error)
            raise UserError(f"{table.files[row]} cannot come to {target}: {reason}") from None
