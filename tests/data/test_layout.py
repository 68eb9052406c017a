"""Folders as people have them: the source and the splits that --data finds, and what is read."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mixtrain_jax import cli, evaluate, train
from mixtrain_jax.config import asked, own_data, recipes, saved
from mixtrain_jax.config import load as configs
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.sources import layout
from mixtrain_jax.data.sources.load import check_same_categories, has_split, load_dataset
from mixtrain_jax.errors import UserError

SIZE = (48, 64)  # of every image: height, width
BOX = (8, 6, 20, 30)  # x, y, width, height of the one box in each; a cat in even images, else a dog
NAMES = ("cat", "dog")


def image(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros([*SIZE, 3], np.uint8)).save(path)


def coco(path: pathlib.Path, images: str, numbers, prefix: str = "") -> None:
    """A COCO file and the images it names, whose folder is relative to the file's."""
    for number in numbers:
        image(path.parent / images / f"{prefix}{number}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [
            {"id": n, "file_name": f"{prefix}{n}.png", "height": SIZE[0], "width": SIZE[1]}
            for n in numbers
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n % 2, "bbox": list(BOX)} for n in numbers
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
    }
    path.write_text(json.dumps(content))


def voc(xml: pathlib.Path, picture: pathlib.Path, number: int) -> None:
    image(picture)
    x, y, w, h = BOX
    xml.parent.mkdir(parents=True, exist_ok=True)
    xml.write_text(
        f"<annotation><filename>{picture.name}</filename><path>/home/x/{picture.name}</path>"
        f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height></size>"
        f"<object><name>{NAMES[number % 2]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object></annotation>"
    )


def yolo(label: pathlib.Path, picture: pathlib.Path, number: int) -> None:
    image(picture)
    (height, width), (x, y, w, h) = SIZE, BOX
    label.parent.mkdir(parents=True, exist_ok=True)
    shares = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    label.write_text(f"{number % 2} " + " ".join(map(str, shares)) + "\n")


def coco_own(folder):
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        path = folder / "annotations" / f"instances_{split}2017.json"
        coco(path, f"../{split}2017", numbers)
        (path.parent / f"captions_{split}2017.json").write_text("{}")


def coco_images_folder(folder):
    coco(folder / "annotations" / "instances_train.json", "../images/train", range(6))
    coco(folder / "annotations" / "instances_val.json", "../images/val", range(6, 9))


def coco_roboflow(folder):
    for split, numbers in (("train", range(6)), ("valid", range(6, 9)), ("test", range(9, 11))):
        coco(folder / split / "_annotations.coco.json", ".", numbers)


def coco_beside(folder):
    coco(folder / "train.json", "train", range(6))
    coco(folder / "val.json", "val", range(6, 9))


def coco_one_file(folder):
    coco(folder / "labels.json", "images", range(9))


def coco_paths(folder):
    coco(folder / "result.json", ".", range(9), prefix="images/")


def devkit(folder):
    root = folder / "VOCdevkit" / "VOC2007"
    for number in range(9):
        voc(root / "Annotations" / f"{number}.xml", root / "JPEGImages" / f"{number}.jpg", number)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(map(str, range(6))))
    (lists / "val.txt").write_text("\n".join(f"{n}" for n in range(6, 9)))
    (lists / "cat_train.txt").write_text("0  1\n1 -1\n")


def voc_beside(folder):
    for number in range(9):
        voc(folder / f"{number}.xml", folder / f"{number}.jpg", number)


def voc_roboflow(folder):
    for split, numbers in (("train", range(6)), ("valid", range(6, 9)), ("test", (9,))):
        for n in numbers:
            voc(folder / split / f"{n}.xml", folder / split / f"{n}.jpg", n)


def voc_list(folder):
    voc_beside(folder)
    (folder / "train.txt").write_text("\n".join(f"./{n}.jpg" for n in range(6)))
    (folder / "val.txt").write_text("\n".join(f"{n}" for n in range(6, 9)))


