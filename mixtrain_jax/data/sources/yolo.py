"""YOLO: one text file an image, with a line for each box, turned into `Annotations`.

A line is a class number and the box's centre, width and height as shares of the image's, or the
corners of a polygon, around which a box is drawn. data.yaml says where the images of each split are
and what the classes are called; without it there are folders of images and labels, and perhaps
classes.txt. A label file stands where its image does, with labels in place of images in its path.
"""

import collections
import math
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from mixtrain_jax.data.sources import file_names, text_files
from mixtrain_jax.data.sources.annotations import Annotations, from_lists
from mixtrain_jax.data.sources.report import LEFT_OUT, MENDED, NOTE, WARNING, Findings
from mixtrain_jax.data.sources.text_files import read_lines, read_text
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

YAML = (".yaml", ".yml")
IMAGE_FOLDERS = ("images", "JPEGImages", "imgs")  # in whose place labels stands in a path
SPLITS = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
_NAME_FILES = (
    "classes.txt",
    "obj.names",
    "labels.txt",
    "_darknet.labels",
    "predefined_classes.txt",
)


Pair = tuple[str, str, list[str]]  # of an image its name, path, and where its labels may be


class Box(NamedTuple):
    """One line of a label file: class, then x, y, width and height as shares of the image's."""

    label: int
    xywh: tuple[float, float, float, float]
    kind: str  # "box", "polygon", "more": a box with numbers after it, such as a pose's points


def read(annotations: str, images: str, split: str, classes: Sequence[str] = ()) -> Annotations:
    """Reads one split of a YOLO data set.

    Args:
      annotations: a data.yaml, or the folder of the label files; empty: beside the images.
      images: the folder of the images; not asked for where data.yaml says it.
      split: which of data.yaml's.
      classes: names in label order; none: data.yaml's, those of classes.txt, or numbers.

    Raises:
      UserError: files or folders are missing, there are no images, or a label is no class.
    """
    findings = Findings()
    points = 0
    if annotations.lower().endswith(YAML):
        content = read_yaml(annotations)
        split = split_of(split)
        pairs = list(_of_yaml(annotations, content, split))
        names = list(classes) or names_of(annotations, content)
        points = _points_of(annotations, content)
    else:
        pairs = list(_of_folders(images, annotations))
        names = list(classes) or names_beside(annotations or images)
    if not pairs:
        raise UserError(f"{images or annotations}: no images in the '{split}' split")
    pairs = _named_apart(_once(pairs, findings))
    table, boxes = [], []
    bare, wrong, polygons, more, twice = (list[str]() for _ in range(5))
    used: set[str] = set()
    for row, (name, path, candidates) in enumerate(pairs):
        table.append((name, path, (0, 0)))
        label_file = next(filter(storage.is_file, candidates), None)
        if label_file is None:
            bare.append(name)
            continue
        again = os.path.normpath(label_file) in used  # of 1.jpg and 1.png
        if again:
            twice.append(f"{name} ({label_file})")
        used.add(os.path.normpath(label_file))
        for number, line in enumerate(read_text(label_file, "label file").splitlines(), 1):
            if not line.strip():
                continue
            box = parse(line, points)
            place = f"{label_file}:{number}" + (f" ({name})" if again else "")
            if box is None:
                wrong.append(place)
                continue
            {"polygon": polygons, "more": more}.get(box.kind, []).append(place)
            boxes.append((row, box.label, box.xywh, False, place))
    lone = sorted(_labels_beside(pairs) - used)
    findings.add(LEFT_OUT, lone, "label files without an image", of="")
    findings.add(LEFT_OUT, wrong, "lines that are no box", of="")
    findings.add(MENDED, polygons, "polygons became the boxes around them", of="")
    findings.add(MENDED, more, "boxes have numbers after them, which are not looked at", of="")
    findings.add(
        WARNING, twice, "images have the label file of another image of their name, too", of=""
    )
    findings.add(NOTE, bare, "images have no label file and are taken as without objects", of="")
    if len(bare) == len(table):
        raise UserError(
            f"{annotations or images}: none of the {len(table)} images has a label file; looked "
            f"for {pairs[0][2][0]}"
        )
    _check(annotations or images, boxes, names)
    top = max((box[1] for box in boxes), default=0)
    names = names or [f"class {number}" for number in range(top + 1)]
    return from_lists(
        images=table,
        boxes=boxes,
        names=names,
        first_category=0,
        source=f"yolo {annotations or images}",
        shares=True,
        findings=findings,
    )


