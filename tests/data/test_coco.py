import json
import math

import numpy as np
import pytest

from mixtrain_jax.data.sources import coco, image_files
from mixtrain_jax.data.sources.load import check_same_categories, load_dataset
from mixtrain_jax.errors import UserError

SIZES = [(40, 60), (50, 30), (32, 32)]
BOXES = [[(5, 5, 10, 20), (0, 0, 60, 40)], [(1, 2, 3.5, 4)], []]


def test_content(coco_files, config):
    content = coco_files(SIZES, BOXES)
    dataset = load_dataset(config.data, "train")
    assert dataset.name == "train"
    assert dataset.image_ids.tolist() == [10, 11, 12]
    assert dataset.sizes.tolist() == [[40, 60], [50, 30], [32, 32]]
    np.testing.assert_array_equal(dataset.boxes[0], [[5, 5, 15, 25], [0, 0, 60, 40]])
    np.testing.assert_array_equal(dataset.boxes[1], [[1, 2, 4.5, 6]])
    assert dataset.boxes[2].shape == (0, 4)
    # ids with a gap become labels in ascending order of id
    assert dataset.categories == [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]
    assert [each.tolist() for each in dataset.labels] == [[1, 0], [1], []]
    assert {each.dtype for each in dataset.labels} == {np.dtype(np.int32)}
    assert image_files.decode(dataset.read(1), (50, 30)).shape == (50, 30, 3)
    assert dataset.file_name(2) == "2.png"
    truth = dataset.ground_truth
    assert [a["bbox"] for a in truth["annotations"]] == [
        list(map(float, a["bbox"])) for a in content["annotations"]
    ]
    assert truth["annotations"][0]["area"] == 200
    assert truth["annotations"][0]["iscrowd"] == 0
    assert {a["category_id"] for a in truth["annotations"]} == {3, 7}
    assert "3 images, 3 boxes, 2 classes" in dataset.report.text
    assert "0=3 dog (1), 1=7 cat (2)" in dataset.report.text
    assert "1 images without boxes" in dataset.report.text


def test_zero_based_ids(coco_files, config):
    def edit(content):
        content["categories"] = [{"id": i, "name": f"c{i}"} for i in range(3)]
        for i, annotation in enumerate(content["annotations"]):
            annotation["category_id"] = i

    coco_files(SIZES, BOXES, edit=edit)
    dataset = load_dataset(config.data, "val")
    assert [each.tolist() for each in dataset.labels] == [[0, 1], [2], []]


@pytest.mark.parametrize(
    ("change", "reason", "in_truth"),
    [
        ({"bbox": [math.nan, 1, 5, 5]}, "NaN or infinite", True),
        ({"bbox": [1, 1, math.inf, 5]}, "NaN or infinite", True),
        ({"bbox": [1, 1, None, 5]}, "NaN or infinite", True),
        ({"bbox": [1, 1, 10**400, 5]}, "NaN or infinite", True),
        ({"bbox": None}, "without a 'bbox' of four numbers", False),
        ({"bbox": [1, 2, 3]}, "without a 'bbox' of four numbers", False),
        ({"bbox": [1, 2, 3, "four"]}, "without a 'bbox' of four numbers", False),
        ({"bbox": [9, 9, -5, 5]}, "negative width or height", True),
        ({"bbox": [9, 9, 5, 0]}, "zero area", True),
        ({"bbox": [60, 5, 5, 5]}, "outside their image", True),
        ({"bbox": [5, -9, 5, 9]}, "outside their image", True),
        ({"bbox": [1e300, 0, 1e300, 5]}, "outside their image", True),
        ({"bbox": [5, 5, 0.9, 5]}, "lower than one pixel", True),
        ({"iscrowd": 1}, "crowd", True),
    ],
)
def test_boxes_left_out(coco_files, config, change, reason, in_truth):
    coco_files(SIZES, BOXES, edit=lambda content: content["annotations"][0].update(change))
    dataset = load_dataset(config.data, "train")
    np.testing.assert_array_equal(dataset.boxes[0], [[0, 0, 60, 40]])
    (line,) = [line for line in dataset.report.text.splitlines() if "not trained on" in line]
    assert "1 " in line
    assert reason in line
    assert "(annotation ids 100)" in line
    assert (100 in [a["id"] for a in dataset.ground_truth["annotations"]]) == in_truth


def test_boxes_are_clipped(coco_files, config):
    coco_files(SIZES, [[(-5, 30, 20, 1e300)]])
    dataset = load_dataset(config.data, "train")
    np.testing.assert_array_equal(dataset.boxes[0], [[0, 30, 15, 40]])


