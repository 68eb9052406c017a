"""What image files say of themselves: turns by EXIF in sets of any size, one white for all."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mixtrain_jax.config import asked, load, own_data, saved
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.sources import headers, image_files, plain_images
from mixtrain_jax.data.sources.load import as_train_reads, load_dataset
from mixtrain_jax.errors import UserError
from tests.data import cases
from tests.data.test_odd_inputs import data_of


def turned(folder, declared, count=12):
    cases.coco(folder)
    cases.turned([6] * count, declared, "upright")(folder)
    return data_of(folder, [("exif", "upright")])


@pytest.mark.parametrize("drawn", ["stored", "upright"])
def test_what_train_tells_of_turned_images_is_kept_for_those_without_labels(tmp_path, drawn):
    cases.coco(tmp_path)
    cases.turned((5, 6, 7, 8), drawn, drawn)(tmp_path)
    config = load.load("quickstart", own_data.of_folder(str(tmp_path), {}))
    train = load_dataset(config.data, "train")
    assert train.reading.exif == drawn  # what training keeps beside the weights


def test_turned_images_beyond_those_looked_at_have_their_sizes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "LOOKED_AT", 3)
    found = load_dataset(turned(tmp_path, "stored"), "train")
    assert found.sizes.tolist() == [[160, 120]] * 12
    assert [found.pixels(row).shape for row in range(12)] == [(160, 120, 3)] * 12
    assert not found.report.left_out


def test_sizes_of_a_shrunken_copy_are_refused_of_turned_images_too(tmp_path):
    data = turned(tmp_path, "upright")
    path = tmp_path / "annotations" / "train.json"
    content = json.loads(path.read_text())
    for entry in content["images"]:
        entry.update(width=30, height=40)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="12 of 12 images looked at have another size"):
        load_dataset(data, "train")


def deep(folder, tops):
    """A COCO set of 16-bit images whose largest number differs by split."""
    cases.coco(folder)
    for split, top in tops.items():
        for number, path in enumerate(sorted((folder / split).glob("*.jpg"))):
            grey = np.full(cases.sizes()[number], top // 4, np.uint16)
            grey[0, 0] = top
            Image.fromarray(grey).save(path.with_suffix(".png"))
            path.unlink()
    return load.load("quickstart", own_data.of_folder(str(folder), {}))


def test_the_white_of_train_is_that_of_all_splits_and_of_a_run(tmp_path):
    config = deep(tmp_path / "set", {"train": 4100, "val": 4000})
    train = load_dataset(config.data, "train")
    assert train.reading.white == 16383
    assert load_dataset(config.data, "val").reading.white == 4095  # by itself
    data = as_train_reads(config.data, train)
    assert load_dataset(data, "val").reading.white == 16383
    resolved = resolve(config, train=train)
    assert resolved.data.white == 16383

    saved.save(tmp_path / "run", config, resolved, saved.Origin("quickstart", {}))
    again, _ = asked.of_run(tmp_path / "run", {})
    assert load_dataset(again.data, "val").reading.white == 16383
    files = sorted(map(str, (tmp_path / "set" / "val").glob("*.png")))
    for images in (
        plain_images.dataset(files[:1], again.data),
        plain_images.in_memory(files[:1], again.data),
    ):
        assert images.pixels(0)[5, 5, 0] == 1000 * 255 // 16383
    other, _ = asked.of_run(tmp_path / "run", {"data.white": "4095"})
    assert plain_images.dataset(files[:1], other.data).reading.white == 4095


def test_ordinary_images_have_no_white(tmp_path):
    cases.coco(tmp_path)
    config = load.load("quickstart", own_data.of_folder(str(tmp_path), {}))
    assert resolve(config, train=load_dataset(config.data, "train")).data.white is None


def test_a_turn_that_stands_behind_a_pngs_pixels_is_seen_by_nobody(tmp_path):
    """Pillow reads it when the pixels are decoded; sizes are found from what stands before."""
    image = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))
    exif = Image.Exif()
    exif[0x0112] = 3
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    data = file.getvalue()
    start = data.index(b"eXIf") - 4
    size = 12 + int.from_bytes(data[start : start + 4], "big")
    chunk, end = data[start : start + size], data.index(b"IEND") - 4
    moved = data[:start] + data[start + size : end] + chunk + data[end:]
    np.testing.assert_array_equal(image_files.decode(moved), np.asarray(image))
    np.testing.assert_array_equal(image_files.decode(data), np.asarray(image)[::-1, ::-1])
