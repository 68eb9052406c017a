"""Data sets as people's tools leave them, one kind a row: what is read, in boxes, ids and counts.

docs/data.md has the same table for users. Variants of one kind are one row.
"""

import gzip
import io
import json
import re
import unicodedata
import zipfile
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from mixtrain_jax import process
from mixtrain_jax.config import load as configs
from mixtrain_jax.config import own_data, recipes
from mixtrain_jax.data.input import plan
from mixtrain_jax.data.input.read_errors import ReadErrors
from mixtrain_jax.data.sources import image_files
from mixtrain_jax.data.sources.load import load_dataset, val_categories
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import coco as scores
from tests.data import cases
from tests.data.cases import COUNT, annotations, both, edit, first, images, named, replaced, written

ALL = 2 * COUNT  # boxes of the set
FIRST = 0  # the row of the image that is changed
JSON = "annotations/train.json"


class Row(NamedTuple):
    """One kind of odd input, and what is right.

    Attributes:
      name: of the kind.
      change: what it does to a folder.
      want: what is to be found; see `check`.
      base: the format.
      flags: pairs of a field of `config.data` and its value.
      split: what is read.
    """

    name: str
    change: Any
    want: dict
    base: Any = cases.coco
    flags: Any = ()
    split: str = "train"


def gb(text):
    return text.encode("gb2312")


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("train.json", data)
    return buffer.getvalue()


def remove(pattern):
    def change(folder):
        found = list(folder.glob(pattern))
        assert found
        for path in found:
            path.unlink()

    return change


def cut(name, length):
    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:length])

    return change


def copied(name, other):
    def change(folder):
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes((folder / name).read_bytes())

    return change


