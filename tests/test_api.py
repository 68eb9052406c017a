"""The Python API on a tiny run: what it finds is what the commands find."""

import contextlib
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import mixtrain_jax
from mixtrain_jax import cli
from mixtrain_jax import predict as predict_command
from mixtrain_jax.config import load as configs
from tests.docs import blocks

PAGE = [
    block
    for block in blocks.blocks(configs.ROOT / "docs" / "python.md")
    if block.tag == "python" and not blocks.why_not_run(block)
]


def run(block, names):
    exec(compile(block.body, str(block), "exec"), names)


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """The folder and the names after the first script of docs/python.md, run as it stands."""
    folder, names = tmp_path_factory.mktemp("guide"), {"__name__": "guide"}
    with contextlib.chdir(folder):
        run(PAGE[0], names)
    return folder, names


@pytest.fixture
def detector(guide, monkeypatch):
    """The detector that the script trained, in the script's folder."""
    folder, names = guide
    monkeypatch.chdir(folder)
    return names["detector"]


@pytest.fixture
def files(detector):
    return sorted(pathlib.Path("shapes", "val").iterdir())


def test_the_script_trains_detects_draws_and_audits(detector, guide, capsys):
    assert len(PAGE[0].body.splitlines()) <= 24
    assert detector.step == 16
    assert detector.classes == ("disc", "ring", "square", "triangle", "star", "cross")
    assert detector.source == "runs/shapes/checkpoints/16"
    assert repr(detector) == f"Detector({detector.source}, student weights, 6 classes)"
    assert len(guide[1]["found"]) and pathlib.Path("found.png").stat().st_size > 1000
    assert pathlib.Path("runs", "shapes", "audit", "audit.html").exists()
    again = mixtrain_jax.train(
        "quickstart:plain", "runs/shapes", data="shapes", changes=guide[1]["small"]
    )
    assert again.step == 16
    assert "training is finished, 16 of 16 steps" in capsys.readouterr().out


def test_the_rest_of_the_guide_runs(detector, guide, capsys):
    names = dict(guide[1])
    for block in PAGE[1:]:
        run(block, names)
    said = capsys.readouterr().out
    assert "no such image file: nowhere.jpg" in said
    assert names["large"].config.data.val.scale == (128, 128)
    assert pathlib.Path("runs", "shapes", "audit_val", "audit.json").exists()
    assert pathlib.Path("runs", "shapes", "few.json").exists()


def test_files_and_arrays_give_what_the_command_writes(detector, files, tmp_path):
    flags = [f"--workdir={detector._workdir}", f"--output={tmp_path}", "--save_as=none"]
    with pytest.raises(SystemExit) as end:
        cli.run(
            predict_command.main,
            predict_command.parse(),
            [*flags, "--threshold=0.02", *map(str, files)],
        )
    assert not end.value.code
    written = json.loads((tmp_path / "detections.json").read_text())
    from_files = detector.predict(files, threshold=0.02)
    from_arrays = detector.predict([np.asarray(Image.open(file)) for file in files], 0.02)
    assert sum(map(len, from_files)) > 5
    for entry, one, other, file in zip(written, from_files, from_arrays, files, strict=True):
        assert one.path == str(file) and one.size == (entry["height"], entry["width"])
        assert list(one.names) == [found["category"] for found in entry["detections"]]
        expected = np.array([found["box"] for found in entry["detections"]]).reshape(-1, 4)
        np.testing.assert_allclose(one.boxes, expected, atol=0.02)
        np.testing.assert_allclose(one.scores, [f["score"] for f in entry["detections"]], atol=1e-4)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        assert [row[0] for row in one] == list(one.names)
    alone = detector.predict(files[0], threshold=0.02)
    np.testing.assert_allclose(alone.boxes, from_files[0].boxes, atol=1e-3)
    assert detector.predict([]) == []


def test_what_was_found_is_drawn(detector, files):
    found = detector.predict(str(files[0]), threshold=0.0)
    before = np.asarray(Image.open(files[0]))
    np.testing.assert_array_equal(found.pixels(), before)
    drawn = np.asarray(found.plot())
    factor = drawn.shape[0] // before.shape[0]
    assert drawn.shape == (factor * before.shape[0], factor * before.shape[1], 3)
    assert (drawn[::factor, ::factor] != before).any()


def test_supervision_gets_its_fields(detector, files, monkeypatch):
    class Detections:
        def __init__(self, **fields):
            self.__dict__.update(fields)

    found = detector.predict(files[0], threshold=0.0)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(mixtrain_jax.UserError, match="pip install supervision"):
        found.to_supervision()
    stand_in = type(sys)("supervision")
    stand_in.Detections = Detections
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    given = found.to_supervision()
    assert given.xyxy.shape == (len(found), 4) and given.confidence is found.scores
    assert given.class_id.tolist() == found.labels.tolist()
    assert given.data["class_name"].tolist() == list(found.names)


