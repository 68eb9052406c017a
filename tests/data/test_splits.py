"""Folders that say which images are of which split in ways of their own, and lists that do."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from mixtrain_jax.config import asked, load, own_data, saved
from mixtrain_jax.data.sources import file_names, layout
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.errors import UserError
from tests.data.test_layout import coco, coco_one_file, coco_roboflow, config_of, voc, yolo


def names(data, split):
    found = load_dataset(data, split)
    return {os.path.splitext(found.file_name(row))[0] for row in range(len(found))}


def write(kind, folder, split, camera, number):
    """An image of a split's folder of one camera, with its label."""
    name = f"{split}/{camera}/{number}"
    if kind == "yolo":
        yolo(folder / f"labels/{name}.txt", folder / f"images/{name}.jpg", number)
    else:
        voc(folder / f"{name}.xml", folder / f"{name}.jpg", number)


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_a_split_may_have_folders(tmp_path, kind):
    for number in range(4):
        for camera in ("cam1", "cam2"):
            write(kind, tmp_path, "train", camera, number)
        write(kind, tmp_path, "val", "cam1", number)
    data = config_of(tmp_path)
    assert data.val_share == 0
    assert names(data, "train") == {f"cam{c}/{n}" for c in (1, 2) for n in range(4)}
    assert {name.split("/")[-1] for name in names(data, "val")} == {str(n) for n in range(4)}


def test_folders_that_name_no_split_are_train_or_refused(tmp_path):
    for number in range(3):
        yolo(tmp_path / f"labels/all/{number}.txt", tmp_path / f"images/all/{number}.jpg", number)
        yolo(tmp_path / f"labels/val/v{number}.txt", tmp_path / f"images/val/v{number}.jpg", number)
    data = config_of(tmp_path)
    assert names(data, "train") == {"0", "1", "2"} and names(data, "val") == {"v0", "v1", "v2"}
    yolo(tmp_path / "labels/train/9.txt", tmp_path / "images/train/9.jpg", 1)
    with pytest.raises(UserError, match="'images/all' has labels and names no split"):
        layout.find(str(tmp_path))


def test_a_split_inside_another_is_refused(tmp_path):
    for camera in ("cam1", "cam2"):
        for split in ("train", "val"):
            path = f"{camera}/{split}/0"
            yolo(tmp_path / f"labels/{path}.txt", tmp_path / f"images/{path}.jpg", 0)
    with pytest.raises(UserError, match="holds 'images' of .* too; give each split one folder"):
        layout.find(str(tmp_path))


def test_a_coco_file_that_names_no_split_is_train_and_test_never_is(tmp_path):
    coco(tmp_path / "annotations.json", "images", range(8))
    coco(tmp_path / "test.json", "images", range(8, 10))
    data = config_of(tmp_path)
    assert names(data, "train") | names(data, "val") == {str(n) for n in range(8)}
    assert names(data, "test") == {"8", "9"}


def test_a_coco_file_beside_train_is_said_to_be_unused(tmp_path, caplog):
    coco(tmp_path / "all.json", "images", range(9))
    coco(tmp_path / "train.json", "images", range(6))
    coco(tmp_path / "val.json", "images", range(6, 9))
    assert names(config_of(tmp_path), "train") == {str(n) for n in range(6)}
    assert "all.json is not used, as" in caplog.text


@pytest.mark.parametrize("name", ["./robo", "robo/", "./robo/", "."])
def test_a_folder_may_be_named_with_dots(tmp_path, monkeypatch, name):
    coco_roboflow(tmp_path / "robo")
    monkeypatch.chdir(tmp_path / "robo" if name == "." else tmp_path)
    assert tuple(layout.find(name).parts) == ("train", "val", "test")


def test_names_of_two_folders_do_not_mean_one_file(tmp_path):
    """Only one camera's images were unpacked: the other's boxes must not go onto them."""
    coco(tmp_path / "labels.json", "images", range(4), prefix="cam1/")
    content = json.loads((tmp_path / "labels.json").read_text())
    for kind, key in (("images", "id"), ("annotations", "image_id")):
        for entry in list(content[kind]):
            other = entry | {"id": entry["id"] + 10, key: entry[key] + 10}
            if "file_name" in other:
                other["file_name"] = other["file_name"].replace("cam1", "cam2")
            content[kind].append(other)
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="4 of 8 images are missing: cam2/0.png"):
        load_dataset(config_of(tmp_path), "train")


