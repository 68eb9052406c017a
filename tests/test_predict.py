"""Prediction from image files, and what it shares with evaluation."""

import functools
import json
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from mixtrain_jax import cli
from mixtrain_jax import predict as command
from mixtrain_jax.config import load as configs
from mixtrain_jax.data.input.read_errors import ReadErrors
from mixtrain_jax.data.sources import plain_images
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import detect, evaluate, predict, result_files
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import checkpoint, storage
from mixtrain_jax.types import Detections, TrainState
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
    """What --config loads: the small detector, which takes images no wider or higher than 64."""
    config = small.config()
    config.model.num_classes = None
    config.data.val.update(scale=(128, 64), buckets=((64, 64),), annotations="nowhere.json")
    monkeypatch.setattr(configs, "load", lambda *_: config)
    return config


@pytest.fixture
def uncompiled(monkeypatch):
    """Fails when the detector is asked for."""
    monkeypatch.setattr(detect, "predictor", lambda *_: pytest.fail("came as far as compiling"))


def picture(path, height=48, width=48, value=128):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)
    return path


def run(weights, output, *images):
    flags = "--config=x", f"--checkpoint={weights}", f"--output={output}", "--threshold=0"
    with pytest.raises(SystemExit) as end:
        cli.run(command.main, command.parse(), [*flags, *map(str, images)])
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
    line = error[error.index("error: ") :]
    assert line.count("\n") == 1
    assert "2 of 4 images could not be used and were skipped: " in line
    assert f"{damaged} (not an image" in line
    assert f"{wide} (an image resized to height 32 and width 128 fits in none of" in line

    assert {p.name for p in output.iterdir()} == {
        ".predicted", "x.png", "x_2.png", "detections.json"
    }  # fmt: skip
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


@pytest.mark.parametrize("form", result_files.FORMATS)
def test_no_file_takes_the_place_of_one_of_the_users(tmp_path, form):
    output, stems = epath.Path(tmp_path), {"images/a.jpg": "a"}
    odd = ["a\u2028b.png", "\udce9.png"]  # a line's end for Python, a name that is not UTF-8
    files = [
        output / "a.png",
        *(output / name for name in odd),
        *result_files.files_of(output, stems, form),
    ]
    for file in files:
        storage.write(file, b"mine")
        with pytest.raises(UserError, match=f"{file.name} is there, and no prediction wrote it"):
            result_files.claim(output, files)
        assert file.read_text() == "mine"
        storage.delete(file)
    result_files.claim(output, files)
    for file in files:
        storage.write(file, b"of an earlier call")
    result_files.claim(output, files)
    assert set(result_files.write(output, [], stems, CATEGORIES, form)) <= {
        *files, output / "labels"
    }  # fmt: skip
    storage.write(output / "labels" / "b.txt", b"mine")
    other = {"images/a.jpg": "a", "images/b.jpg": "b"}
    with pytest.raises(UserError, match="b.txt is there"):
        result_files.claim(output, result_files.files_of(output, other, "yolo"))


def test_numbered_names_avoid_each_other(tmp_path):
    images = [
        str(picture(tmp_path / folder / name))
        for folder, name in [("a", "x.png"), ("a", "x_2.png"), ("b", "x.jpg"), ("c", "x.jpg")]
    ]
    stems = plain_images.find(images)
    targets = predict.choose_outputs(stems, tmp_path, "png")
    assert list(targets) == images
    assert [p.name for p in targets.values()] == ["x.png", "x_2.png", "x_3.png", "x_4.png"]
    assert predict.choose_outputs(stems, tmp_path, "none") == {}