def split_of(name: str) -> str:
    """Which of train, val and test a split's name means; raises UserError if it is no such name."""
    for split, names in SPLITS.items():
        if name.lower() in names:
            return split
    raise UserError(f"config.data.*.split is {name!r}: of a data.yaml choose train, val or test")


def parse(line: str, points: int = 0) -> Box | None:
    """What a line of a label file says; None if it is no box.

    Args:
      line: of the file.
      points: how many numbers of a pose follow each box; 0: the labels are none of poses.
    """
    try:
        label, *numbers = (float(part) for part in line.replace(",", " ").split())
    except ValueError:
        return None
    if not all(map(math.isfinite, (label, *numbers))) or label < 0 or label != int(label):
        return None
    if len(numbers) in (4, 5) or (points and len(numbers) == 4 + points):
        x, y, w, h = numbers[:4]
        kind = "box" if len(numbers) == 4 else "more"
        return Box(int(label), (x - w / 2, y - h / 2, w, h), kind)
    if len(numbers) < 6 or len(numbers) % 2:
        return None
    xs, ys = numbers[0::2], numbers[1::2]
    box = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    return Box(int(label), box, "polygon")


def read_yaml(path: str) -> dict[str, Any]:
    """What a data.yaml holds, every value as the text that stands there.

    So a class that is called yes or 1e3 has this name, and no date is looked for.

    Raises:
      UserError: it is nothing of the kind.
    """
    import yaml

    try:
        content = yaml.load(read_text(path, "data.yaml"), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a data.yaml, it has no 'train' and no 'names'")
    return {
        key: "" if str(value).lower() in ("~", "null") else value for key, value in content.items()
    }


def names_of(path: str, content: dict[str, Any]) -> list[str]:
    """The class names of a data.yaml: a list, numbers with names, a file of them, or how many.

    Raises:
      UserError: `names` is none of these.
    """
    names, count = content.get("names"), str(content.get("nc") or "")
    if isinstance(names, dict):
        strange = [key for key in names if not key.isdecimal()]
        if strange:
            raise UserError(f"{path}: 'names' has {strange[0]!r} where a class number is expected")
        numbered = {int(key): text_files.one_line(str(name)) for key, name in names.items()}
        return [numbered.get(i, f"class {i}") for i in range(max(numbered, default=-1) + 1)]
    if isinstance(names, list):
        return [text_files.one_line(str(name)) for name in names]
    if names:
        beside = epath.Path(path).parent / names
        if not storage.is_file(beside):
            raise UserError(f"{path}: 'names' is {names!r}; give a list, or a file that is there")
        return read_lines(beside)
    return [f"class {i}" for i in range(int(count))] if count.isdecimal() else []


def _points_of(path: str, content: dict[str, Any]) -> int:
    """How many numbers of a pose follow each box, from `kpt_shape`; 0 where there are none."""
    shape = content.get("kpt_shape") or []
    if not isinstance(shape, list) or not all(str(part).isdecimal() for part in shape):
        raise UserError(f"{path}: 'kpt_shape' is {shape!r}; give two whole numbers")
    return math.prod(map(int, shape)) if shape else 0


def names_beside(folder: str) -> list[str]:
    """The class names of classes.txt or the like in a folder or above it; none if there is none."""
    place = epath.Path(folder)
    for parent in (place, place.parent, place.parent.parent):
        for name in _NAME_FILES:
            if storage.is_file(parent / name):
                return read_lines(parent / name)
    return []


def images_of(path: str, content: dict[str, Any], split: str) -> list[str]:
    """The folders and lists of images that a data.yaml names for a split; none if it names none.

    Raises:
      UserError: one of them is not there.
    """
    given: Any = next((content[key] for key in SPLITS[split] if content.get(key)), [])
    if isinstance(given, dict):
        raise UserError(f"{path}: '{split}' holds fields; give a folder, or a list of them")
    here = epath.Path(path).parent
    root = here / str(content.get("path") or "")
    found = []
    for name in [given] if isinstance(given, str) else list(given):
        name = str(name).replace("\\", "/")
        # Roboflow's ../train/images means ./train/images; what moved is looked for by its end.
        ends = [name.lstrip("./"), "/".join(name.rstrip("/").split("/")[-2:])]
        places = [root / name, here / name, *(here / end for end in ends)]
        place = next((p for p in places if storage.exists(p)), None)
        if place is None:
            raise UserError(f"{path}: '{split}' names {name}, which is neither in {here} nor there")
        found.append(os.path.normpath(place) if "://" not in str(place) else str(place))
    return found


def _of_yaml(path: str, content: dict[str, Any], split: str) -> Iterator[Pair]:
    for place in images_of(path, content, split):
        if place.lower().endswith(".txt"):
            for line in read_lines(place):
                line = line.replace("\\", "/")
                near = [epath.Path(place).parent / line, epath.Path(path).parent / line]
                file = str(next((p for p in near if storage.is_file(p)), near[0]))
                yield line.removeprefix("./"), os.path.normpath(file), label_files(file)
        else:
            yield from _of_folders(place, "")


def _of_folders(images: str, labels: str) -> Iterator[Pair]:
    """Of each image its name, its path, and where its label file may be.

    Labels without the images' folders go by the name alone, if one image has it.
    """
    names = list(file_names.Folder(images or labels).images())
    stems = {os.path.splitext(name)[0] for name in names}
    bases = collections.Counter(posixpath.basename(stem) for stem in stems)
    for name in names:
        path = posixpath.join(images or labels, name)
        candidates = label_files(path)
        if labels:
            stem = os.path.splitext(name)[0]
            near = [posixpath.join(labels, f"{stem}.txt")]
            if bases[posixpath.basename(stem)] == 1:
                near.append(posixpath.join(labels, f"{posixpath.basename(stem)}.txt"))
            candidates = near
        yield name, path, candidates


def _once(pairs: Sequence[Pair], findings: Findings) -> list[Pair]:
    """The images without those that a list names again."""
    once: dict[str, Pair] = {}
    again = []
    for pair in pairs:
        if once.setdefault(pair[1], pair) is not pair:
            again.append(pair[0])
    findings.add(LEFT_OUT, again, "further mentions of an image", of="")
    return list(once.values())


def _named_apart(pairs: Sequence[Pair]) -> list[Pair]:
    """The images with names that differ: of several folders, where they repeat, with the folder."""
    if len({name for name, _, _ in pairs}) == len(pairs):
        return list(pairs)
    paths = [path for _, path, _ in pairs]
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return [(posixpath.relpath(path, common), path, candidates) for _, path, candidates in pairs]


def label_files(image: str) -> list[str]:
    """Where the label file of an image may be: in labels in place of images, or beside it."""
    stem = os.path.splitext(image.replace("\\", "/"))[0]
    mirrored = re.sub(rf"(.*)(^|/)({'|'.join(IMAGE_FOLDERS)})/", r"\1\2labels/", stem)
    return [f"{mirrored}.txt", f"{stem}.txt"] if mirrored != stem else [f"{stem}.txt"]


def _labels_beside(pairs: Sequence[Pair]) -> set[str]:
    """All label files in the folders where label files are looked for.

    Not those of images that are there and in another split.
    """
    folders = {posixpath.dirname(candidates[0]) for _, _, candidates in pairs}
    pictured = {
        os.path.splitext(name)[0]
        for folder in {posixpath.dirname(path) for _, path, _ in pairs}
        for name in storage.list_folder(folder)
        if not name.endswith(".txt")
    }
    return {
        os.path.normpath(f"{folder}/{name}")
        for folder in folders
        for name in _text_files(folder)
        if name not in _NAME_FILES and os.path.splitext(name)[0] not in pictured
        if not _lists_a_split(f"{folder}/{name}")
    }


def _lists_a_split(path: str) -> bool:
    """Whether a file is a split's list of images, by its name and its first line."""
    if not re.match(r"(train|val|test)", posixpath.basename(path)):
        return False
    return any(parse(line) is None for line in read_lines(path)[:1])


def _text_files(folder: str) -> list[str]:
    return [name for name in storage.list_folder(folder) if name.endswith(".txt")]


def _check(
    source: str, boxes: Sequence[tuple[int, int, Any, bool, str]], names: Sequence[str]
) -> None:
    """Raises UserError if labels are no classes, or the boxes are in pixels."""
    strangers = sorted({box[1] for box in boxes if box[1] >= len(names)}) if names else []
    if strangers:
        raise UserError(
            f"{source}: labels have class {strangers[0]}, but there are {len(names)} names "
            f"(0 to {len(names) - 1})"
        )
    large = sum(max(abs(number) for number in box[2]) > 1.5 for box in boxes)
    if boxes and 2 * large > len(boxes):
        raise UserError(
            f"{source}: {large} of {len(boxes)} boxes have numbers above 1, so they look like "
            "pixels; YOLO's are shares of the image's sides"
        )