def test_a_file_that_two_spellings_mean_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").touch()
    found = file_names.Folder(tmp_path).find_all(["a/0.jpg", "a\\0.jpg", "A/0.JPG", "b/0.jpg"])
    assert found == ["a/0.jpg", "a/0.jpg", "a/0.jpg", None]
    assert file_names.Folder(tmp_path).find_all(["b/0.jpg"]) == ["a/0.jpg"]


def test_copied_xmls_that_kept_a_filename_go_to_their_own_images(tmp_path):
    for number in range(3):
        voc(tmp_path / f"{number}.xml", tmp_path / f"{number}.jpg", number)
    for number in (1, 2):
        path = tmp_path / f"{number}.xml"
        path.write_text(path.read_text().replace(f"{number}.jpg", "0.jpg"))
    (tmp_path / "2.jpg").unlink()  # this one has none
    data = config_of(tmp_path, "data.val_share=0")
    found = load_dataset(data, "train")
    assert [found.file_name(row) for row in range(len(found))] == ["0.jpg", "1.jpg"]
    assert [len(group) for group in found.boxes] == [1, 1]
    assert found.report.left_out == {"XMLs without an image": 1}


def test_lists_with_folders_mean_these_folders(tmp_path):
    for camera in ("video1", "video2"):
        for number in range(3):
            name = f"{camera}/{number:04d}"
            voc(tmp_path / f"Annotations/{name}.xml", tmp_path / f"JPEGImages/{name}.jpg", number)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, camera in (("train", "video1"), ("val", "video2")):
        (lists / f"{split}.txt").write_text("".join(f"{camera}/{n:04d}\n" for n in range(3)))
    data = config_of(tmp_path)
    assert names(data, "train") == {f"video1/{n:04d}" for n in range(3)}
    assert names(data, "val") == {f"video2/{n:04d}" for n in range(3)}


def test_a_number_at_a_names_end_is_a_sign_only_where_nothing_has_the_name(tmp_path):
    for number, name in enumerate(("cell 0", "cell 1", "dish")):
        voc(tmp_path / f"{name}.xml", tmp_path / f"{name}.jpg", number)
    (tmp_path / "train.txt").write_text("cell 0\ndish  1\n")
    (tmp_path / "val.txt").write_text("cell 1\n")
    data = config_of(tmp_path)
    assert names(data, "train") == {"cell 0", "dish"} and names(data, "val") == {"cell 1"}


def test_links_that_lead_back_are_not_followed(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "0.jpg").touch()
    (tmp_path / "images" / "all").symlink_to(".")
    (tmp_path / "images" / "b").symlink_to("a")
    assert list(file_names.walk(str(tmp_path / "images"))) == ["a/0.jpg", "b/0.jpg"]


