"""Damaged files end in a UserError or a counted skip, never in another exception."""

import copy
import io
import json
import math
import random

import numpy as np
import pytest
from PIL import Image

from mixtrain_jax.config import load as configs
from mixtrain_jax.config import own_data, recipes
from mixtrain_jax.data.sources import coco, image_files, load
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.errors import UserError
from tests.data import cases

ODD = [
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    0.5,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    "",
    "x",
    "\0",
    "../..",
    "é" * 300,
    [],
    [[]],
    {},
    [1, 2, 3, 4],
]


def _places(content, path=()):
    """All places in nested lists and dictionaries, as paths."""
    keys = range(len(content)) if isinstance(content, list) else list(content)
    for key in keys:
        yield (*path, key)
        if isinstance(content[key], list | dict):
            yield from _places(content[key], (*path, key))


def _mutate(content, rng: random.Random) -> bytes:
    """Changes, drops, copies or moves a few parts of a JSON file, or damages its text."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(content))
        if not places:
            break
        *path, key = rng.choice(places)
        parent = content
        for part in path:
            parent = parent[part]
        act = rng.random()
        if act < 0.5:
            parent[key] = copy.deepcopy(rng.choice(ODD))
        elif act < 0.65:
            del parent[key]
        elif act < 0.8 and isinstance(parent, list):
            parent.append(copy.deepcopy(rng.choice(parent)))
        else:
            *path, other = rng.choice(places)
            value = content
            for part in (*path, other):
                value = value[part]
            parent[key] = copy.deepcopy(value)
    text = bytearray(json.dumps(content).encode())
    if rng.random() < 0.2:
        for _ in range(rng.randint(1, 5)):
            text[rng.randrange(len(text))] = rng.randrange(256)
    if rng.random() < 0.05:
        del text[rng.randrange(len(text)) :]
    return bytes(text)


def _check(dataset: Dataset, max_boxes: int) -> None:
    """What is promised of any data set that is accepted."""
    assert len(dataset.boxes) == len(dataset.labels) == len(dataset.sizes) == len(dataset)
    assert len(set(dataset.image_ids.tolist())) == len(dataset)
    for size, boxes, labels in zip(dataset.sizes, dataset.boxes, dataset.labels, strict=True):
        assert len(boxes) == len(labels) <= max_boxes
        assert np.isfinite(boxes).all()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= size[::-1]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert ((labels >= 0) & (labels < len(dataset.categories))).all()
    total = sum(map(len, dataset.boxes))
    skipped = sum(
        int(line.split(": ")[1].split()[0])
        for line in dataset.report.text.splitlines()
        if line.startswith("  not trained on")
    )
    assert total + skipped >= len(dataset.ground_truth["annotations"])


def _fuzz_annotations(coco_files, config, tmp_path, count: int) -> None:
    content = coco_files([(40, 60), (50, 30)], [[(5, 5, 10, 20), (0, 0, 60, 40)], [(1, 2, 3.5, 4)]])
    path = tmp_path / "mutated.json"
    refusals, accepted = [], 0
    for seed in range(count):
        path.write_bytes(_mutate(content, random.Random(seed)))
        try:
            dataset = load.complete(coco.read(str(path), config.data.train.images), "coco", 2)
        except UserError as error:
            refusals.append(str(error))
        else:
            accepted += 1
            _check(dataset, 2)
    assert all("\n" not in message and len(message) < 1000 for message in refusals)
    assert min(accepted, len(refusals)) > count / 20  # mutations are neither all fatal nor harmless


def _fuzz_images(count: int) -> None:
    rng = random.Random(0)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    files = []
    for mode, name in (
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
        ("L", "PNG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("RGB", "WEBP"),
        ("RGB", "TIFF"),
        ("RGB", "BMP"),
    ):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, name)
        files.append(buffer.getvalue())
    read = 0
    for _ in range(count):
        data = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), 200) if rng.random() < 0.7 else len(data))] = (
                rng.randrange(256)
            )
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            decoded = image_files.decode(bytes(data), (24, 32))
        except image_files.UnreadableImage:
            continue
        read += 1
        assert decoded.shape == (24, 32, 3)
        assert decoded.dtype == np.uint8
    assert 0 < read < count


def _damage(text: bytes, rng: random.Random) -> bytes:
    """Bytes changed, dropped, repeated or cut off."""
    data = bytearray(text)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(data))
        act = rng.random()
        if act < 0.4:
            data[place] = rng.choice(b"0123456789.-<>/: \n\t[]{}'\"aeN\x00\xff")
        elif act < 0.6:
            del data[place : place + rng.randint(1, 20)]
        else:
            data[place:place] = data[place : place + rng.randint(1, 40)]
        data = data or bytearray(b" ")
    return bytes(data)


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_voc_and_yolo(tmp_path, kind):
    getattr(cases, kind)(tmp_path)
    patterns = ("*/*.xml", "*/*.txt", "*.yaml")
    changed = sorted(path for pattern in patterns for path in tmp_path.glob(pattern))
    originals = {path: path.read_bytes() for path in changed}
    refusals, accepted = [], 0
    for seed in range(150):
        rng = random.Random(seed)
        path = rng.choice(changed)
        path.write_bytes(_damage(originals[path], rng))
        try:
            overrides = own_data.of_folder(str(tmp_path), {"data.val_share": "0"})
            data = configs.override_all(recipes.base(), overrides | {"data.max_boxes": "2"}).data
            dataset = load.load_dataset(data, "train")
        except UserError as error:
            refusals.append(str(error))
        else:
            accepted += 1
            _check(dataset, 2)
        path.write_bytes(originals[path])
    assert all("\n" not in message and len(message) < 1000 for message in refusals)
    assert accepted > 75


def test_annotations(coco_files, config, tmp_path):
    _fuzz_annotations(coco_files, config, tmp_path, 600)


def test_images():
    _fuzz_images(600)


@pytest.mark.slow
def test_many_annotations(coco_files, config, tmp_path):
    _fuzz_annotations(coco_files, config, tmp_path, 10_000)


@pytest.mark.slow
def test_many_images():
    _fuzz_images(10_000)
