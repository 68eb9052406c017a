"""COCO-format annotation files: read once, checked to the last id, turned into `Annotations`.

Each entry is taken as it was meant where that is certain (numbers in text, a box from its polygon
or mask), left out and counted where it cannot be, and refused only where most of the file is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixtrain_jax.data.sources import coco_lists, file_names, text_files
from mixtrain_jax.data.sources.annotations import LARGEST_ID, Annotations
from mixtrain_jax.data.sources.coco_lists import Key
from mixtrain_jax.data.sources.report import LEFT_OUT, MENDED, NOTE, Findings, some
from mixtrain_jax.errors import UserError

Entry = dict[str, Any]


def read(annotations: str, images: str) -> Annotations:
    """Reads a COCO annotation file and makes sure that its images exist.

    Args:
      annotations: path of the instances JSON; it may be gzipped.
      images: the folder that its file names are relative to.

    Raises:
      UserError: the file is missing or unreadable or not COCO, ids are repeated, annotations name
        images or categories that are not there, or image files are missing.
    """
    pictured, boxes, entries = coco_lists.read(annotations)
    findings = Findings()
    if not len(pictured.keys):
        raise UserError(f"{annotations}: the list 'images' is empty")
    classes = _classes(annotations, entries, boxes.categories, findings)
    if "" in pictured.files:
        nameless = coco_lists.listed(pictured.keys)[pictured.files.index("")]
        raise UserError(
            f"{annotations}: entry with id {nameless} of 'images' has no text 'file_name'"
        )
    image_ids, original_ids = _numbers("image", pictured.keys, pictured.odd, findings)
    listed, original_categories = _categories(annotations, classes, findings)
    return Annotations(
        source=annotations,
        files=pictured.files,
        paths=_paths(images, pictured.files, findings),
        image_ids=np.array(image_ids, np.int64),
        sizes=pictured.sizes,
        categories=listed,
        findings=findings,
        original_ids=original_ids,
        original_categories=original_categories,
        **_boxes(annotations, boxes, pictured.keys, list(classes), findings),
    )


def categories(path: str) -> list[dict[str, Any]]:
    """The 'id' and 'name' of each class an annotation file lists, in label order; no more is read.

    Raises:
      UserError: the file lists no categories.
    """
    classes = _classes(path, coco_lists.categories(path), [], Findings())
    return _categories(path, classes, Findings())[0]


def _classes(
    path: str, listed: dict[Key, Entry], used: coco_lists.Keys, findings: Findings
) -> dict[Key, Entry]:
    """The entries that are classes, in label order: by id, numbers before texts."""
    if not listed:
        raise UserError(f"{path}: the list 'categories' is empty")
    classes = _without_root(listed, used, findings)
    return dict(sorted(classes.items(), key=lambda pair: (isinstance(pair[0], str), pair[0])))


def _categories(
    path: str, classes: dict[Key, Entry], findings: Findings
) -> tuple[list[dict[str, Any]], Sequence[Any] | None]:
    """'id' and 'name' of each class, and the file's own ids where they are no numbers."""
    odd = {
        place: entry["id"]
        for place, (key, entry) in enumerate(classes.items())
        if entry["id"] is not key
    }
    ids, originals = _numbers("category", list(classes), odd, findings)
    written = [_text(path, "categories", key, entry, "name") for key, entry in classes.items()]
    names = [text_files.one_line(name) for name in written]
    findings.add(
        MENDED,
        [repr(name) for name, plain in zip(written, names, strict=True) if name != plain],
        "names of categories hold line ends, which are left out",
        of="",
    )
    return [{"id": key, "name": name} for key, name in zip(ids, names, strict=True)], originals


def _without_root(
    classes: dict[Key, Entry], used: coco_lists.Keys, findings: Findings
) -> dict[Key, Entry]:
    """The classes without one that only groups the others, as Roboflow writes it.

    Such a category is the supercategory of all others, has none itself, and has no box. Where it
    only is that of some, a split without its boxes must not lose it.
    """
    names = {key: str(each.get("name")) for key, each in classes.items()}
    groups: dict[str, set[Key]] = {}
    for key, each in classes.items():
        groups.setdefault(str(each.get("supercategory")), set()).add(key)
    roots = [
        key
        for key, each in classes.items()
        if groups.get(names[key], set()) | {key} == classes.keys()
        and len(classes) > 1
        and str(each.get("supercategory") or "none").lower() == "none"
    ]
    if roots:
        met = set(np.unique(used).tolist() if isinstance(used, np.ndarray) else used)
        roots = [key for key in roots if key not in met]
    findings.add(
        NOTE,
        [f"{key}: {names[key]}" for key in roots],
        "categories only group others and have no box; they are no classes",
        of="",
    )
    return {key: each for key, each in classes.items() if key not in roots}


