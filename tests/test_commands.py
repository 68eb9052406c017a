"""The three commands from files to files: train, stop, resume, evaluate, predict."""

import argparse
import copy
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mixtrain_jax import cli, evaluate, predict, train
from mixtrain_jax.config import load as configs
from mixtrain_jax.config import saved
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.errors import STOPPED, UserError
from mixtrain_jax.evaluation import coco, detect
from mixtrain_jax.evaluation import predict as predicting
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import checkpoint, processes
from mixtrain_jax.training import validation, warm_start
from mixtrain_jax.training.optimizer import make_schedule
from tests import harness, tiny
from tests.tiny import STEPS

pytestmark = pytest.mark.command


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    """A run from start to end."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert harness.run(tiny.get_config(shapes), workdir) == 0
    return workdir


def test_workdir_of_a_finished_run(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert any("val_student/AP" in line for line in lines)
    rate = make_schedule(saved.read(finished).resolved.optimizer, STEPS)
    for step, told in harness.logged(finished, "lr").items():
        assert told == pytest.approx(float(rate(step - 1)), rel=1e-5)  # by which it was taken
    assert (finished / "pictures" / f"train_{STEPS:07d}.png").stat().st_size > 1000
    assert saved.read(finished).resolved.steps == STEPS
    page = (finished / "report.html").read_text()
    assert f"6 of {STEPS}" in page and f"pictures/train_{STEPS:07d}.png" in page
    assert "What the teacher did" in page and "Average precision" in page
    assert {p.name for p in (finished / "checkpoints").iterdir() if p.is_dir()} == {"3", "6"}


def test_every_logged_name_is_explained_and_no_other(finished):
    """The tables of docs/metrics.md against what the run wrote."""
    text = (configs.ROOT / "docs" / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    written = {name for line in lines for name in json.loads(line)} - {"step", "time"}
    # With eval.weights="both", mend_normal and soft labels: tests/training and tests/mixtraining.
    written |= {name.replace("val_student", "val_teacher") for name in written}
    fates = ("kept", "dropped", "replaced", "mending", "missing")
    written |= {f"boxes/{fate}_normal" for fate in fates}
    assert explained == written | {
        "teacher/label_share",
        "teacher/box_share",
        "teacher/rating_threshold",
    }


def test_training_without_val(shapes, tmp_path, capsys):
    config = tiny.get_config(shapes, data__val__annotations="", data__val__images="")
    assert harness.run(config, tmp_path) == 0
    said = capsys.readouterr().out
    assert "no val split (config.data.val): no evaluation" in said and "AP50" not in said
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert not [name for line in lines for name in line if name.startswith("val_")]
    assert saved.read(tmp_path).resolved.steps == STEPS


@pytest.mark.parametrize("after", [1, 4])
def test_a_stopped_run_resumes_bit_by_bit(finished, shapes, tmp_path, after, capsys):
    stop = harness.StopAfter(after)
    assert harness.run(tiny.get_config(shapes), tmp_path, stop) == STOPPED
    assert f"saved after step {after};" in capsys.readouterr().out
    assert harness.run(tiny.get_config(shapes), tmp_path) == 0
    assert f"resuming after step {after}" in capsys.readouterr().out
    whole, resumed = harness.saved(finished, STEPS), harness.saved(tmp_path, STEPS)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    assert harness.logged(tmp_path)[STEPS] == harness.logged(finished)[STEPS]


def test_patience_ends_a_run_however_often_it_is_started(shapes, tmp_path, monkeypatch, capsys):
    found = iter([0.3, 0.3])  # after steps 2 and 4

    def scored(*_):
        return dict.fromkeys(coco.KEYS, next(found)) | {"per_class": {}}, []

    monkeypatch.setattr(validation.detect, "evaluate", scored)
    patient = tiny.get_config(shapes, eval__every=2, eval__patience=1)
    assert harness.run(patient, tmp_path, harness.StopAfter(3)) == STOPPED
    assert harness.run(patient, tmp_path) == 0
    assert "training ends after step 4: 1 evaluations in a row" in capsys.readouterr().out
    assert harness.run(patient, tmp_path) == 0
    assert "training is finished, 4 of 6 steps are done: 1 eval" in capsys.readouterr().out


def test_scores_of_something_else_end_no_run(shapes, tmp_path, monkeypatch, capsys):
    found = iter([0.3, 0.2, 0.25])  # after steps 2, 4 and 6

    def scored(*_):
        return dict.fromkeys(coco.KEYS, next(found)) | {"per_class": {}}, []

    monkeypatch.setattr(validation.detect, "evaluate", scored)
    changes = dict(eval__every=2, eval__patience=1)
    before = tiny.get_config(shapes, **changes)
    assert harness.run(before, tmp_path, harness.StopAfter(3)) == STOPPED
    assert harness.run(tiny.get_config(shapes, **changes, eval__images=3), tmp_path) == 0
    said = capsys.readouterr().out
    assert "is the student at scale 64, 64 on the first 3 of " in said
    assert "1 scores on another val are forgotten" in said
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.scores() == {4: 0.2, 6: 0.25}


def test_a_finished_run_says_so(finished, shapes, capsys):
    assert harness.run(tiny.get_config(shapes), finished) == 0
    assert "training is finished, 6 of 6 steps" in capsys.readouterr().out


def flags(shapes, workdir, **more):
    values = dict(
        config=tiny.get_config(shapes),
        workdir=str(workdir),
        checkpoint=None,
        output=None,
        split="val",
        page=False,
        data=None,
    )
    processes = dict.fromkeys(["coordinator", "processes", "process"])
    return argparse.Namespace(**values | processes | more)


def test_evaluate_writes_what_pycocotools_confirms(finished, shapes, tmp_path, capsys):
    output = tmp_path / "detections.json"
    evaluate.main(flags(shapes, finished, output=str(output)))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {*coco.KEYS, "per_class", "of"}
    images = len(json.loads((shapes / "annotations" / "val.json").read_text())["images"])
    of = metrics["of"]
    assert (of["weights"], of["step"], of["images"]) == ("student", 6, images)
    assert of["checkpoint"].startswith(str(finished)) and str(shapes) in of["data"]
    assert "AP50" in capsys.readouterr().out
    truth = COCO(str(shapes / "annotations" / "val.json"))
    scorer = COCOeval(truth, truth.loadRes(str(output)), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    np.testing.assert_allclose([metrics[key] for key in coco.KEYS], scorer.stats, atol=1e-12)


def test_the_test_split_is_evaluated_like_val(finished, shapes, tmp_path):
    config = tiny.get_config(shapes, data__test__annotations=shapes / "annotations" / "val.json",
                             data__test__images=shapes / "val")  # fmt: skip
    for split, name in (("val", ""), ("test", "_test")):
        output = str(tmp_path / f"detections{name}.json")
        page = split == "test"
        evaluate.main(flags(shapes, finished, config=config, output=output, split=split, page=page))
    for name in ("metrics", "detections"):
        found = (tmp_path / f"{name}_test.json").read_text()
        assert found == (tmp_path / f"{name}.json").read_text()
    page = (tmp_path / "errors_test.html").read_text()
    assert "Errors on test" in page and "step 6, student weights" in page
    assert len(list((tmp_path / "worst_test").glob("*.jpg"))) > 0
    config.eval.images = 2  # what was not looked at is no error
    output = str(tmp_path / "few" / "detections.json")
    evaluate.main(flags(shapes, finished, config=config, output=output, page=True))
    few = (tmp_path / "few" / "errors.html").read_text()
    shown = float(re.search(r"<div><b>([\d.]+)</b><span>AP50</span>", few)[1])
    metrics = json.loads((tmp_path / "few" / "metrics.json").read_text())
    assert shown == pytest.approx(metrics["AP50"], abs=6e-4)
    with pytest.raises(UserError, match=r"there is no test split: set config.data.test"):
        evaluate.main(flags(shapes, finished, split="test"))


@pytest.mark.parametrize("given", ["folder", "file"])
def test_scores_of_other_data_are_beside_those_of_the_runs_own(monkeypatch, tmp_path, given):
    written = []
    monkeypatch.setattr("mixtrain_jax.evaluation.detect.read_weights", lambda *_: None)
    monkeypatch.setattr(
        "mixtrain_jax.evaluation.evaluate.evaluate", lambda *given: written.append(given[2])
    )
    (tmp_path / "wheat.v2").mkdir()
    (tmp_path / "wheat.v2" / "data.yaml").touch()
    place = tmp_path / "wheat.v2" / ("data.yaml" if given == "file" else "")
    for data in (None, str(place)):
        evaluate.main(flags(tmp_path, tmp_path / "run", data=data))
    own, other = written
    assert own == tmp_path / "run" / "detections.json"
    name = f"{tmp_path.name}_wheat.v2" if given == "folder" else "wheat.v2_data"
    assert other == tmp_path / "run" / f"on_{name}" / "detections.json"


def test_detections_do_not_depend_on_batch_size_or_bucket(finished, shapes, tmp_path):
    outputs = []
    for name, changes in (
        ("a", dict(eval__batch_size=4)),
        ("b", dict(eval__batch_size=1, data__val__buckets="((96,128),)")),
    ):
        config = tiny.get_config(shapes, **changes)
        outputs.append(tmp_path / name / "detections.json")
        evaluate.main(flags(shapes, finished, config=config, output=str(outputs[-1])))
    harness.assert_same_detections(*outputs)


def test_predict_writes_pictures_and_json(finished, shapes, tmp_path):
    images = sorted(map(str, (shapes / "val").glob("*.jpg")))[:2]
    arguments = flags(
        shapes,
        None,
        checkpoint=str(finished),
        weights="teacher",
        threshold=0.05,
        output=str(tmp_path),
        images=images,
        save_as="png",
        format="json",
    )
    predict.main(arguments)
    report = json.loads((tmp_path / "detections.json").read_text())
    assert [entry["image"] for entry in report] == images
    names = {c["name"] for c in json.loads(
        (shapes / "annotations" / "val.json").read_text())["categories"]}  # fmt: skip
    for entry in report:
        assert (tmp_path / f"{pathlib.Path(entry['image']).stem}.png").exists()
        assert all(found["category"] in names for found in entry["detections"])


def test_a_picture_that_cannot_be_written_loses_no_detections(
    finished, shapes, tmp_path, monkeypatch
):
    images = sorted(map(str, (shapes / "val").glob("*.jpg")))[:2]
    draw = predicting._draw

    def draw_one(dataset, row, found, *rest):
        if found.path == images[1]:
            raise ValueError("encoder error")
        draw(dataset, row, found, *rest)

    monkeypatch.setattr(predicting, "_draw", draw_one)
    arguments = flags(
        shapes, None, checkpoint=str(finished), weights="teacher", threshold=0.05,
        output=str(tmp_path), images=images, save_as="jpg", format="json",
    )  # fmt: skip
    with pytest.raises(UserError, match=f"1 of 2 pictures .*{images[1]}.*encoder error"):
        predict.main(arguments)
    report = json.loads((tmp_path / "detections.json").read_text())
    assert [entry["image"] for entry in report] == images
    assert [path.name for path in tmp_path.glob("*.jpg")] == [pathlib.Path(images[0]).name]


def test_a_config_that_is_not_the_checkpoints_is_told_what_that_was_trained_by(
    finished, shapes, caplog
):
    weights = detect.read_weights(str(finished), "student")
    meta = copy.deepcopy(weights.meta)
    meta["config"]["data"]["white"] = 4095
    weights = weights._replace(meta=meta)
    asked = tiny.get_config(shapes)
    assert detect.as_trained(asked, weights).data.white == 4095 and "otherwise" not in caplog.text
    asked.data.white = 1023
    asked.data.channels = "bgr"
    assert detect.as_trained(asked, weights).data.white == 1023
    assert "was trained otherwise: config.data.channels is bgr, and was rgb" in caplog.text


def test_evaluating_a_checkpoint_writes_over_no_file_of_another(
    finished, shapes, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    asked = flags(shapes, None, checkpoint=str(finished), page=True)
    asked.workdir = None
    for name in ("metrics.json", "detections.json", "errors.html"):
        for text in ('{"precious": 1}', '["of"]', "of"):
            (tmp_path / name).write_text(text)
            with pytest.raises(UserError, match=r"no evaluation wrote it; .* --output"):
                evaluate.main(asked)
            assert (tmp_path / name).read_text() == text
        (tmp_path / name).unlink()
    older = dict.fromkeys(coco.KEYS, 0.5)  # which said less of itself
    (tmp_path / "metrics.json").write_text(json.dumps(older))
    asked.page = False
    for _ in range(2):
        evaluate.main(asked)
        assert json.loads((tmp_path / "metrics.json").read_text())["of"]["weights"] == "student"


def test_init_from_takes_what_fits_and_says_what_not(finished, shapes, tmp_path, capsys):
    asked = tiny.get_config(shapes)
    classes = len(load_dataset(asked.data, "train").categories)
    asked.init_from = str(finished)
    config = resolve(asked, classes=classes + 1)
    params = warm_start.initial_parameters(detector.build(config.model), config, ())
    said = capsys.readouterr().out
    assert "as initialised: roi_head/head0/logits\n" in said
    loaded, meta = checkpoint.load_weights(finished)
    assert meta["exif"] == "auto"  # nothing is turned; how images without labels are read, too
    np.testing.assert_array_equal(
        params["backbone"]["stem"]["conv"]["kernel"], loaded["backbone"]["stem"]["conv"]["kernel"]
    )
    del tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.batch_sise=3"],
            "config has no field 'batch_sise'; the nearest is 'batch_size'",
        ),
        (["--config.batch_size=three"], "config.batch_size=three: expected a whole number"),
        (["--config.steps=0"], "config.steps is 0: make it at least 1"),
        (["--config.batch_size=3", "--config.mixtraining.enabled=True"], "config.batch_size is 3"),
        (["--config.data.train.images=nowhere"], "images are missing"),
        (["--config.data.source=zip"], "config.data.source is 'zip'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(shapes, tmp_path, capsys, arguments, message):
    paths = [
        f"--config.data.{split}.{field}={shapes / name}"
        for split in ("train", "val")
        for field, name in (("annotations", f"annotations/{split}.json"), ("images", split))
    ]
    config = str(configs.ROOT / "configs" / "quickstart.py")
    with pytest.raises(SystemExit) as exit_:
        cli.run(
            train.main,
            train.parse(),
            [f"--config={config}", f"--workdir={tmp_path}", *paths, *arguments],
        )
    assert exit_.value.code == cli.BAD_INPUT
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert message in error[0]


def test_start_leaves_a_chosen_cache_alone(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    try:
        processes.start()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
