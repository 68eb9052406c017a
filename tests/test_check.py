"""The check command: what it says of a folder, its exit code, and the recipe it writes."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from mixtrain_jax import check, cli
from mixtrain_jax.config import load as configs
from mixtrain_jax.inspection import weights

SIZE = (60, 80)  # height, width


def image(path: pathlib.Path, seed: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros([*SIZE, 3], np.uint8)
    if seed is not None:
        pixels = np.random.default_rng(seed).integers(0, 255, [*SIZE, 3], np.uint8)
    Image.fromarray(pixels).save(path)


def coco(folder: pathlib.Path, split: str, boxes: dict[str, list]) -> None:
    """Writes a split of a COCO folder: boxes (category, x, y, width, height) by file name."""
    names = list(boxes)
    content = {
        "images": [
            {"id": n, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for n, name in enumerate(names)
        ],
        "annotations": [
            {"id": 1000 * n + i, "image_id": n, "category_id": c, "bbox": box}
            for n, name in enumerate(names)
            for i, (c, *box) in enumerate(boxes[name])
        ],
        "categories": [{"id": i, "name": name} for i, name in ((1, "cat"), (2, "dog"), (3, "cow"))],
    }
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / split / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """Twelve images to train on and two of val, with nothing odd but few boxes."""
    folder = tmp_path / "data"
    good = [(1, 4, 5, 30, 20), (2, 30, 30, 20, 24)]
    for split, count, first in (("train", 12, 0), ("val", 2, 50)):
        for number in range(count):
            image(folder / split / f"{number}.png", first + number)
        coco(folder, split, {f"{number}.png": good for number in range(count)})
    return folder


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        cli.run(check.main, check.parse(), list(map(str, arguments)))
    return end.value.code or 0


def looked_at(folder, *flags):
    """Exit code, and report.json with its problems by what they are."""
    output = folder.parent / "out"
    code = run(f"--data={folder}", f"--output={output}", *flags)
    report = json.loads((output / "report.json").read_text())
    return code, report, {(p["split"], p["what"]): p for p in report["problems"]}


def one(problems, split, word):
    (found,) = [p for (where, what), p in problems.items() if where == split and word in what]
    return found


def test_counts_of_a_folder_and_a_recipe(folder, capsys):
    mine = folder.parent / "mine.py"
    code, report, problems = looked_at(folder, f"--write={mine}")
    said = capsys.readouterr().out
    assert code == 0
    assert report["can_start"]
    train, val = report["splits"]
    assert (train["images"], train["boxes"], val["images"], val["boxes"]) == (12, 24, 2, 4)
    assert train["boxes_an_image"] == {"least": 2, "median": 2.0, "most": 2, "mean": 2.0}
    assert train["commonest_sizes"] == [{"height": 60, "width": 80, "images": 12}]
    cat = train["classes"][0]
    assert cat == dict(id=1, name="cat", boxes=12, images=12, small=12, medium=0, large=0)
    assert one(problems, "train", "no box to train on")["where"] == ["cow"]
    assert "training can start" in said
    page = (folder.parent / "out" / "check.html").read_text()
    assert "cow" in page and (folder.parent / "out" / "samples").is_dir()
    config = configs.load(str(mine))
    assert config.data.train.annotations == str(folder / "train" / "_annotations.coco.json")
    assert config.data.max_boxes == 10
    assert f"--config={mine}" in said
    assert run(f"--data={folder}", f"--output={folder.parent}", f"--write={mine}") == cli.BAD_INPUT
    assert "add --overwrite" in capsys.readouterr().err


def test_weights_that_a_recipe_does_not_take_are_told(folder, capsys, monkeypatch):
    made = weights.PretrainedWeights("some/weights", {"name": "resnet", "depth": 50})
    monkeypatch.setattr(weights, "read", lambda source: made)
    mine = folder.parent / "mine.py"
    assert looked_at(folder, f"--write={mine}", "--weights=some/weights")[0] == 0
    assert configs.load(str(mine)).init_from == ""
    assert "--weights=some/weights is left out" in capsys.readouterr().out


def test_odd_files_and_splits(folder):
    shutil.copy(folder / "train" / "3.png", folder / "val" / "0.png")  # in both splits
    shutil.copy(folder / "train" / "3.png", folder / "train" / "4.png")
    image(folder / "train" / "5.png", None)  # black
    (folder / "train" / "6.png").write_bytes((folder / "train" / "6.png").read_bytes()[:500])
    coco(folder, "val", {"0.png": [(3, 1, 1, 30, 30)], "1.png": []})
    code, report, problems = looked_at(folder)
    assert code == 0
    assert one(problems, "train", "cannot be used")["count"] == 1
    assert "6.png: cut short" in one(problems, "train", "cannot be used")["where"][0]
    assert one(problems, "train", "one colour")["where"] == ["5.png"]
    assert one(problems, "train", "same as another")["where"] == ["4.png as 3.png"]
    (place,) = one(problems, "val", "same as one of another split")["where"]
    assert place == "0.png as 3.png of train"
    assert one(problems, "val", "none in train")["where"] == ["cow"]
    assert one(problems, "val", "none here")["where"] == ["cat", "dog"]
    assert one(problems, "val", "have no boxes")["count"] == 1
    assert report["splits"][0]["images_damaged"] == 1
    kinds = [problem["kind"] for problem in report["problems"]]
    assert kinds == sorted(kinds, key=["stops training", "mistake", "doubtful", "note"].index)


def test_exit_code_when_training_cannot_start(folder, capsys):
    for number in range(6):
        (folder / "train" / f"{number}.png").write_bytes(b"no image")
    code, report, problems = looked_at(folder)
    assert code == check.CANNOT_START
    assert not report["can_start"]
    assert one(problems, "train", "cannot be used")["kind"] == "stops training"
    assert "training cannot start" in capsys.readouterr().out
    coco(folder, "train", {"7.png": []})
    assert looked_at(folder)[0] == check.CANNOT_START


def test_a_config_or_a_folder_is_asked_for(capsys):
    assert run() == cli.BAD_INPUT
    assert "--data=FOLDER" in capsys.readouterr().err


def test_a_recipe_is_not_written_to_a_bucket(folder, capsys):
    assert run(f"--data={folder}", "--write=gs://bucket/mine.py") == cli.BAD_INPUT
    assert "a recipe is a file of this machine" in capsys.readouterr().err
    assert run(f"--data={folder}", "--write=mine") == cli.BAD_INPUT
    assert "a recipe is a Python file; its name ends in .py" in capsys.readouterr().err


def test_an_evaluation_that_would_stop_is_said_too(folder):
    for number in range(2, 20):
        image(folder / "val" / f"{number}.png", 100 + number)
    good = [(1, 4, 5, 30, 20), (2, 30, 30, 20, 24)]
    coco(folder, "val", {f"{number}.png": good for number in range(20)})
    for number in range(10):
        (folder / "val" / f"{number}.png").write_bytes(b"no image")
    code, _, problems = looked_at(folder)
    assert code == check.CANNOT_START
    assert "evaluation would stop" in one(problems, "val", "cannot be used")["done"]


def test_of_few_images_more_than_half_are_too_many(folder):
    coco(folder, "train", {f"{n}.png": [(1, 4, 5, 30, 20)] for n in range(6)})
    for number in range(4):
        (folder / "train" / f"{number}.png").write_bytes(b"no image")
    assert looked_at(folder)[0] == check.CANNOT_START


def test_the_recipe_has_room_for_all_boxes_and_what_was_asked(folder, tmp_path):
    crowded = [(1, x, y, 5, 5) for x in range(0, 75, 5) for y in range(0, 50, 5)]
    coco(folder, "train", {f"{n}.png": crowded for n in range(12)})
    path = tmp_path / "mine.py"
    code, _, problems = looked_at(
        folder, f"--write={path}", "--config.data.max_bad_share=0.9", "--config.batch_size=4"
    )
    assert code == 0
    assert not [what for _, what in problems if "more boxes than" in what]
    assert not [what for _, what in problems if "more objects than a detector" in what]
    config = configs.load(str(path))
    assert config.data.max_boxes == config.model.roi_head.detections == 150
    assert config.data.max_bad_share == 0.9 and config.batch_size == 4
    asked = path.read_text().partition("# As asked\n")[2].split("\n\n")[0]
    assert asked.split() == ["config.data.max_bad_share", "=", "0.9"]
    looked = looked_at(folder, f"--write={path}")  # it is there: nothing is read
    assert looked[0] == cli.BAD_INPUT


def test_a_scale_that_is_asked_for_has_buckets_of_its_own(folder, tmp_path):
    path = tmp_path / "mine.py"
    assert looked_at(folder, f"--write={path}", "--config.data.train.scale=640,384,480")[0] == 0
    data = configs.load(str(path)).data
    assert data.train.scale == (640, 384, 480) and data.train.buckets == ()


def test_a_damaged_test_split_keeps_no_training_from_starting(folder):
    coco(folder, "test", {f"{n}.png": [(1, 4, 5, 30, 20)] for n in range(6)})
    image(folder / "test" / "5.png", 100)
    for number in range(5):
        (folder / "test" / f"{number}.png").write_bytes(b"")
    code, report, problems = looked_at(folder)
    assert code == 0 and report["can_start"]
    assert one(problems, "test", "cannot be used")["count"] == 5
    assert not [what for _, what in problems if "same as another" in what]


def test_images_set_apart_are_counted(folder):
    shutil.rmtree(folder / "val")
    _, _, problems = looked_at(folder)
    note = one(problems, "train", "are set apart as val")
    assert note["count"] == len(note["where"]) > 0


def test_a_set_without_train_is_one_line(folder, capsys):
    assert run(f"--data={folder}", "--config.data.train.annotations=") == cli.BAD_INPUT
    assert "no train split" in capsys.readouterr().err


def test_boxes_are_judged_as_the_recipe_will_see_them(folder, tmp_path):
    """At its scale, with the anchors that it chooses, and not at the paper's 800."""
    boxes = [(1, x, y, 2.5, 2.5) for x in range(0, 40, 5) for y in range(0, 40, 5)]
    coco(folder, "train", {f"{n}.png": [*boxes, (1, 50, 50, 1.2, 1.2)] for n in range(12)})
    path = tmp_path / "mine.py"
    _, _, problems = looked_at(folder, f"--write={path}")
    config = configs.load(str(path))
    scale = f"{config.data.val.scale[1]} (at most {config.data.val.scale[0]})"
    tiny = one(problems, "train", "the finest stride")  # 1.2 of 60 pixels; at 800: 16
    assert tiny["count"] == 12 and scale in tiny["what"]
    # The others are 7 pixels high, which fits anchors of 8 alone.
    assert config.model.rpn.anchor_scale == 2.0
    assert not [what for where, what in problems if where == "train" and "no anchor" in what]


def test_boxes_and_objects_beyond_a_configs_room_are_told(folder):
    crowded = [(1, x, y, 5, 5) for x in range(0, 75, 5) for y in range(0, 50, 5)]
    coco(folder, "train", {f"{n}.png": crowded[: 101 if n else 150] for n in range(3)})
    _, report, problems = looked_at(folder)
    assert report["splits"][0]["boxes"] == 352
    cut = one(problems, "train", "more boxes than config.data.max_boxes = 100")
    assert cut["where"] == ["0.png: 150", "1.png: 101", "2.png: 101"]
    assert one(problems, "train", "roi_head.detections = 100")["where"] == cut["where"]


def test_weights_without_a_recipe_are_refused(folder, capsys):
    assert run(f"--data={folder}", "--weights=some/weights") == cli.BAD_INPUT
    assert "add --write=FILE.py" in capsys.readouterr().err
