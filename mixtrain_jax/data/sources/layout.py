"""What kind of data set a folder holds, and where its splits are: fields of `config.data`.

Folders as people have them: COCO's own, Roboflow's and Ultralytics' exports, VOC's devkit, XMLs or
label files beside the images, one file at the root. A folder that only holds another is entered.
"""

import collections
import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Sequence

from absl import logging
from etils import epath

from mixtrain_jax.data.sources import coco_lists, file_names, text_files, voc, yolo
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

VAL_SHARE = 0.2  # of the images, where a folder has one split only
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")  # COCO's
_LISTED = 20  # names of a COCO file that are tried to find its images
_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
Part = dict[str, str]  # fields of one split


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a folder was found to hold.

    Attributes:
      source: coco, voc or yolo.
      parts: of each split found, the fields of its group of `config.data`.
      classes: names in label order where a split alone may not show all of them.
    """

    source: str
    parts: dict[str, Part]
    classes: Sequence[str] = ()

    @property
    def overrides(self) -> dict[str, str]:
        """All fields of `config.data` that say where data is, as text for `config.load`."""
        parts = dict(self.parts)
        if "train" not in parts:  # one split, whatever it is called
            parts = {"train": next(iter(parts.values()))} | dict(list(parts.items())[1:])
        share = 0.0 if "val" in parts else VAL_SHARE
        fields = {"source": self.source, "classes": repr(tuple(self.classes))}
        fields["val_share"] = f"{share:g}"
        for split in ("train", "val", "test"):
            for field in ("annotations", "images", "list"):
                fields[f"{split}.{field}"] = parts.get(split, {}).get(field, "")
            if self.source == "yolo":  # the other sources have no use for it
                fields[f"{split}.split"] = parts.get(split, {}).get("split", "")
        return {f"data.{name}": value for name, value in fields.items()}

    def __str__(self) -> str:
        """The layout in one line."""
        splits = ", ".join(
            f"{split} in {part.get('list') or part.get('annotations') or part.get('images')}"
            for split, part in self.parts.items()
        )
        return f"{self.source}: {splits}"


def find(folder: str) -> Layout:
    """Finds out which source a folder is for, and its splits.

    Args:
      folder: of the data set, or its data.yaml or COCO file.

    Raises:
      UserError: there is no such folder, or nothing in it that is known, or several sets.
    """
    place = epath.Path(folder)
    if storage.is_file(place):
        if folder.lower().endswith(yolo.YAML):
            return _of_yaml(folder)
        coco_lists.first_names(folder, 0)  # tells what is wrong with it
        found = _coco(str(place.parent), [place.name])
        if found is None:
            raise UserError(f"--data={folder}: not a COCO file and not a data.yaml")
        return found
    if not storage.is_directory(place):
        raise UserError(f"--data={folder}: there is no such folder")
    tree = [path for path in file_names.walk(folder) if not path.startswith("runs/")]
    if not tree:
        raise UserError(f"--data={folder}: the folder is empty")
    for finder in (_yaml, _coco_files, _voc, _yolo_folders):
        found = finder(folder, tree)
        if found is not None:
            return found
    for path in tree:
        if file_names.suffix(path) == ".json":
            text_files.read_json(_join(folder, path))  # tells what is wrong with it
    kinds: dict[str, int] = {}
    for path in tree:
        kind = file_names.suffix(path) or "without extension"
        kinds[kind] = kinds.get(kind, 0) + 1
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())[:6])
    raise UserError(
        f"--data={folder}: no COCO file, VOC XMLs or YOLO labels are found; it holds {listed} files"
    )


def _join(folder: str, path: str) -> str:
    return str(epath.Path(folder) / path) if path else folder


def _common(paths: Iterable[str]) -> str:
    """The deepest folder that holds all of some relative paths; empty for the root."""
    listed = list(paths)
    return os.path.commonpath(listed) if all(listed) else ""


def _is_in(path: str, folder: str) -> bool:
    """Whether a relative path is a folder (empty for the root) or is in it."""
    return not folder or f"{path}/".startswith(f"{folder}/")


def _by_split(folder: str, below: Iterable[str]) -> dict[str, str]:
    """Of each split the deepest folder that holds its folders; empty where none tells of a split.

    Folders that tell of none are train's, unless others are.

    Raises:
      UserError: it cannot be told which folders are train's, or one split's hold another's.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted(below):
        groups.setdefault(_split(path) or "", []).append(path)
    unnamed = groups.pop("", [])
    if not groups:
        return {}
    if unnamed and "train" in groups:
        raise UserError(
            f"--data={folder}: '{unnamed[0]}' has labels and names no split, and "
            f"'{groups['train'][0]}' is train's; move one of them into a folder of its split"
        )
    if unnamed:
        groups["train"] = unnamed
    tops = {split: _common(paths) for split, paths in groups.items()}
    for (split, top), (other, inner) in itertools.permutations(tops.items(), 2):
        if _is_in(inner, top):
            raise UserError(
                f"--data={folder}: '{top or '.'}', which holds the {split} images, holds '{inner}' "
                f"of {other} too; give each split one folder"
            )
    return tops


