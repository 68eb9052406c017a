"""YOLO sets as people have them: lists, shared label files, images that cannot be read."""

import json

import numpy as np
import pytest
from PIL import Image

from mixtrain_jax.config import load, recipes
from mixtrain_jax.data.input import plan
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.errors import UserError


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (shade, 0, 0)).save(path)


def label(path, kind=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{kind} 0.5 0.5 0.5 0.5\n")


def read(folder, content, split="train"):
    (folder / "data.yaml").write_text(json.dumps({"names": ["a", "b"], **content}))
    fields = {
        "data.source": "yolo",
        f"data.{split}.annotations": str(folder / "data.yaml"),
        f"data.{split}.split": split,
    }
    return load_dataset(load.override_all(recipes.base(), fields).data, split)


def said(dataset):
    return {finding.text: finding.count for finding in dataset.report.findings}


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_that_cannot_be_read_stay_and_are_counted(tmp_path, split):
    """Their size is not known, and their objects are to be missed, not left out."""
    for number in range(6):
        picture(tmp_path / "images" / f"{number}.png")
        label(tmp_path / "labels" / f"{number}.txt")
    for number in (1, 4):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"")
    dataset = read(tmp_path, {split: "images"}, split)
    assert len(dataset) == 6 and len(dataset.ground_truth["annotations"]) == 6
    assert dataset.sizes.tolist() == [[48, 64]] * 6
    assert said(dataset)["image files that cannot be read"] == 2
    assert not dataset.report.left_out


def test_an_image_that_a_list_names_again_is_taken_once(tmp_path):
    for number in range(3):
        picture(tmp_path / "images" / f"{number}.png", number)
        label(tmp_path / "labels" / f"{number}.txt")
    lines = [f"./images/{number}.png" for number in (2, 0, 2, 1, 2)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    dataset = read(tmp_path, {"train": "train.txt"})
    assert [dataset.file_name(row) for row in range(len(dataset))] == [
        f"images/{number}.png" for number in (2, 0, 1)
    ]
    assert said(dataset)["further mentions of an image"] == 2


def test_two_images_may_share_a_label_file(tmp_path):
    for name in ("0.png", "0.jpg"):
        picture(tmp_path / "images" / name)
    label(tmp_path / "labels" / "0.txt")
    dataset = read(tmp_path, {"train": "images"})
    ids = [entry["id"] for entry in dataset.ground_truth["annotations"]]
    assert len(dataset) == 2 == len(set(ids))
    assert said(dataset)["images have the label file of another image of their name, too"] == 1


def test_labels_without_folders_go_by_the_name_where_one_image_has_it(tmp_path):
    for name in ("1.png", "a/1.png", "a/2.png"):
        picture(tmp_path / "images" / name)
    for number in (1, 2):
        label(tmp_path / "flat" / f"{number}.txt")
    fields = {"data.source": "yolo", "data.train.images": str(tmp_path / "images")}
    fields |= {"data.train.annotations": str(tmp_path / "flat")}
    dataset = load_dataset(load.override_all(recipes.base(), fields).data, "train")
    boxes = {dataset.file_name(row): len(dataset.boxes[row]) for row in range(len(dataset))}
    assert boxes == {"1.png": 1, "a/1.png": 0, "a/2.png": 1}


@pytest.mark.parametrize(
    ("name", "expected"), [("", "test"), ("Val", "val"), ("testing", None), ("vall", None)]
)
def test_a_split_is_never_another_for_its_name(tmp_path, name, expected):
    for split in ("train", "val", "test"):
        picture(tmp_path / "images" / split / f"{split}.png")
        label(tmp_path / "labels" / split / f"{split}.txt")
    content = {split: f"images/{split}" for split in ("train", "val", "test")}
    (tmp_path / "data.yaml").write_text(json.dumps({"names": ["a"], **content}))
    fields = {"data.source": "yolo", "data.test.split": name}
    fields |= {"data.test.annotations": str(tmp_path / "data.yaml")}
    data = load.override_all(recipes.base(), fields).data
    if expected is None:
        with pytest.raises(UserError, match=f"split is '{name}'.*choose train, val or test"):
            load_dataset(data, "test")
    else:
        assert load_dataset(data, "test").file_name(0) == f"{expected}.png"


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "0.5"])
def test_a_class_that_is_no_number_of_one_is_no_box(tmp_path, number):
    for image in range(2):
        picture(tmp_path / "images" / f"{image}.png", image)
        label(tmp_path / "labels" / f"{image}.txt")
    (tmp_path / "labels" / "0.txt").write_text(f"{number} 0.5 0.5 0.5 0.5\n")
    assert said(read(tmp_path, {"train": "images"}))["lines that are no box"] == 1


def test_label_files_of_another_splits_images_are_not_lone(tmp_path):
    for number in range(4):
        picture(tmp_path / "images" / f"{number}.png")
        label(tmp_path / "labels" / f"{number}.txt")
    label(tmp_path / "labels" / "9.txt")
    label(tmp_path / "labels" / "train_9.txt")  # of an image of this name
    (tmp_path / "labels" / "train_all.txt").write_text("images/0.png\nimages/1.png\n")
    (tmp_path / "train.txt").write_text("images/0.png\nimages/1.png\n")
    dataset = read(tmp_path, {"train": "train.txt"})
    assert said(dataset)["label files without an image"] == 2


def test_small_images_are_told(tmp_path):
    for number in range(3):
        picture(tmp_path / "images" / f"{number}.png")
        label(tmp_path / "labels" / f"{number}.txt")
    Image.new("RGB", (200, 24)).save(tmp_path / "images" / "1.png")
    dataset = read(tmp_path, {"train": "images"})
    np.testing.assert_array_equal(dataset.trainable(), [True, False, True])
    assert said(dataset)["images have a side below 32 pixels and are not in the normal half"] == 1
    config = recipes.base().data.train
    none = dataset.take(np.array([1]))
    with pytest.raises(UserError, match="left out are 1 images with a side below 32 pixels"):
        plan.Stream(none, 0, config)
