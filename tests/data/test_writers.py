"""Round trips: what was written in one format is read back, and written in the next."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from mixtrain_jax.config import load as configs
from mixtrain_jax.config import own_data, recipes
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.errors import UserError
from tests.data import cases
from tools.convert_dataset import convert

FORMATS = {"coco": cases.coco, "voc": cases.voc, "yolo": cases.yolo}
FIRST_CATEGORY = {"coco": 1, "voc": 1, "yolo": 0}


def read(folder, split="train"):
    overrides = own_data.of_folder(str(folder), {"data.val_share": "0"})
    return load_dataset(configs.override_all(recipes.base(), overrides).data, split)


def by_name(dataset):
    """Of each image, by its file's name, the classes and boxes."""
    names = [category["name"] for category in dataset.categories]
    return {
        dataset.file_name(row).rpartition("/")[2]: (
            [names[label] for label in dataset.labels[row]],
            dataset.boxes[row],
        )
        for row in range(len(dataset))
    }


def assert_same(ours, theirs, atol):
    ours, theirs = by_name(ours), by_name(theirs)
    assert ours.keys() == theirs.keys()
    for name, (classes, boxes) in theirs.items():
        assert ours[name][0] == classes
        np.testing.assert_allclose(ours[name][1], boxes, atol=atol)


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_round_trips(tmp_path, first, second):
    FORMATS[first](tmp_path / "a")
    original = read(tmp_path / "a")
    convert(str(tmp_path / "a"), second, epath.Path(tmp_path / "b"), "copy")
    there = read(tmp_path / "b")
    assert there.annotations.source.startswith({"coco": str(tmp_path)}.get(second, second))
    assert_same(there, original, atol=1e-3)
    assert there.read(0) == original.read(0)
    names = [category["name"] for category in original.categories]
    start = FIRST_CATEGORY[first if second == "coco" else second]
    assert there.categories == [{"id": i, "name": n} for i, n in enumerate(names, start)]
    convert(str(tmp_path / "b"), first, epath.Path(tmp_path / "c"), "link")
    assert_same(read(tmp_path / "c"), original, atol=1e-3)


def test_coco_keeps_ids_areas_crowds_and_splits(tmp_path):
    cases.coco(tmp_path / "a")
    cases.first(iscrowd=1, area=77.5)(tmp_path / "a")
    cases.edit(cases.text_ids)(tmp_path / "a")
    convert(str(tmp_path / "a"), "coco", epath.Path(tmp_path / "b"), "none")
    assert not (tmp_path / "b" / "images").exists()
    for split in ("train", "val"):
        before = json.loads((tmp_path / "a/annotations" / f"{split}.json").read_text())
        after = json.loads((tmp_path / "b/annotations" / f"instances_{split}.json").read_text())
        assert after["annotations"] == before["annotations"]
        assert after["categories"] == before["categories"]
        assert after["images"] == before["images"]


def test_crowds_are_difficult_in_voc_and_lost_in_yolo(tmp_path):
    cases.coco(tmp_path / "a")
    cases.first(iscrowd=1)(tmp_path / "a")
    convert(str(tmp_path / "a"), "voc", epath.Path(tmp_path / "voc"), "copy")
    assert [len(each) for each in read(tmp_path / "voc").crowd] == [1, 0, 0, 0, 0, 0]
    told = convert(str(tmp_path / "a"), "yolo", epath.Path(tmp_path / "yolo"), "copy")
    assert sum("1 crowd boxes" in line for line in told) == 2  # of train and of val
    assert sum(map(len, read(tmp_path / "yolo").boxes)) == 2 * cases.COUNT - 1


def test_voc_has_whole_pixels(tmp_path):
    cases.coco(tmp_path / "a")
    cases.first(bbox=[3.3, 4.6, 20.3, 10.2])(tmp_path / "a")
    told = convert(str(tmp_path / "a"), "voc", epath.Path(tmp_path / "voc"), "none")
    text = (tmp_path / "voc/Annotations/000001.xml").read_text()
    corners = [f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), (4, 6, 24, 15))]
    assert "".join(corners) in text.replace("\n", "").replace(" ", "")
    assert any("1 boxes are rounded to whole pixels" in line for line in told)


def test_two_classes_of_one_name_stay_two_in_voc(tmp_path):
    cases.coco(tmp_path / "a")
    cases.edit(lambda content: [c.update(name="plate") for c in content["categories"]] and None)(
        tmp_path / "a"
    )
    labels = [each.tolist() for each in read(tmp_path / "a").labels]
    assert len({label for each in labels for label in each}) == 2
    convert(str(tmp_path / "a"), "voc", epath.Path(tmp_path / "b"), "copy")
    there = read(tmp_path / "b")
    assert [c["name"] for c in there.categories] == ["plate (1)", "plate (2)"]
    assert [each.tolist() for each in there.labels] == labels