def _split(path: str) -> str | None:
    """The split that a path's last parts tell of; the part nearest to the end decides."""
    for part in reversed(path.lower().split("/")):
        found = {_WORDS[word] for word in re.split(r"[^a-z]+", part) if word in _WORDS}
        if len(found) == 1:
            return found.pop()
    return None


# YOLO


def _yaml(folder: str, tree: Sequence[str]) -> Layout | None:
    files = [path for path in tree if path.lower().endswith(yolo.YAML) and path.count("/") < 3]
    usable = []
    for path in files:
        try:
            content = yolo.read_yaml(_join(folder, path))
        except UserError:
            continue
        if "names" in content or "nc" in content:
            usable.append(path)
    if not usable:
        return None
    first = min(usable, key=lambda path: (path.count("/"), os.path.basename(path) != "data.yaml"))
    rivals = [path for path in usable if path != first and path.count("/") == first.count("/")]
    if rivals and not first.endswith("data.yaml"):
        raise UserError(
            f"--data={folder}: {first} and {rivals[0]} both describe a data set; name one of them"
        )
    return _of_yaml(_join(folder, first))


def _of_yaml(path: str) -> Layout:
    content = yolo.read_yaml(path)
    parts: dict[str, Part] = {}
    for split in yolo.SPLITS:
        try:
            found = yolo.images_of(path, content, split)
        except UserError:
            if split != "test":  # exports name a test split that they leave out
                raise
            continue
        if found:
            parts[split] = {"annotations": path, "split": split}
    if not parts:
        raise UserError(f"{path}: it names no 'train', 'val' or 'test'")
    if "val" in parts and yolo.images_of(path, content, "val") == (
        yolo.images_of(path, content, "train") if "train" in parts else None
    ):
        del parts["val"]  # the same images twice: no val at all
    return Layout("yolo", parts)


def _yolo_folders(folder: str, tree: Sequence[str]) -> Layout | None:
    """Folders of images with label files in mirrored folders or beside them."""
    images = [path for path in tree if file_names.suffix(path) in file_names.SUFFIXES]
    texts = {path for path in tree if path.endswith(".txt")}
    labelled: dict[str, str] = {}  # folders of images, and those of their labels
    found_in: list[str] = []
    for path in images:
        found = next((each for each in yolo.label_files(path) if each in texts), None)
        if found is not None:
            found_in.append(found)
            labelled.setdefault(os.path.dirname(path), os.path.dirname(found))
    if not labelled:
        return None
    lines = text_files.read_lines(_join(folder, found_in[0]))[:3]
    if any(yolo.parse(line) is None for line in lines):
        return None  # texts about the images, but no labels
    tops = _by_split(folder, labelled) or {"train": _common(labelled)}
    parts: dict[str, Part] = {}
    for split, top in tops.items():
        theirs = _common(beside for below, beside in labelled.items() if _is_in(below, top))
        parts[split] = {"images": _join(folder, top), "annotations": _join(folder, theirs)}
    classes = yolo.names_beside(next(iter(parts.values()))["annotations"])
    if not classes:
        lines = [line for path in found_in for line in text_files.read_lines(_join(folder, path))]
        found_labels = [box.label for box in map(yolo.parse, lines) if box is not None]
        classes = [f"class {number}" for number in range(max(found_labels, default=0) + 1)]
    return Layout("yolo", parts, classes)


# COCO


def _coco_files(folder: str, tree: Sequence[str]) -> Layout | None:
    files = [
        path
        for path in tree
        if re.search(r"\.json(\.gz|\.zip)?$", path.lower()) and path.count("/") < 4
    ]
    named = [path for path in files if os.path.basename(path).startswith("instances_")]
    named = named or [path for path in files if path.endswith("_annotations.coco.json")]
    if named:  # others are of a split that has no such file, or for another task
        splits = {_split(path) for path in named} | {None}
        others = [path for path in files if not os.path.basename(path).startswith(_OTHER_TASKS)]
        others = [path for path in others if _split(path) not in splits]
        count = collections.Counter(map(_split, others))
        named += [path for path in others if count[_split(path)] == 1]
    return _coco(folder, named or files) if files else None