def test_what_is_written_here_is_no_part_of_the_data_around_it(tmp_path):
    def files(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    files("0.jpg", "runs/1.jpg", "runs/config.json")  # somebody's images, of runners
    ours = ("runs/mine/config.json", "runs/mine/checkpoints/4", "runs/mine/pictures/1.png")
    audit = ("out/audit.json", "out/corrected.json", "out/corrected/images/train/0.jpg")
    files(*ours, *audit, "report.json", "seen/report.json", "seen/check.html", "seen/samples/0.jpg")
    assert file_names.Folder(tmp_path).images() == ["0.jpg", "runs/1.jpg"]
    corrected = tmp_path / "out" / "corrected"
    assert file_names.Folder(corrected).images() == ["images/train/0.jpg"]  # asked for by name


@pytest.fixture
def run(tmp_path):
    """A function of classes: the workdir of a run that was trained on them."""

    def make(classes, folder=None):
        workdir = tmp_path / "run"
        changes = own_data.of_folder(str(folder), {}) if folder else {}
        if classes:
            changes["data.classes"] = repr(classes)
        config = load.load("quickstart", changes)
        saved.save(workdir, config, config, saved.Origin("quickstart", {}))
        return workdir

    return make


def test_yolo_labels_are_numbers_into_their_own_names(tmp_path, run):
    """A run's names do not take the place of data.yaml's, nor of a classes.txt in another order."""
    there = tmp_path / "set"
    for number in range(4):
        yolo(there / f"labels/{number}.txt", there / f"images/{number}.jpg", number)
    workdir = run(("ant", "bird", "cat"))
    for listed, kept in (
        (["bird", "cat"], False),
        (["ant", "bird"], True),
        (["ant", "bird", "cat"], True),
    ):
        (there / "classes.txt").write_text("\n".join(listed))
        config, _ = asked.of_run(workdir, {}, str(there))
        shown = [each["name"] for each in load_dataset(config.data, "val").categories]
        assert shown == (["ant", "bird", "cat"] if kept else listed)
    (there / "data.yaml").write_text("train: images\nnames: [bird, ant, cat]\n")
    config, _ = asked.of_run(workdir, {}, str(there))
    shown = [each["name"] for each in load_dataset(config.data, "val").categories]
    assert shown == ["bird", "ant", "cat"]


def test_voc_labels_are_names(tmp_path, run):
    for number in range(4):
        voc(tmp_path / "set" / f"{number}.xml", tmp_path / "set" / f"{number}.jpg", number)
    for classes in (("dog", "cat"), ("dog", "cow", "cat")):
        config, _ = asked.of_run(run(classes), {}, str(tmp_path / "set"))
        shown = [each["name"] for each in load_dataset(config.data, "val").categories]
        assert shown == list(classes)


def test_of_a_strange_folder_with_one_split_a_run_is_scored_on_all(tmp_path, run, monkeypatch):
    coco_one_file(tmp_path / "own")
    coco_one_file(tmp_path / "strange")
    workdir = run((), tmp_path / "own")
    config, _ = asked.of_run(workdir, {}, str(tmp_path / "strange"))
    assert len(load_dataset(config.data, "val")) == len(load_dataset(config.data, "test")) == 9
    monkeypatch.chdir(tmp_path)
    config, _ = asked.of_run(workdir, {}, "./own")  # nothing that it was trained on
    assert 0 < len(load_dataset(config.data, "val")) < 9


def test_better_labels_of_the_same_images_are_known_as_what_a_run_was_trained_on(tmp_path, run):
    """COCO files name the images' folder; YOLO's corrected folder has links to them."""
    coco_one_file(tmp_path / "own")
    changes = own_data.of_folder(str(tmp_path / "own"), {})
    better = tmp_path / "audit" / "accepted.json"
    better.parent.mkdir()
    better.write_bytes(pathlib.Path(changes["data.train.annotations"]).read_bytes())
    run_data = load.load("quickstart", changes | {"data.train.annotations": str(better)}).data
    found = own_data.of_folder(str(tmp_path / "own"), {}, run_data)
    assert found["data.val_share"] == "0.2"

    there = tmp_path / "yolo"
    for number in range(4):
        yolo(there / f"labels/{number}.txt", there / f"images/{number}.jpg", number)
    links = tmp_path / "accepted" / "images" / "train"
    links.mkdir(parents=True)
    for path in (there / "images").iterdir():
        (links / path.name).symlink_to(path)
    shutil.copytree(there / "labels", tmp_path / "accepted" / "labels" / "train")
    (tmp_path / "accepted" / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    changes = own_data.of_folder(str(tmp_path / "accepted"), {})
    run_data = load.load("quickstart", changes).data
    found = own_data.of_folder(str(there), {}, run_data)
    assert found["data.val_share"] == "0.2"
    for path in links.iterdir():
        path.unlink()
        path.touch()  # other images
    found = own_data.of_folder(str(there), {}, run_data)
    assert found["data.val_share"] == "0"


def test_another_split_in_the_folder_of_the_images_is_scored_whole(tmp_path, run):
    """One folder of images and a file for each split; and a yaml for each of two sets."""
    coco_one_file(tmp_path / "set")
    first = next((tmp_path / "set").glob("*.json"))
    content = json.loads(first.read_text())
    half = len(content["images"]) // 2
    for name, images in (("train", content["images"][:half]), ("more", content["images"][half:])):
        ids = {image["id"] for image in images}
        boxes = [each for each in content["annotations"] if each["image_id"] in ids]
        part = content | {"images": images, "annotations": boxes}
        (tmp_path / "set" / f"{name}.json").write_text(json.dumps(part))
    first.unlink()
    workdir = run((), tmp_path / "set" / "train.json")
    for name, share in (("more", "0"), ("train", "0.2")):
        path = str(tmp_path / "set" / f"{name}.json")
        run_data = saved.read(workdir).asked.data
        assert own_data.of_folder(path, {}, run_data)["data.val_share"] == share

    for name in ("a", "b"):
        yolo(tmp_path / name / "labels/0.txt", tmp_path / name / "images/0.jpg", 0)
        (tmp_path / f"{name}.yaml").write_text(f"train: {name}/images\nnames: [cat, dog]\n")
    run_data = load.load("quickstart", own_data.of_folder(str(tmp_path / "a.yaml"), {})).data
    for name, share in (("a", "0.2"), ("b", "0")):
        found = own_data.of_folder(str(tmp_path / f"{name}.yaml"), {}, run_data)
        assert found["data.val_share"] == share


def test_where_a_runs_labels_are_gone_the_paths_tell(tmp_path, monkeypatch):
    coco_one_file(tmp_path / "own")
    run_data = load.load("quickstart", own_data.of_folder(str(tmp_path / "own"), {})).data

    def gone(*_):
        raise UserError("no such file")

    monkeypatch.setattr(own_data, "share_images", gone)
    monkeypatch.chdir(tmp_path)
    assert own_data.of_folder("own", {}, run_data)["data.val_share"] == "0.2"
    coco_one_file(tmp_path / "other")
    assert own_data.of_folder("other", {}, run_data)["data.val_share"] == "0"


def test_folders_of_buckets_are_looked_through():
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for name in ("0.jpg", "b/1.jpg", ".hidden/2.jpg", "run/config.json", "run/checkpoints/4/x",
                 "run/pictures/1.png"):  # fmt: skip
        store.pipe_file(f"/bucket/set/{name}", b"")
    try:
        for folder in ("memory://bucket/set", "memory://bucket/set/"):
            assert list(file_names.walk(folder)) == ["0.jpg", "b/1.jpg"]
    finally:
        store.rm("/bucket", recursive=True)


def test_pose_labels_are_boxes_with_points_after_them(tmp_path):
    yolo(tmp_path / "labels/0.txt", tmp_path / "images/0.jpg", 0)
    yolo(tmp_path / "labels/1.txt", tmp_path / "images/1.jpg", 1)
    for path in (tmp_path / "labels").glob("*.txt"):
        path.write_text(f"{path.read_text().strip()} .9 .9 .1 .1\n")
    (tmp_path / "data.yaml").write_text("train: images\nkpt_shape: [2, 2]\nnames: [cat, dog]\n")
    data = config_of(tmp_path, "data.val_share=0")
    found = load_dataset(data, "train")
    np.testing.assert_allclose(found.boxes[0], [[8, 6, 28, 36]], atol=1e-3)
    assert "2 boxes have numbers after them" in found.report.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: {bird: 0, ant: 1}", "'names' has 'bird' where a class number is expected"),
        ("names: nowhere.names", "'names' is 'nowhere.names'; give a list, or a file"),
        ("names: {0: cat, 1: dog}\ndate: 2023-02-30", ["cat", "dog"]),
        ("names: [yes, no]", ["yes", "no"]),
        ('nc: "2"', ["class 0", "class 1"]),
        ("names: obj.names", ["cat", "dog"]),
        ("names: [cat, dog]\nkpt_shape: [many]", "'kpt_shape' is"),
    ],
)
def test_what_data_yaml_says_of_names(tmp_path, text, expected):
    for number in range(3):
        yolo(tmp_path / f"labels/{number}.txt", tmp_path / f"images/{number}.jpg", number)
    pathlib.Path(tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "data.yaml").write_text(f"train: images\n{text}\n")
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            load_dataset(config_of(tmp_path), "train")
        return
    found = load_dataset(config_of(tmp_path), "train")
    assert [category["name"] for category in found.categories] == expected


def test_a_split_of_data_yaml_that_is_no_folder(tmp_path):
    yolo(tmp_path / "labels/0.txt", tmp_path / "images/0.jpg", 0)
    (tmp_path / "data.yaml").write_text("train: 5\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match="'train' names 5, which is neither"):
        layout.find(str(tmp_path))
