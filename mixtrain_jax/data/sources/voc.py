"""Pascal VOC: one XML a picture, beside the images or in Annotations/, turned into `Annotations`.

VOC counts pixels from 1 and its last pixel is inside: xmin 1 and xmax 10 are ten pixels from the
left edge. `difficult` objects are to be ignored, as crowds are. What `filename` and `path` say is
often of another machine: the image is looked for by the names given, then by the XML's own.
"""

import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from mixtrain_jax.data.sources import coco_values, file_names
from mixtrain_jax.data.sources.annotations import Annotations, from_lists
from mixtrain_jax.data.sources.report import LEFT_OUT, MENDED, Findings, some
from mixtrain_jax.data.sources.text_files import read_text
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

_ABOVE = 4  # folders in which a folder of images is looked for

Box = tuple[float, float, float, float]


class Picture(NamedTuple):
    """What one XML says.

    Attributes:
      names: under which its image may be found, the best first.
      size: declared height and width; zeros where none are declared.
      objects: of each its class, x, y, width and height, and whether it is `difficult`.
      without: objects without a name or box.
    """

    names: tuple[str, ...]
    size: tuple[int, int]
    objects: tuple[tuple[str, Box, bool], ...]
    without: int


def read(annotations: str, images: str, classes: Sequence[str] = ()) -> Annotations:
    """Reads a folder of VOC annotations.

    Args:
      annotations: folder of the XMLs, which may have folders.
      images: folder of the images; empty: beside the XMLs, or in JPEGImages beside their folder.
      classes: names in label order; none: those found, sorted.

    Raises:
      UserError: there are no XMLs, none has an image, or a class is none of `classes`.
    """
    folder = images or images_beside(annotations)
    files = file_names.Folder(folder)
    findings = Findings()
    table: list[tuple[str, str, tuple[int, int]]] = []
    boxes: list[tuple[int, str, Box, bool, str]] = []
    alone, damaged, without, renamed, odd = [], [], list[str](), [], []
    pictures: list[tuple[str, Picture]] = []
    for path in xmls(annotations):
        try:
            picture = parse(read_text(epath.Path(annotations) / path), path)
        except (ElementTree.ParseError, UserError) as error:
            damaged.append(f"{path}: {error}")
            continue
        if picture is None:
            odd.append(path)
        else:
            pictures.append((path, picture))
    for (path, picture), found in zip(pictures, _images_of(pictures, files), strict=True):
        if found is None:
            alone.append(path)
            continue
        if found != picture.names[0]:
            renamed.append(f"{path} says {picture.names[0]}")
        without += [path] * picture.without
        boxes += [
            (len(table), *each, f"{path}:{number}")
            for number, each in enumerate(picture.objects, 1)
        ]
        table.append((found, str(epath.Path(folder) / found), picture.size))
    if not table:
        why = f"; {alone[0]} has none in {folder}" if alone else ""
        why = why or (f"; {damaged[0]}" if damaged else "")
        raise UserError(f"{annotations}: no VOC annotation with an image{why}")
    findings.add(LEFT_OUT, alone, "XMLs without an image", of="")
    findings.add(LEFT_OUT, damaged, "XMLs that cannot be read", of="")
    findings.add(LEFT_OUT, odd, "XMLs that are no VOC annotations", of="")
    findings.add(LEFT_OUT, without, "objects without a name or a box of four numbers", of="in")
    findings.add(MENDED, renamed, "XMLs name another file than was found", of="")
    taken = {os.path.normpath(name) for name, _, _ in table}
    bare = [path for path in files.images() if os.path.normpath(path) not in taken]
    findings.add(LEFT_OUT, bare, "images without an XML", of="")
    names = list(classes) or sorted({box[1] for box in boxes})
    label_of = {name: label for label, name in enumerate(names)}
    strangers = sorted({box[1] for box in boxes} - label_of.keys())
    if strangers:
        raise UserError(
            f"{annotations}: classes that config.data.classes does not name: {some(strangers)}"
        )
    return from_lists(
        images=table,
        boxes=[
            (row, label_of[name], box, ignored, place) for row, name, box, ignored, place in boxes
        ],
        names=names,
        source=f"voc {annotations}",
        findings=findings,
    )


