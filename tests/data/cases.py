"""Small data sets in COCO, VOC and YOLO format, and what people's tools do to them.

Each set has six images of 96x64 pixels, or 64x96 every second, with two coloured boxes: a cup and a
plate. A change is a function of the folder; those of COCO's JSON are made by `edit`.
"""

import copy
import io
import json
import shutil

import numpy as np
from PIL import Image, ImageOps

COUNT = 6
CLASSES = ("cup", "plate")
COLORS = ((200, 60, 60), (60, 160, 60))
SPLITS = ("train", "val")


def sizes():
    """Height and width of each image."""
    return [(64, 96) if number % 2 else (96, 64) for number in range(1, COUNT + 1)]


def boxes():
    """x, y, width and height of the boxes of each image, cup first, clear of the edge."""
    rng = np.random.default_rng(5)
    made = []
    for height, width in sizes():
        group = []
        for _ in CLASSES:
            w, h = (int(v) for v in rng.integers(16, 40, 2))
            x, y = int(rng.integers(4, width - 4 - w)), int(rng.integers(4, height - 4 - h))
            group.append((x, y, w, h))
        made.append(group)
    return made


def pixels(number):
    """The pixels of an image, by number from 0 on."""
    height, width = sizes()[number]
    rng = np.random.default_rng(number)
    made = rng.integers(30, 60, (height, width, 3)).astype(np.uint8)
    for (x, y, w, h), color in zip(boxes()[number], COLORS):
        made[y : y + h, x : x + w] = color
    return made


def coco(folder):
    """annotations/train.json and val.json, and the images in train and val."""
    content = {"images": [], "annotations": []}
    for number, ((height, width), group) in enumerate(zip(sizes(), boxes()), 1):
        image = {"id": number, "file_name": f"{number:06d}.jpg", "width": width, "height": height}
        content["images"].append(image)
        for category, (x, y, w, h) in enumerate(group, 1):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    (folder / "annotations").mkdir(parents=True)
    for split in SPLITS:
        (folder / split).mkdir()
        for number in range(COUNT):
            path = folder / split / f"{number + 1:06d}.jpg"
            Image.fromarray(pixels(number)).save(path, quality=95)
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def voc(folder):
    """Annotations and JPEGImages."""
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for number, ((height, width), group) in enumerate(zip(sizes(), boxes())):
        name = f"{number + 1:06d}"
        Image.fromarray(pixels(number)).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
        objects = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for label, (x, y, w, h) in zip(CLASSES, group)
        )
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><folder>JPEGImages</folder><filename>{name}.jpg</filename><size>"
            f"<width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}"
            "</annotation>"
        )


def yolo(folder):
    """images, labels and data.yaml, with one split."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number, ((height, width), group) in enumerate(zip(sizes(), boxes())):
        name = f"{number + 1:06d}"
        Image.fromarray(pixels(number)).save(folder / "images" / f"{name}.jpg", quality=95)
        lines = [
            f"{label} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n"
            for label, (x, y, w, h) in enumerate(group)
        ]
        (folder / "labels" / f"{name}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text("train: images\nnames: [cup, plate]\n")


def edit(change):
    """A change of both JSON files' content."""

    def make(folder):
        for split in SPLITS:
            path = folder / "annotations" / f"{split}.json"
            content = json.loads(path.read_text())
            path.write_text(json.dumps(change(content) or content))

    return make


def images(change):
    """A change of each entry of 'images'."""
    return edit(lambda content: [change(entry) for entry in content["images"]] and None)


def annotations(change):
    """A change of each entry of 'annotations'."""
    return edit(lambda content: [change(entry) for entry in content["annotations"]] and None)


def first(**fields):
    """Fields of the first annotation: a cup in image 1."""
    return edit(lambda content: content["annotations"][0].update(fields))


def recode(change):
    """A change of the bytes of both JSON files."""

    def make(folder):
        for split in SPLITS:
            path = folder / "annotations" / f"{split}.json"
            path.write_bytes(change(path.read_bytes()))

    return make


def named(name, file=None):
    """The first image is called one thing in the JSON and another (if given) on disk."""

    def make(folder):
        edit(lambda content: content["images"][0].update(file_name=name))(folder)
        for split in SPLITS if file else ():
            target = folder / split / file
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / split / "000001.jpg").rename(target)

    return make