def many_objects(content):
    extra = dict(content["annotations"][0])
    content["annotations"] += [
        extra | {"id": 1000 + i, "bbox": [i % 50, i // 50, 20 + i % 7, 20]} for i in range(120)
    ]


def of_two_classes(content):
    for number, entry in enumerate(content["annotations"][-120:]):
        entry["category_id"] = content["categories"][number % 2]["id"]


SAME = {"same": True}
XML, TXT = "Annotations/000001.xml", "labels/000001.txt"
DOTS = "NaN or infinite"
EMPTY = "without a 'bbox' of four numbers"
MEANT = "file names are spelt otherwise than the files"

COCO = [
    Row(
        "a category that only groups others",
        edit(cases.root_category),
        {**SAME, "categories": [(1, "cup"), (2, "plate")], "said": {"only group others": 1}},
    ),
    Row(
        "two categories of one name",
        edit(lambda c: c["categories"][1].update(name="cup")),
        {
            "boxes": ALL,
            "categories": [(1, "cup"), (2, "cup")],
            "per_class": ["cup (1)", "cup (2)"],
            "said": {"used by several ids": 1},
        },
    ),
    Row(
        "text image ids",
        edit(cases.text_ids),
        {
            **SAME,
            "ids": [1, 2, 3, 4, 5, 6],
            "written_ids": ["img_1", 1],
            "said": {"image ids are texts": COUNT},
        },
    ),
    Row(
        "an image id above 2^53",
        edit(cases.huge_id),
        {
            **SAME,
            "ids": [1, 2, 3, 4, 5, 6],
            "written_ids": [2**60 + 1, 1],
            "said": {"image ids are texts or above": 1},
        },
    ),
    Row(
        "text category ids",
        edit(cases.text_categories),
        {
            **SAME,
            "categories": [(1, "cup"), (2, "plate")],
            "written_ids": [1, "c-1"],
            "said": {"category ids are texts": 2},
        },
    ),
    Row(
        "a number and its text as one id",
        annotations(lambda e: e.update(image_id=str(e["image_id"]))),
        {**SAME, "ids": [1, 2, 3, 4, 5, 6]},
    ),
    Row(
        "ids written as 1.0",
        annotations(lambda e: e.update(category_id=float(e["category_id"]))),
        SAME,
    ),
    Row("annotations without ids", annotations(lambda e: e.pop("id")), {**SAME, "truth": ALL}),
    Row(
        "category names that are numbers",
        edit(lambda c: c["categories"][0].update(name=7)),
        {"boxes": ALL, "categories": [(1, "7"), (2, "plate")]},
    ),
    Row(
        "a class without boxes",
        edit(lambda c: c["categories"].append({"id": 9, "name": "fork"})),
        {
            **SAME,
            "categories": [(1, "cup"), (2, "plate"), (9, "fork")],
            "counts": [COUNT, COUNT, 0],
        },
    ),
    Row(
        "corners as bbox",
        annotations(cases.as_corners),
        {
            "refused": r"(\d+) of 12 boxes leave their image .* all fit as x1, y1, x2, y2",
            "at_least": 7,
        },
    ),
    Row(
        "shares as bbox",
        annotations(lambda e: e.update(bbox=[v / 96 for v in e["bbox"]])),
        {"refused": "all 12 boxes are between 0 and 1, so they look like shares"},
    ),
    Row(
        "polygons without bbox",
        annotations(cases.as_polygon),
        {**SAME, "said": {"got that of their outline": ALL}},
    ),
    Row(
        "run-length masks without bbox",
        edit(cases.as_mask),
        {**SAME, "said": {"got that of their outline": ALL}},
    ),
    Row(
        "one empty bbox",
        edit(
            lambda c: c["annotations"].append(
                {"id": 99, "image_id": 1, "category_id": 1, "bbox": []}
            )
        ),
        {**SAME, "left_out": {EMPTY: 1}, "truth": ALL},
    ),
    Row(
        "no bbox and no outline anywhere",
        annotations(lambda e: e.pop("bbox")),
        {"refused": "12 of 12 annotations have no 'bbox' of four numbers"},
    ),
    Row(
        "numbers of a bbox as text",
        annotations(lambda e: e.update(bbox=list(map(str, e["bbox"])))),
        SAME,
    ),
    Row(
        "NaN in a bbox",
        first(bbox=[float("nan"), 1, 5, 5]),
        {"boxes": ALL - 1, "left_out": {DOTS: 1}, "truth": ALL},
    ),
    Row(
        "null in a bbox",
        first(bbox=[1, 1, None, 5]),
        {"boxes": ALL - 1, "left_out": {DOTS: 1}, "truth": ALL},
    ),
    Row(
        "a negative width",
        first(bbox=[30, 9, -5, 5]),
        {"boxes": ALL - 1, "left_out": {"negative width or height": 1}, "truth": ALL},
    ),
    Row(
        "a box of no area",
        first(bbox=[9, 9, 5, 0]),
        {"boxes": ALL - 1, "left_out": {"zero area": 1}, "truth": ALL},
    ),
    Row(
        "a box outside its image",
        first(bbox=[200, 9, 5, 5]),
        {"boxes": ALL - 1, "left_out": {"outside their image": 1}, "truth": ALL},
    ),
    Row(
        "a box under a pixel",
        first(bbox=[9, 9, 0.5, 5]),
        {"boxes": ALL - 1, "left_out": {"lower than one pixel": 1}, "truth": ALL},
    ),
    Row(
        "a box that reaches out",
        first(bbox=[-5, 9, 25, 20]),
        {"boxes": ALL, "first": [0, 9, 20, 29], "said": {"reach out of their image": 1}},
    ),
    Row(
        "every box twice",
        edit(cases.every_box_twice),
        {**SAME, "left_out": {"repeat another of their class": ALL}, "truth": 2 * ALL},
    ),
    Row(
        "a file under two ids, to train",
        edit(lambda c: c["images"][2].update(file_name=c["images"][0]["file_name"])),
        {
            "boxes": ALL,
            "ids": [1, 2, 4, 5, 6],
            "in_first": 4,
            "said": {"list a file that another has": 1},
        },
    ),
    Row(
        "a file under two ids, to score",
        edit(lambda c: c["images"][2].update(file_name=c["images"][0]["file_name"])),
        {**SAME, "ids": [1, 2, 3, 4, 5, 6], "truth": ALL},
        split="val",
    ),
    Row(
        "iscrowd as text",
        annotations(lambda e: e.update(iscrowd="0")),
        {**SAME, "said": {"'iscrowd' as text": ALL}},
    ),
    Row(
        "all boxes are crowds",
        annotations(lambda e: e.update(iscrowd=1)),
        {
            "boxes": 0,
            "crowd": ALL,
            "left_out": {"crowd boxes": ALL},
            "untrainable": "no image has a box to train on; left out are 12 crowd boxes",
        },
    ),
    Row(
        "no width and height",
        images(lambda e: (e.pop("width"), e.pop("height"))),
        {**SAME, "sizes": True, "said": {"without height and width": COUNT}},
    ),
    Row(
        "width and height of 0",
        images(lambda e: e.update(width=0, height=0)),
        {**SAME, "sizes": True, "said": {"without height and width": COUNT}},
    ),
    Row(
        "width and height as text",
        images(lambda e: e.update(width=str(e["width"]), height=str(e["height"]))),
        {**SAME, "sizes": True},
    ),
    Row(
        "width and height swapped for all",
        images(cases.swapped),
        {**SAME, "sizes": True, "said": {"height and width swapped": COUNT}},
    ),
    Row(
        "another size than declared for all",
        images(lambda e: e.update(width=300, height=200)),
        {"refused": "6 of 6 images looked at have another size than declared: 000001.jpg is 96x64"},
    ),
    Row(
        "another size than declared for one",
        edit(lambda c: c["images"][0].update(width=300)),
        {"boxes": ALL, "unreadable": 1, "said": {"another size than declared": 1}},
    ),
    Row(
        "image ids nobody lists",
        first(image_id=77),
        {"refused": "1 annotations name an unknown image: 1 .image_id 77"},
    ),
    Row(
        "category ids nobody lists",
        annotations(lambda e: e.update(category_id=5)),
        {"refused": "12 annotations name an unknown category"},
    ),
    Row(
        "an image without annotations",
        edit(lambda c: c["annotations"].__delitem__(slice(0, 2))),
        {"boxes": ALL - 2, "empty": 1, "ids": [1, 2, 3, 4, 5, 6]},
    ),
    Row(
        "more than 100 objects of a class in an image",
        edit(many_objects),
        {
            "boxes": 100 + ALL - 2,
            "said": {"more than 100 objects of a class": 1},
            "left_out": {"beyond the first 100": 22},
        },
        split="val",
    ),
    Row(
        "more than 100 objects in an image, of several classes",
        both(edit(many_objects), edit(of_two_classes)),
        {
            "boxes": 100 + ALL - 2,
            "said": {"more than 100 objects of a class": 0},
            "left_out": {"beyond the first 100": 22},
        },
        split="val",
    ),
]
FILES = [
    Row(
        "one folder too many",
        images(lambda e: e.update(file_name="images/" + e["file_name"])),
        {**SAME, "said": {MEANT: COUNT}},
    ),
    Row("one folder too few", cases.in_folders, {**SAME, "said": {MEANT: COUNT}}),
    Row(
        "a path of another machine",
        images(lambda e: e.update(file_name="C:\\data\\train\\" + e["file_name"])),
        {**SAME, "said": {MEANT: COUNT}},
    ),
    Row(
        "backslashes",
        both(
            cases.in_folders,
            images(lambda e: e.update(file_name=e["file_name"][:6] + "\\" + e["file_name"])),
        ),
        {**SAME, "said": {MEANT: COUNT}},
    ),
    Row(
        "a/../b",
        images(lambda e: e.update(file_name="no/../" + e["file_name"])),
        {**SAME, "said": {MEANT: COUNT}},
    ),
    Row("%20", named("a%20cup.jpg", "a cup.jpg"), {**SAME, "said": {MEANT: 1}}),
    Row(
        "NFC against NFD",
        named(unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")),
        {**SAME, "said": {MEANT: 1}},
    ),
    Row(".jpg against .JPG", cases.upper_case, {**SAME, "said": {MEANT: COUNT}}),
    Row(".jpg against .png", cases.as_png, {**SAME, "said": {MEANT: COUNT}}),
    Row(
        "a name that fits two files",
        both(named("cup.jpg", "a/cup.jpg"), copied("train/a/cup.jpg", "train/b/cup.jpg")),
        {"refused": "1 of 6 images are missing: cup.jpg; .* most like the first is [ab]/cup.jpg"},
    ),
    Row(
        "a file that is not there",
        named("000001x.jpg"),
        {"refused": "1 of 6 images are missing: 000001x.jpg; .* the first is 000001.jpg"},
    ),
    Row("gzip", cases.recode(gzip.compress), SAME),
    Row("zip", cases.recode(zipped), SAME),
    Row("UTF-16", cases.recode(lambda data: data.decode().encode("utf-16")), SAME),
    Row("UTF-8 with a mark", cases.recode(lambda data: b"\xef\xbb\xbf" + data), SAME),
    Row(
        "latin-1",
        cases.recode(lambda data: data.replace(b"cup", b"caf\xe9")),
        {"boxes": ALL, "categories": [(1, "café"), (2, "plate")]},
    ),
    Row(
        "a zero-byte image",
        written("train/000001.jpg", b""),
        {"boxes": ALL, "unreadable": 1, "said": {"cannot be read (000001.jpg: an empty file)": 1}},
    ),
    Row(
        "an image cut short",
        cut("train/000001.jpg", 900),
        {"boxes": ALL, "unreadable": 1, "reason": "cut short"},
    ),
    Row(
        "a text in an image's place",
        written("train/000001.jpg", "404"),
        {"boxes": ALL, "unreadable": 1, "said": {"000001.jpg: not an image of any known kind": 1}},
    ),
    Row(
        "all images unreadable, in val too",
        lambda folder: [p.write_bytes(b"") for p in folder.glob("val/*.jpg")],
        {"refused": "val: none of the 6 images looked at can be read; 000001.jpg: an empty file"},
        split="val",
    ),
    Row(
        "EXIF: declared upright",
        cases.turned(range(1, 9), "upright", "upright"),
        {"red": 8, "exif": "upright", "said": {"turned by EXIF": 7}},
    ),
    Row(
        "EXIF: declared as stored",
        cases.turned((5, 6, 7, 8), "stored", "stored"),
        {"red": 4, "exif": "stored", "said": {"turned by EXIF": 4}},
    ),
    Row(
        "EXIF: size as stored, box upright",
        cases.turned((5, 6, 7, 8), "stored", "upright"),
        {"red": 4, "exif": "upright", "said": {"turned by EXIF": 4}},
    ),
    Row(
        "EXIF: half turns as stored",
        cases.turned((2, 3, 4), "stored", "stored"),
        {"red": 3, "exif": "stored", "said": {"config.data.exif is stored": 3}},
        flags=(("exif", "stored"),),
    ),
    Row(
        "EXIF: square images as stored",
        cases.turned((5, 6, 7, 8), "stored", "stored", width=120),
        {"red": 4, "exif": "stored", "said": {"turned by EXIF": 4}},
        flags=(("exif", "stored"),),
    ),
    Row(
        "12 bits in 16",
        cases.deep(np.uint16, 4000, ".png"),
        {**SAME, "bright": 4000 * 255 // 4095, "said": {"integers up to 4000": COUNT}},
    ),
    Row(
        "floats from 0 to 1",
        cases.deep(np.float32, 0.8, ".tif"),
        {**SAME, "bright": 204, "said": {"floating-point numbers up to 0.8": COUNT}},
    ),
]
VOC = [
    Row(
        "filename of another file",
        replaced("000001.jpg", "IMG_7.jpg", "Annotations/*"),
        {**SAME, "said": {"name another file": 1}},
        cases.voc,
    ),
    Row(
        "filename without extension",
        replaced(".jpg", "", "Annotations/*"),
        {**SAME, "said": {"name another file": COUNT}},
        cases.voc,
    ),
    Row(
        "a path of somebody's home",
        replaced("<filename>", "<path>C:\\Users\\a\\x.jpg</path><filename>", XML),
        SAME,
        cases.voc,
    ),
    Row(
        "objects that are not difficult, in words",
        replaced("<difficult>0", "<difficult>False", XML),
        SAME,
        cases.voc,
    ),
    Row(
        "difficult objects",
        replaced("<difficult>0", "<difficult>1", XML),
        {"boxes": ALL - 2, "crowd": 2, "left_out": {"crowd boxes": 2}},
        cases.voc,
    ),
    Row(
        "equal corners",
        written(
            XML,
            "<annotation><filename>000001.jpg</filename><object><name>cup</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>9</ymax></bndbox></object></annotation>",
        ),
        {"boxes": ALL - 2, "left_out": {"zero area": 1}},
        cases.voc,
    ),
    Row(
        "an XML without its image",
        remove("JPEGImages/000001.jpg"),
        {"boxes": ALL - 2, "images": COUNT - 1, "left_out": {"XMLs without an image": 1}},
        cases.voc,
    ),
    Row(
        "an image without its XML",
        remove(XML),
        {"boxes": ALL - 2, "images": COUNT - 1, "left_out": {"images without an XML": 1}},
        cases.voc,
    ),
    Row(
        "an XML cut short",
        cut(XML, 200),
        {"boxes": ALL - 2, "images": COUNT - 1, "left_out": {"XMLs that cannot be read": 1}},
        cases.voc,
    ),
    Row(
        "an XML of something else",
        written("Annotations/notes.xml", "<notes/>"),
        {**SAME, "left_out": {"no VOC annotations": 1}},
        cases.voc,
    ),
    Row(
        "an object without a name",
        replaced("<name>cup</name>", "", XML),
        {"boxes": ALL - 1, "left_out": {"objects without a name": 1}},
        cases.voc,
    ),
    Row(
        "a size of 0",
        replaced("<width>96", "<width>0", XML),
        {**SAME, "sizes": True, "said": {"without height and width": 1}},
        cases.voc,
    ),
    Row(
        "corners with decimals", replaced("</xmin>", ".0</xmin>", "Annotations/*"), SAME, cases.voc
    ),
    Row(
        "an encoding declared",
        both(
            replaced("cup", "杯", "Annotations/*"),
            lambda folder: [
                p.write_bytes(b'<?xml version="1.0" encoding="gb2312"?>' + gb(p.read_text()))
                for p in folder.glob("Annotations/*")
            ],
        ),
        {"boxes": ALL, "categories": [(1, "plate"), (2, "杯")]},
        cases.voc,
    ),
    Row(
        "parts inside objects",
        replaced(
            "</object>",
            "<part><name>handle</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part></object>",
            "Annotations/*",
        ),
        SAME,
        cases.voc,
    ),
    Row(
        "a class with space around it",
        replaced("<name>cup<", "<name> cup\n<", XML),
        {**SAME, "categories": [(1, "cup"), (2, "plate")]},
        cases.voc,
    ),
    Row(
        "a list with signs and folders",
        written("train.txt", "000001 1\nJPEGImages/000003.jpg -1\n000009\n"),
        {"boxes": 4, "files": ["000001.jpg", "000003.jpg"], "left_out": {"without an image": 1}},
        cases.voc,
    ),
    Row(
        "a class that val lacks",
        both(
            written("val.txt", "000001\n"),
            written("train.txt", "000002\n"),
            replaced("<name>cup<", "<name>plate<", XML),
        ),
        {"boxes": 2, "categories": [(1, "cup"), (2, "plate")]},
        cases.voc,
        split="val",
    ),
]
YOLO = [
    Row(
        "polygons in label files",
        written(TXT, "0 0.1 0.1 0.5 0.1 0.5 0.5 0.3 0.6\n"),
        {
            "boxes": ALL - 1,
            "first": [9.6, 6.4, 48, 38.4],
            "said": {"became the boxes around them": 1},
        },
        cases.yolo,
    ),
    Row(
        "a score after the box",
        lambda folder: (folder / TXT).write_text(
            (folder / TXT).read_text().replace("\n", " 0.9\n")
        ),
        {**SAME, "said": {"numbers after them": 2}},
        cases.yolo,
    ),
    Row(
        "a label file without its image",
        remove("images/000001.jpg"),
        {"boxes": ALL - 2, "images": COUNT - 1, "left_out": {"label files without an image": 1}},
        cases.yolo,
    ),
    Row(
        "an image without its label file",
        remove(TXT),
        {"boxes": ALL - 2, "images": COUNT, "empty": 1, "said": {"have no label file": 1}},
        cases.yolo,
    ),
    Row(
        "an empty label file",
        written(TXT, ""),
        {"boxes": ALL - 2, "images": COUNT, "empty": 1},
        cases.yolo,
    ),
    Row(
        "a line that is no box",
        written(TXT, "0 0.5 0.5\nnine\n1 0.5 0.5 0.25 0.5\n"),
        {"boxes": ALL - 1, "first": [36, 16, 60, 48], "left_out": {"lines that are no box": 2}},
        cases.yolo,
    ),
    Row(
        "pixels in place of shares",
        lambda folder: [p.write_text("0 40 30 20 20\n") for p in folder.glob("labels/*")],
        {"refused": "6 of 6 boxes have numbers above 1, so they look like pixels"},
        cases.yolo,
    ),
    Row(
        "a class that has no name",
        written(TXT, "7 0.5 0.5 0.2 0.2\n"),
        {"refused": "labels have class 7, but there are 2 names"},
        cases.yolo,
    ),
    Row(
        "names by number, with a gap",
        written("data.yaml", "train: images\nnames: {0: cup, 1: plate, 3: fork}\n"),
        {**SAME, "categories": [(0, "cup"), (1, "plate"), (2, "class 2"), (3, "fork")]},
        cases.yolo,
    ),
    Row(
        "paths of another machine in data.yaml",
        written(
            "data.yaml", "path: /content/x\ntrain: ../images\nval: images\nnames: [cup, plate]\n"
        ),
        {"split_of": COUNT},
        cases.yolo,
    ),
    Row(
        "commas, tabs, a mark and Windows' line ends",
        lambda folder: [
            p.write_bytes(
                b"\xef\xbb\xbf" + p.read_bytes().replace(b" ", b"\t").replace(b"\n", b"\r\n")
            )
            for p in folder.glob("labels/*")
        ],
        SAME,
        cases.yolo,
    ),
    Row(
        "classes written as 0.0",
        lambda folder: [
            p.write_text(re.sub(r"(?m)^(\d) ", r"\1.0 ", p.read_text()))
            for p in folder.glob("labels/*")
        ],
        SAME,
        cases.yolo,
    ),
    Row(
        "a line twice",
        lambda folder: (folder / TXT).write_text(2 * (folder / TXT).read_text()),
        {**SAME, "left_out": {"repeat another": 2}, "truth": ALL + 2},
        cases.yolo,
    ),
    Row(
        "no names at all",
        both(remove("data.yaml"), lambda folder: None),
        {**SAME, "categories": [(0, "class 0"), (1, "class 1")]},
        cases.yolo,
    ),
]
ROWS = COCO + FILES + VOC + YOLO


def data_of(folder, flags):
    explicit = {f"data.{name}": value for name, value in flags}
    overrides = own_data.of_folder(str(folder), explicit)
    overrides["data.val_share"] = "0"  # all images in train
    return configs.override_all(recipes.base(), overrides).data


def said(dataset, text):
    """The counts of all findings with a text."""
    return sum(f.count for f in dataset.report.findings if text in str(f))


def check(dataset, want, data):
    """Compares a data set with what is wanted of it, key by key."""
    flat = [box.tolist() for group in dataset.boxes for box in group]
    if want.get("same"):
        for row, group in enumerate(dataset.boxes):
            ours = [[x, y, x + w, y + h] for x, y, w, h in cases.boxes()[row]]
            np.testing.assert_allclose(group, ours, atol=1e-3)
            assert dataset.labels[row].tolist() == [0, 1]
    for text, count in (want.get("said", {}) | want.get("left_out", {})).items():
        assert said(dataset, text) == count, f"{text}: {dataset.report}"
    for text in want.get("left_out", {}):
        assert any(text in reason for reason in dataset.report.left_out)
    if "left_out" not in want:
        assert not dataset.report.left_out
    expected = {
        "boxes": lambda: len(flat),
        "first": lambda: np.round(flat[0], 3).tolist(),
        "in_first": lambda: len(dataset.boxes[FIRST]),
        "ids": lambda: dataset.image_ids.tolist(),
        "images": lambda: len(dataset),
        "empty": lambda: dataset.report.empty,
        "crowd": lambda: sum(map(len, dataset.crowd)),
        "truth": lambda: len(dataset.ground_truth["annotations"]),
        "files": lambda: [dataset.file_name(row) for row in range(len(dataset))],
        "counts": lambda: list(dataset.report.boxes),
        "categories": lambda: [(c["id"], c["name"]) for c in dataset.categories],
        "exif": lambda: dataset.reading.exif,
    }
    for key, value in want.items():
        if key in expected:
            assert expected[key]() == value, key
    if want.get("sizes"):
        assert list(map(tuple, dataset.sizes.tolist())) == cases.sizes()
    if "written_ids" in want:
        image, category = dataset.image_ids[FIRST].item(), dataset.categories[0]["id"]
        found = [{"image_id": image, "category_id": category, "bbox": [0, 0, 1, 1], "score": 1.0}]
        (entry,) = scores.with_original_ids(found, dataset)
        assert [entry["image_id"], entry["category_id"]] == want["written_ids"]
    if "per_class" in want:
        assert list(scores.score(dataset.ground_truth, [])["per_class"]) == want["per_class"]
    if "untrainable" in want:
        with pytest.raises(UserError, match=want["untrainable"]):
            plan.Stream(dataset, 0, data.train)
    if "unreadable" in want:
        errors = ReadErrors(1.0)
        for row in range(len(dataset)):
            errors.read(dataset, row)
        assert len(errors.reasons) == want["unreadable"]
        assert want.get("reason", "") in next(iter(errors.reasons.values()))
    for row in range(want.get("red", 0)):
        shown = decoded(dataset, row)
        x, y, w, h = cases.red_box(shown)
        np.testing.assert_allclose(dataset.boxes[row], [[x, y, x + w, y + h]], atol=2)
    if "bright" in want:
        x, y, w, h = cases.boxes()[FIRST][0]
        assert decoded(dataset, FIRST)[y + h // 2, x + w // 2].tolist() == [want["bright"]] * 3
    if "split_of" in want:
        assert len(dataset) == want["split_of"]


def decoded(dataset, row):
    size = tuple(dataset.sizes[row].tolist())
    return image_files.decode(dataset.read(row), size, dataset.reading)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_odd_inputs(tmp_path, row):
    folder = tmp_path / "set"
    row.base(folder)
    row.change(folder)
    if "refused" in row.want:
        with pytest.raises(UserError) as error:
            load_dataset(data_of(folder, row.flags), row.split)
        found = re.search(row.want["refused"], str(error.value))
        assert found, str(error.value)
        assert "\n" not in str(error.value)
        assert int(found[1]) >= row.want["at_least"] if "at_least" in row.want else True
        return
    data = data_of(folder, row.flags)
    check(load_dataset(data, row.split), row.want, data)


def test_the_table_is_as_long_as_it_says():
    assert len({row.name for row in ROWS}) == len(ROWS) >= 90


def test_the_page_for_users_has_every_row():
    page = (configs.ROOT / "docs" / "data.md").read_text()
    assert [row.name for row in ROWS if f"| {row.name} |" not in page] == []


@pytest.mark.parametrize("base", [cases.coco, cases.voc, cases.yolo])
def test_nothing_is_said_of_a_set_that_is_as_it_should_be(tmp_path, base):
    base(tmp_path / "set")
    dataset = load_dataset(data_of(tmp_path / "set", ()), "train")
    check(dataset, SAME, {})
    assert dataset.report.findings == ()


@pytest.mark.parametrize("change", [cases.root_category, cases.text_categories])
def test_categories_are_read_alike_by_training_and_prediction(tmp_path, change):
    cases.coco(tmp_path)
    edit(change)(tmp_path)
    cases.recode(lambda data: b"\xef\xbb\xbf" + data)(tmp_path)
    data = data_of(tmp_path, ())
    assert val_categories(data) == load_dataset(data, "val").categories


def test_scores_equal_pycocotools_on_the_same_file(tmp_path):
    """With boxes in the truth that nothing can match, and a file under two ids."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    cases.coco(tmp_path)
    odd = ([30, 9, -5, 5], [9, 9, 5, 0], [200, 9, 5, 5], [float("nan"), 9, 5, 5])
    edit(
        lambda c: (
            [
                entry.update(bbox=bbox, area=25)
                for entry, bbox in zip(c["annotations"], odd, strict=False)
            ]
            and c["images"][5].update(file_name="000004.jpg")
        )
    )(tmp_path)
    dataset = load_dataset(data_of(tmp_path, ()), "val")
    found = [
        {"image_id": row + 1, "category_id": label + 1, "bbox": list(box), "score": 0.9 - row / 10}
        for row, group in enumerate(cases.boxes())
        for label, box in enumerate(group)
    ]
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found))
    truth = COCO(str(tmp_path / "annotations" / "val.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(path)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ours = scores.score(dataset.ground_truth, found)
    np.testing.assert_allclose([ours[key] for key in scores.KEYS], evaluation.stats, atol=1e-12)
    assert said(dataset, "boxes that no detection can match are scored as missed") == len(odd)
    assert 0 < ours["AP50"] < 1


def test_an_image_of_two_hundred_million_pixels_is_no_attack(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", (1 << 30) // 12)  # as Pillow has it
    file = io.BytesIO()
    Image.new("1", (14000, 14000)).save(file, "PNG")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(file)
    process.prepare()
    assert Image.open(file).size == (14000, 14000)