def test_max_boxes(coco_files, config):
    coco_files([(40, 60)], [[(i, 0, 10, 10) for i in range(8)]])
    dataset = load_dataset(config.data, "train")
    assert dataset.boxes[0][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert len(dataset.ground_truth["annotations"]) == 8
    assert (
        "3 boxes beyond the first 5 of an image (annotation ids 105, 106, 107)"
        in dataset.report.text
    )


def _drop(*path):
    def edit(content):
        place = content
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return edit


def _set(value, *path):
    def edit(content):
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


def _no_boxes(content):
    for entry in content["annotations"]:
        del entry["bbox"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: ["a"], "not a COCO file"),
        (_drop("images"), "no list 'images'"),
        (_drop("annotations"), "no list 'annotations'"),
        (_set({}, "categories"), "no list 'categories'"),
        (_set([], "images"), "'images' is empty"),
        (_set(7, "images", 0), "entry 0 of 'images' is not an object"),
        (_drop("images", 1, "id"), "entry 1 of 'images' has no integer 'id'"),
        (_set(True, "images", 1, "id"), "entry 1 of 'images' has no integer 'id'"),
        (_set(10, "images", 1, "id"), "ids used twice in 'images': 10"),
        (_set(100, "annotations", 2, "id"), "ids used twice in 'annotations': 100"),
        (_set(3, "categories", 0, "id"), "ids used twice in 'categories': 3"),
        (_set(99, "annotations", 2, "image_id"), "unknown image: 102 (image_id 99)"),
        (_set([], "annotations", 2, "image_id"), "unknown image: 102 (image_id [])"),
        (_set(99, "annotations", 2, "category_id"), "unknown category: 102 (category_id 99)"),
        (_no_boxes, "3 of 3 annotations have no 'bbox' of four numbers and no outline"),
        (_drop("images", 2, "file_name"), "'images' has no text 'file_name'"),
        (_drop("categories", 0, "name"), "'categories' has no text 'name'"),
        (_set("gone.png", "images", 1, "file_name"), "1 of 3 images are missing: gone.png"),
        (_set("a/b.png", "images", 1, "file_name"), "1 of 3 images are missing: a/b.png"),
        (_set("\0", "images", 1, "file_name"), "1 of 3 images are missing"),
    ],
)
def test_bad_files(coco_files, config, edit, message):
    coco_files(SIZES, BOXES, edit=edit)
    with pytest.raises(UserError) as error:
        load_dataset(config.data, "train")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "set.json" in str(error.value) or "images" in str(error.value)


def test_missing_images_are_counted(coco_files, config):
    coco_files([(40, 40)] * 9, [], pictures=False)
    with pytest.raises(UserError, match=r"9 of 9 images are missing: 0.png, .*, 4.png, \.\.\.;"):
        load_dataset(config.data, "train")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no such annotation file"),
        (b"", "not a JSON file"),
        (b'{"images": [', "not a JSON file"),
        (b"\xff\xfe\x00", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b"1" * 10_000, "not a JSON file"),
    ],
)
def test_unreadable_file(tmp_path, data, message):
    path = tmp_path / "a.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        coco.read(str(path), str(tmp_path))


def test_annotations_is_a_folder(tmp_path):
    with pytest.raises(UserError, match="cannot read the annotation file"):
        coco.read(str(tmp_path), str(tmp_path))


def test_names_of_categories_are_one_line(coco_files, config):
    def name(text):
        def edit(content):
            content["categories"][0]["name"] = text

        return edit

    coco_files(SIZES, BOXES, edit=name(" a  cat\n"))
    dataset = load_dataset(config.data, "train")
    assert "a cat" in dataset.class_names
    assert "names of categories hold line ends" in dataset.report.text
    coco_files(SIZES, BOXES, edit=name("\n"))
    with pytest.raises(UserError, match="has no text 'name'"):
        load_dataset(config.data, "train")


def test_categories_must_agree(coco_files, config, tmp_path):
    content = coco_files(SIZES, BOXES)
    train = load_dataset(config.data, "train")
    check_same_categories(train, load_dataset(config.data, "val"))
    for change, message in (
        ({"id": 3, "name": "wolf"}, "id 3 is 'dog' in train and 'wolf' in val"),
        ({"id": 4, "name": "dog"}, "id 4 is absent in train and 'dog' in val"),
    ):
        content["categories"] = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
        if change["id"] == 3:
            content["categories"][1] = change
        else:
            content["categories"].append(change)
        (tmp_path / "val.json").write_text(json.dumps(content))
        config.data.val.annotations = str(tmp_path / "val.json")
        with pytest.raises(UserError, match=message):
            check_same_categories(train, load_dataset(config.data, "val"))


def test_unknown_source(config):
    config.data.source = "zip"
    with pytest.raises(UserError, match=r"config.data.source is 'zip'"):
        load_dataset(config.data, "train")