def test_folders_and_patterns_are_looked_through(tmp_path):
    below = picture(tmp_path / "in" / "a.png"), picture(tmp_path / "in" / "deep" / "a.jpg")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    picture(tmp_path / "in" / "out" / "a.png")  # of an earlier call
    stems = plain_images.find([str(tmp_path / "in")], without=tmp_path / "in" / "out")
    assert stems == {str(below[0]): "a", str(below[1]): "deep/a"}
    pattern = str(tmp_path / "**" / "*.jpg")
    assert plain_images.find([str(below[1]), pattern]) == {str(below[1]): "a"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image files in .*empty"):
        plain_images.find([str(tmp_path / "empty")])


@pytest.mark.parametrize("name", ["in", "in/**/*.png"])
def test_an_output_that_holds_the_images_hides_none(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in" / "a.png")
    for output in (".", "in"):
        assert plain_images.find([name], without=output) == {"in/a.png": "a"}
    picture(tmp_path / "in" / "out" / "b.png")
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(UserError, match="no image files in .* but those of --output=in/out"):
        plain_images.find([name], without="in/out")


def test_patterns_are_of_this_machine():
    with pytest.raises(UserError, match="in a bucket name files or folders, not patterns"):
        plain_images.find(["gs://bucket/in/*.jpg"])
    assert plain_images._inside("gs://bucket/in/out/a.png", "gs://bucket/in/out/")
    assert not plain_images._inside("gs://bucket/in/a.png", "gs://bucket/in/out")


@pytest.mark.parametrize("threshold", ["30", "nan", "-0.1", "1"])
def test_a_threshold_is_a_score(threshold, capsys):
    flags = "--config=quickstart", "--checkpoint=x", "--output=y", f"--threshold={threshold}", "z"
    with pytest.raises(SystemExit):
        cli.run(command.main, command.parse(), list(flags))
    assert "give a number from 0 to less than 1" in capsys.readouterr().err


def test_the_config_says_which_weights_unless_a_flag_does():
    config = small.config()
    for asked, given, expected in (
        ("teacher", None, "teacher"),
        ("teacher", "student", "student"),
        ("both", None, "student"),
        ("student", "teacher", "teacher"),
    ):
        config.eval.weights = asked
        assert detect.which_weights(given, config) == expected


def test_a_float32_detector_is_exact_on_every_device(unnamed):
    """As the program says before it is compiled; an export lowers the same function."""
    network = detector.build(small.config().model, "float32")
    params, _ = checkpoint.load_weights(str(unnamed), "student")
    image, size, scale = np.zeros((1, 64, 64, 3), "f4"), np.full((1, 2), 64), np.ones((1, 2), "f4")
    run = functools.partial(detect.in_original, network)
    text = jax.jit(run).lower(params, image, size, scale).as_text()
    products = [
        line
        for line in text.splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot" in line
    ]
    assert len(products) > 10
    assert [line for line in products if "HIGHEST" not in line] == []


def test_a_folder_goes_through_in_batches_to_yolo_and_coco_files(unnamed, config, tmp_path, capsys):
    config.eval.batch_size = 2
    shapes = (48, 48), (40, 40), (52, 52), (20, 20), (64, 64)  # two batches and a half
    for number, (height, width) in enumerate(shapes):
        picture(tmp_path / "in" / f"{number}.png", height, width, 50 * number)
    jpg = "--format=yolo", "--save_as=jpg"
    assert run(unnamed, tmp_path / "yolo", tmp_path / "in", *jpg) == 0
    said = capsys.readouterr()
    assert "images are seen with a short side of 64 pixels" in said.out
    assert "5 images, " in said.out and "images/s" in said.out
    assert run(unnamed, tmp_path / "coco", tmp_path / "in", "--format=coco", "--save_as=none") == 0
    assert {p.name for p in (tmp_path / "coco").iterdir()} == {
        ".predicted",
        "detections.json",
        "detections_coco.json",
    }
    assert {p.name for p in (tmp_path / "yolo").glob("*.jpg")} == {f"{n}.jpg" for n in range(5)}
    report = json.loads((tmp_path / "yolo" / "detections.json").read_text())
    again = json.loads((tmp_path / "coco" / "detections.json").read_text())
    assert [entry["image"] for entry in report] == sorted(map(str, (tmp_path / "in").iterdir()))
    coco = json.loads((tmp_path / "coco" / "detections_coco.json").read_text())
    for number, (entry, twin, size) in enumerate(zip(report, again, shapes, strict=True)):
        assert (entry["height"], entry["width"]) == size
        boxes = np.array([found["box"] for found in entry["detections"]])
        np.testing.assert_allclose(boxes, [f["box"] for f in twin["detections"]], atol=0.02)
        mine = [each for each in coco["annotations"] if each["image_id"] == number + 1]
        wide = boxes[:, 2:] - boxes[:, :2]
        expected = np.concatenate([boxes[:, :2], wide], axis=1)
        np.testing.assert_allclose([each["bbox"] for each in mine], expected, atol=0.03)
        lines = (tmp_path / "yolo" / "labels" / f"{number}.txt").read_text().splitlines()
        numbers = np.array([line.split() for line in lines], float)
        centre = numbers[:, 1:3] * size[::-1]
        np.testing.assert_allclose(centre, (boxes[:, :2] + boxes[:, 2:]) / 2, atol=0.02)
        np.testing.assert_allclose(numbers[:, 3:5] * size[::-1], wide, atol=0.02)
        assert [int(n) + 1 for n in numbers[:, 0]] == [
            each["category_id"] for each in entry["detections"]
        ]


@pytest.mark.parametrize(("found", "threshold", "told"), [(8, 0.3, 2), (8, 0.6, 0), (7, 0.3, 0)])
def test_as_many_objects_as_there_is_room_for_is_a_warning(
    config, tmp_path, monkeypatch, found, threshold, told
):
    """The small detector has room for 8; two images have as many, of a score of .5."""
    said = []
    monkeypatch.setattr(predict.logging, "warning", lambda text, *a: said.append(text % a))

    def detect_all(predictor, params, views):
        slots = np.tile(np.arange(8) < found, (3, 1))
        boxes, scores = np.ones((3, 8, 4), np.float32), np.full((3, 8), 0.5, np.float32)
        slots[2, 4:] = False
        detections = Detections(boxes, scores, np.zeros((3, 8), np.int32), slots)
        yield np.array([0, 1, 2]), detections, np.ones(3, bool)

    monkeypatch.setattr(predict.detect, "detect", detect_all)
    files = [picture(tmp_path / f"{n}.png") for n in range(3)]
    dataset = plain_images.dataset(list(map(str, files)), config.data)
    list(predict.detect_in(dataset, config, None, {}, 3, threshold, ReadErrors(max_share=1.0)))
    assert len(said) == bool(told)
    assert not told or f"In {told} images as many objects" in said[0]


def test_a_source_is_asked_for(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(command.main, command.parse(), ["--config=quickstart", f"--output={tmp_path}", "x"])
    assert end.value.code == cli.BAD_INPUT
    assert "--workdir=DIR" in capsys.readouterr().err


def test_class_names_are_the_checkpoints_or_the_annotations_or_numbers(config, tmp_path):
    trained = [{"id": i, "name": f"own {i}"} for i in range(3)]
    numbered = [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)]
    assert predict.name_classes(3, {}, config.data) == numbered
    file = tmp_path / "val.json"
    config.data.val.annotations = str(file)
    file.write_text(json.dumps({"categories": [c | {"x": 0} for c in reversed(CATEGORIES)]}))
    assert predict.name_classes(3, {}, config.data) == CATEGORIES
    assert predict.name_classes(3, {"categories": trained}, config.data) == trained
    assert predict.name_classes(2, {}, config.data) == numbered[:2]
    file.write_text("[]")
    with pytest.raises(UserError, match=r"val.json lists no categories"):
        predict.name_classes(3, {}, config.data)


def test_only_a_detector_has_classes():
    with pytest.raises(UserError, match="weights/fpn is no detector"):
        predict.class_count(detect.Weights("weights/fpn", "student", {"fpn": {}}, {}))


def test_a_runs_best_checkpoint_can_be_chosen(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step, ap in ((1, 0.2), (2, 0.1)):
        tree = {"a": np.full(2, step, np.float32)}
        state = TrainState(np.array(step, np.int32), tree, tree, tree)
        checkpoints.save(step, state, {})
        checkpoints.record(step, {"AP": ap})
    checkpoints.close()
    for source, step in ((f"{tmp_path}:best", 1), (str(tmp_path), 2)):
        params, meta = checkpoint.load_weights(source, "student")
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


@pytest.mark.parametrize(
    ("asked", "trained", "expected"),
    [("auto", "stored", "stored"), ("auto", "auto", "auto"), ("upright", "stored", "upright")],
)
def test_images_are_turned_as_those_of_training(unnamed, asked, trained, expected):
    weights = detect.read_weights(str(unnamed), "student")
    weights = weights._replace(meta={"exif": trained})
    config = small.config()
    config.data.exif = asked
    assert predict.settle(config, weights)[0].data.exif == expected


def test_several_processes_are_refused(monkeypatch):
    """All of them would write the same files."""
    monkeypatch.setattr("mixtrain_jax.runtime.processes.start", lambda: None)
    monkeypatch.setattr("mixtrain_jax.runtime.parallel.host", lambda: (1, 4))
    monkeypatch.setattr("mixtrain_jax.process.prepare", lambda: None)
    with pytest.raises(UserError, match="in one process, and 4 take part; start it alone"):
        command.main(types.SimpleNamespace(checkpoint="x", workdir=None))