def _yolo_splits(folder, image_at, label_at, splits):
    for split, numbers in splits.items():
        for n in numbers:
            yolo(
                folder / label_at.format(split) / f"{n}.txt",
                folder / image_at.format(split) / f"{n}.jpg",
                n,
            )


def yolo_roboflow(folder):
    splits = {"train": range(6), "valid": range(6, 9), "test": (9,)}
    _yolo_splits(folder, "{}/images", "{}/labels", splits)
    (folder / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\n"
        "names: ['cat', 'dog']\n"
    )


def yolo_ultralytics(folder):
    splits = {"train": range(6), "val": range(6, 9)}
    _yolo_splits(folder, "images/{}", "labels/{}", splits)
    (folder / "pets.yaml").write_text(
        "path: ../datasets/pets\ntrain: images/train\nval: images/val\ntest:\n"
        "names:\n  0: cat\n  1: dog\n"
    )


def yolo_lists(folder):
    _yolo_splits(folder, "images", "labels", {"": range(9)})
    (folder / "train.txt").write_text("\n".join(f"./images/{n}.jpg" for n in range(6)))
    (folder / "val.txt").write_text("\n".join(f"./images/{n}.jpg" for n in range(6, 9)))
    (folder / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cat, dog]\n")


def yolo_flat(folder):
    _yolo_splits(folder, "images", "labels", {"": range(9)})
    (folder / "classes.txt").write_text("cat\ndog\n")


def yolo_no_yaml(folder):
    _yolo_splits(folder, "images/{}", "labels/{}", {"train": range(6), "val": range(6, 9)})
    (folder / "labels" / "classes.txt").write_text("cat\ndog\n")


def yolo_beside(folder):
    _yolo_splits(folder, ".", ".", {"": range(9)})
    (folder / "obj.names").write_text("cat\ndog\n")


TWO, THREE, ONE = ("train", "val"), ("train", "val", "test"), ("train",)
LAYOUTS = [
    (coco_own, "coco", TWO),
    (coco_images_folder, "coco", TWO),
    (coco_roboflow, "coco", THREE),
    (coco_beside, "coco", TWO),
    (coco_one_file, "coco", ONE),
    (coco_paths, "coco", ONE),
    (devkit, "voc", TWO),
    (voc_beside, "voc", ONE),
    (voc_roboflow, "voc", THREE),
    (voc_list, "voc", TWO),
    (yolo_roboflow, "yolo", THREE),
    (yolo_ultralytics, "yolo", TWO),
    (yolo_lists, "yolo", TWO),
    (yolo_flat, "yolo", ONE),
    (yolo_no_yaml, "yolo", TWO),
    (yolo_beside, "yolo", ONE),
]


def config_of(folder, *flags):
    overrides = own_data.of_folder(str(folder), dict(flag.split("=", 1) for flag in flags))
    return configs.override_all(recipes.base(), overrides).data


@pytest.mark.parametrize(("write", "source", "splits"), LAYOUTS, ids=lambda value: (
    value.__name__ if callable(value) else ""))  # fmt: skip
def test_layouts(tmp_path, write, source, splits):
    write(tmp_path)
    found = layout.find(str(tmp_path))
    assert found.source == source
    assert tuple(found.parts) == splits
    data = config_of(tmp_path)
    if source != "yolo":  # a recipe that names the files says the same with --data and without
        assert [data[split].split for split in splits] == [
            recipes.base().data[split].split for split in splits
        ]
    sets = {split: load_dataset(data, split) for split in ("train", "val")}
    check_same_categories(sets["train"], sets["val"])
    assert has_split(data, "test") == ("test" in splits)
    names = {split: {pathlib.Path(each.file_name(row)).stem for row in range(len(each))}
             for split, each in sets.items()}  # fmt: skip
    if len(splits) == 1:
        assert names["train"] | names["val"] == {str(n) for n in range(9)}
        assert not names["train"] & names["val"] and names["train"] and names["val"]
        assert "are set apart as val" in sets["train"].report.text
    else:
        assert names == {"train": {str(n) for n in range(6)}, "val": {"6", "7", "8"}}
    x, y, w, h = BOX
    for each in sets.values():
        for row in range(len(each)):
            number = int(pathlib.Path(each.file_name(row)).stem)
            np.testing.assert_allclose(each.boxes[row], [[x, y, x + w, y + h]], atol=1e-4)
            name = each.categories[each.labels[row][0]]["name"]
            assert name == NAMES[number % 2]
            assert tuple(each.sizes[row]) == SIZE
            assert each.read(row)