def _images_of(
    pictures: Sequence[tuple[str, Picture]], files: file_names.Folder
) -> list[str | None]:
    """The image of each XML, given their paths and what they say.

    Where several mean one image and an XML of its own name is among them, it is that one's: the
    others, which are copies that kept a `filename`, have to find an image by their own names.
    """
    found = [next(filter(None, map(files.find, picture.names)), None) for _, picture in pictures]
    claims: dict[str, list[int]] = {}
    for number, image in enumerate(found):
        if image is not None:
            claims.setdefault(image, []).append(number)
    for image, several in claims.items():
        stem = os.path.splitext(image)[0]
        for own in (stem, os.path.basename(stem)):
            names = {n: os.path.splitext(pictures[n][0])[0] for n in several}
            owners = [n for n, name in names.items() if own in (name, os.path.basename(name))]
            if owners:
                break
        for number in set(several) - set(owners) if owners else ():
            other = files.find(pictures[number][1].names[-2])
            found[number] = None if other in claims else other
    return found


def class_names(folder: str) -> list[str]:
    """The names of the classes in a folder of XMLs, sorted; XMLs that cannot be read are passed."""
    names: set[str] = set()
    for path in xmls(folder):
        try:
            picture = parse(read_text(epath.Path(folder) / path), path)
        except ElementTree.ParseError:
            continue
        names.update(name for name, _, _ in (picture.objects if picture else ()))
    return sorted(names)


def xmls(folder: str) -> list[str]:
    """The paths below a folder of its XML files, sorted.

    Raises:
      UserError: there is no such folder, or no XML in it.
    """
    found = sorted(path for path in file_names.walk(folder) if path.lower().endswith(".xml"))
    if not found:
        raise UserError(f"{folder}: no such folder of VOC annotations (XML files)")
    return found


def images_beside(annotations: str) -> str:
    """The folder of the images that belong to a folder of XMLs: beside it or a folder above."""
    place, below = epath.Path(annotations), ""
    above = place
    for _ in range(_ABOVE):
        for name in ("JPEGImages", "images", "Images", "imgs"):
            images = above.parent / name / below
            if images != place and storage.is_directory(images):
                return str(images)
        above, below = above.parent, f"{above.name}/{below}"
    return annotations


def parse(text: str, path: str) -> Picture | None:
    """What an XML says; None if it is no VOC annotation.

    Raises:
      ElementTree.ParseError: it is not XML.
    """
    root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text.lstrip("\ufeff")))
    if root.tag != "annotation":
        return None
    stem = os.path.splitext(path)[0]
    given = [root.findtext(field) or "" for field in ("filename", "path")]
    base = re.split(r"[\\/]", stem)[-1]
    names = [name.strip() for name in given if name.strip()]
    # The name alone, as paths are of another machine; then the XML's own name.
    names = [re.split(r"[\\/]", name)[-1] for name in names]
    parent = os.path.dirname(stem)
    near = [f"{parent}/{name}" for name in names] if parent else []
    objects, without = [], 0
    for each in root.iter("object"):
        name = _plain(each.findtext("name") or "")
        box = _box(each.find("bndbox"))
        if not name or box is None:
            without += 1
            continue
        objects.append((name, box, coco_values.truth(each.findtext("difficult") or "")))
    sides = [_number(root.findtext(f"size/{side}")) for side in ("height", "width")]
    usable = all(side >= 1 for side in sides)
    size = (int(sides[0]), int(sides[1])) if usable else (0, 0)
    return Picture((*near, *names, stem, base), size, tuple(objects), without)


def _box(element: ElementTree.Element | None) -> Box | None:
    """x, y, width and height from 1-based corners, the last pixel inside.

    Equal corners are a box of no area rather than one pixel: somebody clicked without drawing.
    """
    if element is None:
        return None
    x1, y1, x2, y2 = (_number(element.findtext(c)) for c in ("xmin", "ymin", "xmax", "ymax"))
    if any(map(math.isnan, (x1, y1, x2, y2))):
        return None
    return x1 - 1, y1 - 1, x2 - x1 + (x2 > x1), y2 - y1 + (y2 > y1)


def _number(text: str | None) -> float:
    try:
        value = float((text or "").strip().replace(",", "."))
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _plain(name: str) -> str:
    return " ".join(name.split())