def replaced(text, other, pattern):
    """A change of text in all files that a pattern matches."""

    def make(folder):
        changed = 0
        for path in folder.glob(pattern):
            before = path.read_text()
            path.write_text(before.replace(text, other))
            changed += before != path.read_text()
        assert changed, f"{text} is nowhere"

    return make


def written(name, content):
    """A file with other content, or a new file."""

    def make(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def both(*changes):
    """Several changes, one after the other."""
    return lambda folder: [change(folder) for change in changes]


def root_category(content):
    for category in content["categories"]:
        category["supercategory"] = "things"
    content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})


def every_box_twice(content):
    extra = copy.deepcopy(content["annotations"])
    for entry in extra:
        entry["id"] += 1000
    content["annotations"] += extra


def text_ids(content):
    for entry in content["images"]:
        entry["id"] = f"img_{entry['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"img_{entry['image_id']}"


def text_categories(content):
    for entry in content["categories"]:
        entry["id"] = f"c-{entry['id']}"
    for entry in content["annotations"]:
        entry["category_id"] = f"c-{entry['category_id']}"


def huge_id(content):
    content["images"][0]["id"] = 2**60 + 1
    for entry in content["annotations"]:
        if entry["image_id"] == 1:
            entry["image_id"] = 2**60 + 1


def as_corners(entry):
    x, y, w, h = entry["bbox"]
    entry["bbox"] = [x, y, x + w, y + h]


def as_polygon(entry):
    x, y, w, h = entry.pop("bbox")
    entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]


def as_mask(content):
    """Uncompressed run-length masks, down the columns."""
    for entry in content["annotations"]:
        height, width = sizes()[entry["image_id"] - 1]
        mask = np.zeros((height, width), np.uint8)
        x, y, w, h = entry.pop("bbox")
        mask[y : y + h, x : x + w] = 1
        flat = mask.flatten(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *edges, len(flat)]).tolist()
        entry["segmentation"] = {"size": [height, width], "counts": counts}


def swapped(entry):
    entry["width"], entry["height"] = entry["height"], entry["width"]


def upper_case(folder):
    for path in [*folder.glob("*/*.jpg")]:
        path.rename(path.with_suffix(".JPG"))


def as_png(folder):
    for path in [*folder.glob("*/*.jpg")]:
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()


def in_folders(folder):
    """Each image in a folder of its own, which the JSON does not name."""
    for split in SPLITS:
        for path in [*(folder / split).glob("*.jpg")]:
            (folder / split / path.stem).mkdir()
            path.rename(folder / split / path.stem / path.name)


def turned(orientations, declared, drawn, width=160, height=120):
    """Images with an EXIF turn and a red box; size and boxes of the JSON as stored or upright."""

    def make(folder):
        for split in SPLITS:
            shutil.rmtree(folder / split)
            (folder / split).mkdir()
            entries, listed = [], []
            for number, orientation in enumerate(orientations, 1):
                stored = np.full((height, width, 3), 40, np.uint8)
                stored[15:45, 20:70] = (220, 20, 20)
                exif, data = Image.Exif(), io.BytesIO()
                exif[0x0112] = orientation
                Image.fromarray(stored).save(data, "JPEG", quality=95, exif=exif.tobytes())
                (folder / split / f"{number}.jpg").write_bytes(data.getvalue())
                upright = ImageOps.exif_transpose(Image.open(data))
                seen = {"stored": Image.fromarray(stored), "upright": upright}
                box = red_box(np.asarray(seen[drawn]))
                w, h = seen[declared].size
                name = f"{number}.jpg"
                listed.append({"id": number, "file_name": name, "width": w, "height": h})
                entries.append({"id": number, "image_id": number, "category_id": 1, "bbox": box})
            content = {
                "images": listed,
                "annotations": entries,
                "categories": [{"id": 1, "name": "red"}],
            }
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))

    return make


def red_box(image):
    """x, y, width and height of what is red in an image."""
    red = image.astype(int)
    y, x = np.nonzero(red[..., 0] - red[..., 1] > 80)
    return [int(v) for v in (x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min())]


def deep(dtype, top, suffix):
    """Grey images of more than 8 bits whose boxes are as bright as `top`, the ground a tenth."""

    def make(folder):
        for split in SPLITS:
            for number, path in enumerate(sorted((folder / split).glob("*.jpg"))):
                grey = np.full(sizes()[number], top / 10, np.float64)
                for x, y, w, h in boxes()[number]:
                    grey[y : y + h, x : x + w] = top
                Image.fromarray(grey.astype(dtype)).save(path.with_suffix(suffix))
                path.unlink()

    return make