def test_a_file_may_be_named_in_place_of_the_folder(tmp_path):
    yolo_roboflow(tmp_path)
    assert layout.find(str(tmp_path / "data.yaml")).source == "yolo"
    coco_one_file(tmp_path / "coco")
    assert layout.find(str(tmp_path / "coco" / "labels.json")).source == "coco"


def test_the_split_stays_when_images_are_added_moved_or_converted(tmp_path):
    (tmp_path / "a").mkdir()
    _yolo_splits(tmp_path / "a", "images", "labels", {"": range(40)})
    before = {pathlib.Path(f).stem for f in load_dataset(config_of(tmp_path / "a"), "val")
              .annotations.files}  # fmt: skip
    for number in range(60):
        voc(
            tmp_path / "b/Annotations" / f"{number}.xml", tmp_path / "b/images" / f"{number}.png", 0
        )
    after = {pathlib.Path(f).stem for f in load_dataset(config_of(tmp_path / "b"), "val")
             .annotations.files}  # fmt: skip
    assert before == {name for name in after if int(name) < 40}
    assert 2 <= len(before) <= 14
    share = config_of(tmp_path / "b", "data.val_share=0.5")
    assert 20 <= len(load_dataset(share, "val")) <= 40


def test_copies_of_one_image_stay_on_one_side(tmp_path):
    for number in range(12):
        for copy in range(3):
            name = f"{number}_jpg.rf.{copy:04d}"
            yolo(tmp_path / f"labels/{name}.txt", tmp_path / f"images/{name}.jpg", number)
    data = config_of(tmp_path)
    sides = [{name.split("_")[0] for name in load_dataset(data, split).annotations.files}
             for split in ("train", "val")]  # fmt: skip
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 12


def test_flags_win_over_the_folder(tmp_path):
    coco_beside(tmp_path)
    coco(tmp_path / "more" / "mine.json", "pictures", range(20, 24))
    data = config_of(
        tmp_path,
        f"data.val.annotations={tmp_path}/more/mine.json",
        f"data.val.images={tmp_path}/more/pictures",
    )
    assert load_dataset(data, "val").image_ids.tolist() == [20, 21, 22, 23]
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val.json").unlink()
    data = config_of(tmp_path, f"data.val.annotations={tmp_path}/more/mine.json",
                     f"data.val.images={tmp_path}/more/pictures")  # fmt: skip
    assert len(load_dataset(data, "train")) == 6  # nothing is set apart


def test_train_without_val_trains_without_evaluation(tmp_path):
    coco_one_file(tmp_path)
    overrides = {
        "data.train.annotations": str(tmp_path / "labels.json"),
        "data.train.images": str(tmp_path / "images"),
        "data.val.annotations": "data/no/such.json",
    }
    recipe = configs.override_all(recipes.base(), overrides)
    del overrides["data.val.annotations"]
    more = own_data.without_val(recipe, overrides)
    assert not has_split(configs.override_all(recipe, more).data, "val")
    there = configs.override_all(recipe, {"data.val.annotations": str(tmp_path / "labels.json")})
    assert own_data.without_val(there, overrides) == {}