def test_scores_are_those_of_the_run(detector):
    lines = (detector._workdir / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines if "val_student/AP" in line][-1]
    scores = detector.evaluate()
    assert scores["AP"] == pytest.approx(logged["val_student/AP"], abs=1e-6)
    assert set(scores["per_class"]) == set(detector.classes)
    with pytest.raises(mixtrain_jax.UserError, match="no test split"):
        detector.evaluate("test")
    with pytest.raises(mixtrain_jax.UserError, match="choose 'val' or 'test'"):
        detector.evaluate("validation")
    with pytest.raises(mixtrain_jax.UserError, match="eval.weights is chosen by load"):
        detector.evaluate(changes={"eval.weights": "teacher"})
    chosen = mixtrain_jax.load("runs/shapes", changes={"eval.weights": "teacher"})
    assert chosen._weights.which == "teacher" and detector._weights.which == "student"
    with pytest.raises(mixtrain_jax.UserError, match="the scores are written there"):
        detector.evaluate(output="metrics.json")
    for threshold in ("0.5", 30, float("nan")):
        with pytest.raises(mixtrain_jax.UserError, match="give a number from 0 to less than 1"):
            detector.predict("shapes/val/000001.jpg", threshold)


@pytest.mark.slow
def test_a_run_goes_on_with_other_classes(detector, guide, capsys):
    """Fine-tuning as docs/training.md has it: the same images, whose classes have other names."""
    shutil.copytree("shapes", "renamed", dirs_exist_ok=True)
    for file in pathlib.Path("renamed", "annotations").iterdir():
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["name"] = f"other {category['name']}"
        file.write_text(json.dumps(content))
    changes = guide[1]["small"] | {"init_from": "runs/shapes:best"}
    tuned = mixtrain_jax.train("quickstart:plain", "runs/next", data="renamed", changes=changes)
    said = capsys.readouterr().out
    assert "from runs/shapes:best; as initialised: roi_head/head0/logits" in said
    assert tuned.classes == tuple(f"other {name}" for name in detector.classes)
    assert 0 <= tuned.evaluate()["AP"] <= 1
    with pytest.raises(mixtrain_jax.UserError, match="was trained on other categories"):
        tuned.evaluate(data="shapes")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.jpg", "no such image file: nowhere.jpg"),
        (np.zeros((4, 4), np.uint8), r"image 0 is an array uint8\[4, 4\]: give \[height"),
        (np.zeros((4, 4, 3), np.float32), r"float32\[4, 4, 3\]"),
        (np.zeros((8, 800, 3), np.uint8), "fits in none of config.data.val.buckets"),
        (Image.new("RGB", (8, 8)), "image 0 is a Image: give a file's path, or an array"),
        ([None], "image 0 is a NoneType"),
        (b"bytes", "image 0 is a bytes"),
    ],
)
def test_images_that_cannot_be_used_are_named(detector, image, message):
    if isinstance(image, np.ndarray) and image.shape[1] == 800:
        detector = mixtrain_jax.load(detector._workdir, changes={"data.val.scale": (200, 64)})
    with pytest.raises(mixtrain_jax.UserError, match=message):
        detector.predict(image)


def test_a_damaged_file_is_named(detector, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"nothing")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "y.png")
    with pytest.raises(mixtrain_jax.UserError, match=r"x.jpg: not an image"):
        detector.predict([tmp_path / "x.jpg", tmp_path / "y.png"])


def test_a_checkpoint_of_no_run_needs_a_config(tmp_path):
    with pytest.raises(mixtrain_jax.UserError, match="is not of a run: say config="):
        mixtrain_jax.load(tmp_path)
    with pytest.raises(mixtrain_jax.UserError, match="config file .*nowhere.py' does not exist"):
        mixtrain_jax.load(tmp_path, config=tmp_path / "nowhere.py")
    with pytest.raises(mixtrain_jax.UserError, match="choose 'student' or 'teacher'"):
        mixtrain_jax.load(tmp_path, weights="both")


def test_importing_is_light():
    program = (
        "import sys, mixtrain_jax; dir(mixtrain_jax); mixtrain_jax.UserError\n"
        "print(sorted({'jax', 'numpy', 'tensorflow', 'flax'} & set(sys.modules)))\n"
        "print(callable(mixtrain_jax.train), hasattr(mixtrain_jax, 'nothing'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=configs.ROOT, capture_output=True, text=True
    )
    assert done.stdout == "[]\nTrue False\n", done.stderr