def _coco(folder: str, files: Sequence[str]) -> Layout | None:
    """The layout of COCO files, by their paths below a folder; None if none of them is one."""
    parts: dict[str, Part] = {}
    others: list[Part] = []
    for path in files:
        file = _join(folder, path)
        try:
            names = coco_lists.first_names(file, _LISTED)
        except UserError:
            continue  # `find` tells, if nothing else is found
        if names is None:
            continue
        part = {"annotations": file, "images": _images_of(folder, path, names)}
        split = _split(path)
        if split is None:
            others.append(part)
        elif split in parts:
            raise UserError(
                f"--data={folder}: {parts[split]['annotations']} and {file} are both COCO files "
                f"of {split}; name one with --config.data.{split}.annotations"
            )
        else:
            parts[split] = part
    if "train" in parts:
        for part in others:
            logging.warning(
                "--data=%s: %s is not used, as %s is train's",
                folder, part["annotations"], parts["train"]["annotations"],
            )  # fmt: skip
    elif len(others) > 1:
        raise UserError(
            f"--data={folder}: {others[0]['annotations']} and {others[1]['annotations']} are COCO "
            "files, and their names do not say which is train and which val"
        )
    elif others:
        parts["train"] = others[0]
    order = [split for split in ("train", "val", "test") if split in parts]
    return Layout("coco", {split: parts[split] for split in order}) if parts else None


def _images_of(folder: str, path: str, names: Sequence[str]) -> str:
    """The folder that a COCO file's names are relative to: where most of the first are found."""
    parent = epath.Path(_join(folder, path)).parent
    stem = re.sub(r"^instances_|\.json.*$|^_annotations.*$", "", os.path.basename(path))
    split = _split(path) or ""
    words = [word for word, meaning in _WORDS.items() if meaning == split]
    places: list[epath.Path] = []
    for root in dict.fromkeys((parent, parent.parent, epath.Path(folder))):
        below = [root / "images", root / "imgs", root / "data", root]
        places += [base / name for name in (stem, *words) if name for base in below]
        places += below
    best, most = str(parent), 0
    for place in dict.fromkeys(places):
        if storage.is_directory(place):
            hits = sum(storage.is_file(place / name) for name in names)
            if hits > most:
                best, most = str(place), hits
    if most:
        return best
    # Names that are spelt otherwise: the first of the folders in which they can be found.
    for place in dict.fromkeys(places):
        if storage.is_directory(place) and any(file_names.Folder(place).find_all(names)):
            return str(place)
    return best


# VOC


def _voc(folder: str, tree: Sequence[str]) -> Layout | None:
    files = [path for path in tree if path.lower().endswith(".xml")]
    files = [path for path in files if _is_voc(_join(folder, path))][:1] and files
    if not files:
        return None
    folders = sorted({os.path.dirname(path) for path in files})
    roots = sorted({re.sub(r"(^|/)Annotations(/.*)?$", "", below) for below in folders})
    if len(roots) > 1 and all(_split(root) is None for root in roots):
        raise UserError(
            f"--data={folder}: several VOC sets: {', '.join(roots[:5])}; name one of them"
        )
    tops = _by_split(folder, folders)
    parts = {split: _voc_part(folder, top) for split, top in tops.items()}
    if not parts:
        whole = _voc_part(folder, _common(folders))
        lists = _lists(folder, tree, roots[0])
        parts = {split: whole | {"list": path} for split, path in lists.items()}
        parts = parts or {"train": whole}
    order = [split for split in ("train", "val", "test") if split in parts]
    names: set[str] = set()
    for annotations in {part["annotations"] for part in parts.values()}:
        names.update(voc.class_names(annotations))
    listed = yolo.names_beside(_join(folder, folders[0]))  # in an order of their own
    names_in_order = listed if names <= set(listed) else sorted(names)
    return Layout("voc", {split: parts[split] for split in order}, names_in_order)


def _voc_part(folder: str, below: str) -> Part:
    annotations = _join(folder, below)
    return {"annotations": annotations, "images": voc.images_beside(annotations)}


def _lists(folder: str, tree: Sequence[str], root: str) -> dict[str, str]:
    """The lists of splits in ImageSets/Main or at the root; trainval only where train is none."""
    found: dict[str, str] = {}
    for place in (f"{root}/ImageSets/Main", f"{root}/ImageSets", root):
        place = place.strip("/")
        for name, split in _WORDS.items():
            path = f"{place}/{name}.txt".lstrip("/")
            if path in tree and text_files.read_lines(_join(folder, path)):
                found.setdefault(split, _join(folder, path))
        if found:
            break
    return found


def _is_voc(path: str) -> bool:
    try:
        return "<annotation" in text_files.read_text(path)[:4000]
    except UserError:
        return False
