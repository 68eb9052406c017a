"""Prediction from image files, and what it shares with evaluation."""

import json
import types

import jax
import numpy as np
import pytest
from PIL import Image

from mixtrain_jax import cli, evaluate, predict
from mixtrain_jax import config as configs
from mixtrain_jax.evaluation import detect
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import checkpoint
from mixtrain_jax.runtime.errors import UserError
from mixtrain_jax.types import TrainState
from tests.mixtraining import small

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "cow"}]


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """A checkpoint of three classes that does not name them."""
    path = tmp_path_factory.mktemp("weights") / "unnamed"
    params = detector.init(detector.build(small.config().model), 0)
    checkpoint.save_weights(path, jax.device_get(params))
    return path


@pytest.fixture
def config(monkeypatch):
    """What --config loads: the small detector, which takes pictures no wider or higher than 64."""
    config = small.config()
    config.model.num_classes = None
    config.data.val.update(scale=(128, 64), buckets=((64, 64),), annotations="nowhere.json")
    monkeypatch.setattr(configs, "load", lambda *_: config)
    return config


@pytest.fixture
def uncompiled(monkeypatch):
    """Fails when the detector is asked for."""
    monkeypatch.setattr(detect, "predictor", lambda _: pytest.fail("came as far as compiling"))


def picture(path, height=48, width=48, value=128):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)
    return path


def run(weights, output, *images):
    flags = "--config=x", f"--checkpoint={weights}", f"--output={output}", "--threshold=0"
    with pytest.raises(SystemExit) as end:
        cli.run(predict.main, predict.parse(), [*flags, *map(str, images)])
    return end.value.code or 0


@pytest.mark.usefixtures("config")
def test_every_image_that_can_be_used_is_written(unnamed, tmp_path, capsys):
    light = picture(tmp_path / "a" / "x.png", value=220)
    dark = picture(tmp_path / "b" / "x.png", value=40)
    damaged, wide = tmp_path / "damaged.jpg", picture(tmp_path / "wide.png", 10, 40)
    damaged.write_bytes(b"nothing")
    output = tmp_path / "out"
    assert run(unnamed, output, damaged, light, wide, dark) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"2 of 4 images could not be used: {damaged} (UnidentifiedImageError" in error
    assert f"{wide} (a picture resized to height 32 and width 128 fits in none of" in error

    assert {p.name for p in output.iterdir()} == {"x.png", "x_2.png", "detections.json"}
    first, second = (np.mean(Image.open(output / name)) for name in ("x.png", "x_2.png"))
    assert first > second + 50
    report = json.loads((output / "detections.json").read_text())
    assert [entry["image"] for entry in report] == [str(light), str(dark)]
    found = [each for entry in report for each in entry["detections"]]
    assert found
    assert all(each["category"] == f"class {each['category_id']}" for each in found)
    assert all(1 <= each["category_id"] <= small.CLASSES for each in found)


@pytest.mark.usefixtures("config", "uncompiled")
def test_bad_paths_are_refused_before_anything_is_compiled(unnamed, tmp_path, capsys):
    def error(*arguments):
        assert run(unnamed, *arguments) == cli.BAD_INPUT
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    photo = picture(tmp_path / "x.png")
    before = photo.read_bytes()
    missing = tmp_path / "y.jpg", tmp_path / "z.jpg"
    expected = f"no such image file: {missing[0]}, {missing[1]}\n"
    assert expected in error(tmp_path / "out", missing[0], photo, missing[1])
    assert "x.png is an input and would be overwritten" in error(tmp_path, photo)
    other = picture(tmp_path / "a" / "x.jpg")
    assert "x.png is an input" in error(tmp_path / "a" / "..", other, photo)
    assert photo.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"x.png", "a"}


def test_numbered_names_avoid_each_other(tmp_path):
    images = [
        picture(tmp_path / folder / name)
        for folder, name in [("a", "x.png"), ("a", "x_2.png"), ("b", "x.jpg"), ("c", "x.jpg")]
    ]
    targets = predict.plan(images, tmp_path)
    assert [path.name for path in targets] == ["x.png", "x_2.png", "x_3.png", "x_4.png"]
    assert list(targets.values()) == images


def test_class_names_are_the_checkpoints_or_the_annotations_or_numbers(config, tmp_path):
    trained = [{"id": i, "name": f"own {i}"} for i in range(3)]
    numbered = [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)]
    assert predict.name_classes(3, {}, config) == numbered
    file = tmp_path / "val.json"
    config.data.val.annotations = str(file)
    file.write_text(json.dumps({"categories": [c | {"x": 0} for c in reversed(CATEGORIES)]}))
    assert predict.name_classes(3, {}, config) == CATEGORIES
    assert predict.name_classes(3, {"categories": trained}, config) == trained
    assert predict.name_classes(2, {}, config) == numbered[:2]
    file.write_text("[]")
    with pytest.raises(UserError, match=r"val.json lists no categories"):
        predict.name_classes(3, {}, config)


def test_only_a_detector_has_classes():
    with pytest.raises(UserError, match="weights/fpn is no detector"):
        predict.class_count("weights/fpn", {"fpn": {}})


def test_a_runs_best_checkpoint_can_be_chosen(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step, ap in ((1, 0.2), (2, 0.1)):
        tree = {"a": np.full(2, step, np.float32)}
        state = TrainState(np.array(step, np.int32), tree, tree, tree)
        checkpoints.save(step, state, {}, {"AP": ap})
    checkpoints.close()
    for source, step in ((f"{tmp_path}:best", 1), (str(tmp_path), 2)):
        params, meta = detect.load_weights(source, "student")
        assert params["a"].tolist() == [step, step]
        assert meta["step"] == step


def test_categories_are_compared_by_name_in_label_order():
    def check(*names):
        meta = {"categories": [{"id": i, "name": name} for i, name in enumerate(names)]}
        evaluate.check_categories("run", meta, types.SimpleNamespace(**dataset))

    dataset = {"name": "val", "categories": CATEGORIES}
    check("cat", "dog", "cow")
    evaluate.check_categories("run", {}, types.SimpleNamespace(**dataset))
    with pytest.raises(UserError, match=r"run was .* than val has: label 1 is cow there, dog here"):
        check("cat", "cow", "dog")
    with pytest.raises(UserError, match="label 2 is absent there, cow here"):
        check("cat", "dog")
    with pytest.raises(UserError, match="label 3 is sheep there, absent here"):
        check("cat", "dog", "cow", "sheep")