def test_a_val_that_is_named_takes_the_place_of_a_part_of_train(tmp_path):
    coco_one_file(tmp_path)
    share = {"data.val_share": "0.3"}
    named = {"data.val.annotations": str(tmp_path / "labels.json")}
    recipe = configs.override_all(recipes.base(), share)
    assert own_data.with_val(recipe, named) == {"data.val_share": "0"}
    assert own_data.with_val(recipe, {}) == {} == own_data.with_val(recipe, share | named)
    assert own_data.with_val(recipes.base(), named) == {}
    (tmp_path / "mine.py").write_text(
        "from mixtrain_jax.config import recipes\n\n\ndef get_config(argument=None):\n"
        "    config = recipes.base()\n    config.data.val_share = 0.3\n    return config\n"
    )
    config, origin = asked.of_file(str(tmp_path / "mine.py"), named)
    assert config.data.val_share == 0 and origin.flags["data.val_share"] == "0"
    saved.save(epath.Path(tmp_path / "run"), recipe, recipe, saved.Origin())
    config, _ = asked.of_run(epath.Path(tmp_path / "run"), named)
    assert config.data.val_share == 0


def test_a_coco_file_of_another_name_is_val_where_no_other_is(tmp_path):
    coco(tmp_path / "annotations" / "instances_train.json", "../images", range(6))
    coco(tmp_path / "annotations" / "person_keypoints_val.json", "../images", range(6, 9))
    coco(tmp_path / "annotations" / "train.json", "../images", range(6))
    assert tuple(layout.find(str(tmp_path)).parts) == ONE
    coco(tmp_path / "annotations" / "val.json", "../images", range(6, 9))
    found = layout.find(str(tmp_path))
    assert tuple(found.parts) == TWO
    assert found.parts["val"]["annotations"].endswith("/val.json")


def test_classes_are_counted_in_label_files_alone(tmp_path):
    _yolo_splits(tmp_path, "images", "labels", {"": range(9)})
    (tmp_path / "notes.txt").write_text("2024 1 2 3 4\n")
    assert len(layout.find(str(tmp_path)).classes) == 2


def test_the_flag_fills_in_the_config_and_config_json(tmp_path):
    voc_roboflow(tmp_path / "set")
    seen = []
    run = tmp_path / "run"
    flags = ["--config=quickstart", f"--data={tmp_path}/set", "--config.data.exif=stored"]
    flags += [f"--config.data.test.annotations={tmp_path}/other", f"--workdir={run}"]
    with pytest.raises(SystemExit) as end:
        cli.run(seen.append, train.parse(), flags)
    assert not end.value.code
    (found,) = seen
    assert found.config.data.source == "voc" and found.config.data.exif == "stored"
    assert found.config.data.train.annotations == f"{tmp_path}/set/train"
    assert found.config.data.test.annotations == f"{tmp_path}/other"
    saved.save(run, found.config, resolve(found.config, classes=2), found.origin)
    assert saved.read(run).origin.flags["data.classes"] == "('cat', 'dog')"
    # A run's classes stay where another folder shows fewer of them.
    voc(tmp_path / "few" / "1.xml", tmp_path / "few" / "1.jpg", 1)
    with pytest.raises(SystemExit):
        cli.run(seen.append, evaluate.parse(), [f"--workdir={run}", f"--data={tmp_path}/few"])
    assert seen[1].config.data.classes == ("cat", "dog")
    assert seen[1].config.data.train.annotations == f"{tmp_path}/few"
    assert seen[1].config.data.exif == "stored"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder.rmdir(), "there is no such folder"),
        (lambda folder: None, "the folder is empty"),
        (lambda folder: image(folder / "a.jpg"), "it holds 1 .jpg files"),
        (
            lambda folder: (
                coco(folder / "a.json", ".", (1,)),
                coco(folder / "b.json", ".", (2,)),
            ),
            "their names do not say which is train",
        ),
        (
            lambda folder: (
                voc(folder / "VOC2007/Annotations/1.xml", folder / "VOC2007/JPEGImages/1.jpg", 1),
                voc(folder / "VOC2012/Annotations/2.xml", folder / "VOC2012/JPEGImages/2.jpg", 1),
            ),
            "several VOC sets: VOC2007, VOC2012; name one of them",
        ),
        (
            lambda folder: (folder / "data.yaml").write_text("train: gone\nnames: [a]\n"),
            "'train' names gone",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, write, message):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder)
    with pytest.raises(UserError) as error:
        layout.find(str(folder))
    assert message in str(error.value)