@pytest.mark.parametrize("exif", ["auto", "upright"])
def test_yolo_cannot_say_that_images_are_not_turned(tmp_path, exif):
    cases.coco(tmp_path / "a")
    cases.turned([6, 8, 5, 7], "stored", "stored")(tmp_path / "a")
    told = "\n".join(convert(str(tmp_path / "a"), "yolo", epath.Path(tmp_path / "b"), "copy", exif))
    assert ("train on it with --config.data.exif=stored" in told) == (exif == "auto")
    cases.coco(tmp_path / "plain")
    told = convert(str(tmp_path / "plain"), "yolo", epath.Path(tmp_path / "c"), "none", "stored")
    assert not any("data.exif=stored" in line for line in told)  # none is turned
    overrides = own_data.of_folder(
        str(tmp_path / "b"), {"data.val_share": "0", "data.exif": "stored"}
    )
    there = load_dataset(configs.override_all(recipes.base(), overrides).data, "train")
    if exif == "auto":
        assert_same(there, read(tmp_path / "a"), atol=1e-3)


@pytest.mark.parametrize("to", ["yolo", "coco"])
def test_images_of_another_size_are_left_out_where_sizes_are_not_kept(tmp_path, to):
    cases.coco(tmp_path / "a")
    file = tmp_path / "a" / "annotations" / "train.json"
    content = json.loads(file.read_text())
    content["images"][0]["width"] *= 2
    file.write_text(json.dumps(content))
    told = convert(str(tmp_path / "a"), to, epath.Path(tmp_path / "b"), "copy")
    assert len(read(tmp_path / "b")) == cases.COUNT - (to == "yolo")
    said = [line for line in told if "1 images of another size than declared" in line]
    assert len(said) == (to == "yolo"), told


def test_copies_and_no_links_come_into_a_bucket(tmp_path, bucket):
    cases.coco(tmp_path / "a")
    target = epath.Path("gs://bucket/copied")
    with pytest.raises(UserError, match="a bucket knows no links; --images=copy copies"):
        convert(str(tmp_path / "a"), "yolo", target, "link")
    convert(str(tmp_path / "a"), "yolo", target, "copy")
    names = bucket.names("copied/images/train/")
    assert len(names) == cases.COUNT
    for name in names:
        original = next((tmp_path / "a").rglob(pathlib.Path(name).name))
        assert bucket.content(name) == original.read_bytes()


def test_nothing_is_written_over(tmp_path):
    cases.yolo(tmp_path / "a")
    convert(str(tmp_path / "a"), "voc", epath.Path(tmp_path / "b"), "copy")
    for folder in ("b", "a"):
        with pytest.raises(UserError, match=f"{folder} is not empty; choose another folder"):
            convert(str(tmp_path / "a"), "voc", epath.Path(tmp_path / folder), "copy")


def test_splits_of_other_classes_are_not_mixed(tmp_path):
    cases.coco(tmp_path / "a")
    file = tmp_path / "a" / "annotations" / "val.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 1, "name": "plate"}, {"id": 2, "name": "cup"}]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="id 1 is 'cup' in train and 'plate' in val"):
        convert(str(tmp_path / "a"), "yolo", epath.Path(tmp_path / "b"), "copy")
    assert not (tmp_path / "b").exists()


def test_names_with_a_folder_of_images_are_found_again_in_yolo(tmp_path):
    """As Label Studio writes them."""
    cases.coco(tmp_path / "a")
    cases.images(lambda image: image.update(file_name=f"images/{image['file_name']}"))(
        tmp_path / "a"
    )
    for split in cases.SPLITS:
        (tmp_path / "a" / split).rename(tmp_path / "a" / "images")
        (tmp_path / "a" / split).mkdir()
        (tmp_path / "a" / "images").rename(tmp_path / "a" / split / "images")
    original = read(tmp_path / "a")
    convert(str(tmp_path / "a"), "yolo", epath.Path(tmp_path / "b"), "copy")
    assert_same(read(tmp_path / "b"), original, atol=1e-3)


def test_the_program(tmp_path):
    cases.voc(tmp_path / "a")
    command = [sys.executable, "tools/convert_dataset.py", str(tmp_path / "a"), "--to=yolo"]
    done = subprocess.run(
        [*command, f"--output={tmp_path}/b"],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"train: 6 images, 12 boxes from voc {tmp_path}/a" in done.stdout
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "data.yaml",
        "images",
        "labels",
    ]
    refused = subprocess.run(
        [*command[:2], "nowhere", "--to=yolo", f"--output={tmp_path}/c"],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr == "error: --data=nowhere: there is no such folder\n"


@pytest.mark.parametrize("images", ["copy", "link"])
@pytest.mark.parametrize("to", FORMATS)
def test_images_that_are_not_there_are_counted(tmp_path, to, images):
    cases.yolo(tmp_path / "a")
    names = sorted((tmp_path / "a").rglob("*.jpg"))
    listed = [str(name.relative_to(tmp_path / "a")) for name in names]
    (tmp_path / "a" / "list.txt").write_text("\n".join([*listed, "images/gone.jpg"]))
    yaml = tmp_path / "a" / "list.yaml"
    yaml.write_text("train: list.txt\nnames: [a, b, c, d, e]\n")
    told = convert(str(yaml), to, epath.Path(tmp_path / "b"), images)
    (line,) = [line for line in told if "images whose files are not there" in line]
    assert "images/gone.jpg" in line
    assert len(read(tmp_path / "b")) == len(names)