def _numbers(
    kind: str, keys: coco_lists.Keys, odd: dict[int, Any], findings: Findings
) -> tuple[Sequence[int] | np.ndarray, Sequence[Any] | None]:
    """Ids to work with: the file's, or from 1 on where it has texts or huge numbers, and these.

    Args:
      kind: what they are ids of, for messages.
      keys: ids as they are compared.
      odd: by place, those that stand otherwise in the file.
      findings: takes what is said of them.
    """
    if isinstance(keys, np.ndarray) and (np.abs(keys) <= LARGEST_ID).all():
        unfit = []
    else:
        keys = coco_lists.listed(keys)
        unfit = [key for key in keys if not isinstance(key, int) or abs(key) > LARGEST_ID]
    texts = any(isinstance(value, str) for value in odd.values())
    originals = None
    if unfit or texts:
        originals = coco_lists.listed(keys).copy()
        for place, value in odd.items():
            originals[place] = value
    if not unfit:
        return keys, originals
    findings.add(
        NOTE,
        unfit,
        f"{kind} ids are texts or above 2^53: they are numbered from 1 on here, and results have "
        "the file's own",
        of="",
    )
    return range(1, len(keys) + 1), originals


def _boxes(
    path: str,
    boxes: coco_lists.Boxes,
    image_keys: coco_lists.Keys,
    class_keys: list[Key],
    findings: Findings,
) -> dict[str, Any]:
    """The fields of `Annotations` that are of boxes, every reference checked."""
    rows = coco_lists.places(boxes.images, image_keys)
    labels = coco_lists.places(boxes.categories, class_keys)

    def keys_at(hit: np.ndarray) -> list[Any]:
        found = np.flatnonzero(hit).tolist()
        return [coco_lists.listed(boxes.keys[place : place + 1])[0] for place in found]

    for number, (kind, known, wanted) in enumerate(
        (("image", rows, boxes.images), ("category", labels, boxes.categories))
    ):
        unknown = np.flatnonzero(known < 0).tolist()
        if unknown:
            names = [
                boxes.odd[place][number]
                if place in boxes.odd
                else coco_lists.listed(wanted[place : place + 1])[0]
                for place in unknown
            ]
            found = [
                f"{key} ({kind}_id {name!r})"
                for key, name in zip(keys_at(known < 0), names, strict=True)
            ]
            raise UserError(
                f"{path}: {len(found)} annotations name an unknown {kind}: {some(found)}"
            )
    without = keys_at(boxes.without)
    if 2 * len(without) > len(rows):
        raise UserError(
            f"{path}: {len(without)} of {len(rows)} annotations have no 'bbox' of four numbers "
            f"and no outline to take it from: {some(without)}"
        )
    there = ~boxes.without
    findings.add(LEFT_OUT, without, "annotations without a 'bbox' of four numbers")
    findings.add(
        MENDED, keys_at(boxes.outlined), "annotations without a 'bbox' got that of their outline"
    )
    findings.add(
        MENDED,
        keys_at(boxes.texts & there),
        "annotations have 'iscrowd' as text, whose value is read",
    )
    keys = boxes.keys
    if len(without):
        chosen = np.flatnonzero(there)
        keys = (
            keys[chosen]
            if isinstance(keys, np.ndarray)
            else [keys[place] for place in chosen.tolist()]
        )
    return {
        "ids": keys,
        "rows": rows[there] if len(without) else rows,
        "labels": labels[there].astype(np.int32),
        "boxes": boxes.boxes[there] if len(without) else boxes.boxes,
        "areas": boxes.areas[there] if len(without) else boxes.areas,
        "crowd": boxes.crowd[there] if len(without) else boxes.crowd,
    }


def _text(path: str, field: str, key: Key, entry: Entry, name: str) -> str:
    value = entry.get(name)
    if field == "categories" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: entry with id {key} of '{field}' has no text '{name}'")
    return value


def _paths(images: str, files: list[str], findings: Findings) -> list[str]:
    """Paths of the files; raises UserError if some are missing."""
    folder = file_names.Folder(images)
    found = folder.find_all(files)
    if None in found:
        missing = [file for file, path in zip(files, found, strict=True) if path is None]
        nearest = folder.nearest(missing[0])
        raise UserError(
            f"{images}: {len(missing)} of {len(files)} images are missing: {some(missing)}; "
            + (f"the file most like the first is {nearest}; " if nearest else "")
            + "check config.data.*.images"
        )
    findings.add(
        MENDED,
        [f"{file} is {path}" for file, path in zip(files, found, strict=True) if file != path],
        "file names are spelt otherwise than the files",
        of="",
    )
    return [folder.path_of(path) for path in found if path is not None]
