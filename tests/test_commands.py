"""The three commands from files to files: train, stop, go on, evaluate, predict."""

import argparse
import json
import pathlib

import jax
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from configs import common
from mixtrain_jax import cli, evaluate, predict, train
from mixtrain_jax import config as configs
from mixtrain_jax.data import sources
from mixtrain_jax.evaluation import coco
from mixtrain_jax.runtime import checkpoint, parallel, signals
from tests import tiny
from tests.tiny import STEPS


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    """A run from start to end."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert tiny.run(tiny.get_config(shapes), workdir) == 0
    return workdir


def test_workdir_of_a_finished_run(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert any("val_student/AP" in line for line in lines)
    assert (finished / "pictures" / f"train_{STEPS:07d}.png").stat().st_size > 1000
    assert configs.read(finished / "config.json").steps == STEPS
    assert {p.name for p in (finished / "checkpoints").iterdir() if p.is_dir()} == {"3", "6"}


@pytest.mark.parametrize("after", [1, 4])
def test_a_stopped_run_goes_on_bit_by_bit(finished, shapes, tmp_path, after, capsys):
    stop = tiny.StopAfter(after)
    assert tiny.run(tiny.get_config(shapes), tmp_path, stop) == signals.STOPPED
    assert f"saved after step {after};" in capsys.readouterr().out
    assert tiny.run(tiny.get_config(shapes), tmp_path) == 0
    assert f"going on after step {after}" in capsys.readouterr().out
    whole, resumed = tiny.saved(finished, STEPS), tiny.saved(tmp_path, STEPS)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    assert tiny.logged(tmp_path)[STEPS] == tiny.logged(finished)[STEPS]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["", "plain", "strong", "random", "released", *common.ABLATIONS])
def test_each_row_of_the_ablation_table_trains(shapes, tmp_path, word):
    config = common.variants(tiny.get_config(shapes, steps=20, log__every=1), word)
    assert tiny.run(config, tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 20
    for line in steps:
        assert line["update/bad"] == 0
        assert np.isfinite(line["loss"])
        assert ("mixed/rpn_objectness" in line) == config.mixtraining.enabled
    if config.mixtraining.enabled:  # a fresh teacher is sure of nothing
        dropped, human = (
            sum(line[f"boxes/{name}"] for line in steps) for name in ("dropped", "human")
        )
        assert dropped == human > 0


def test_a_finished_run_says_so(finished, shapes, capsys):
    assert tiny.run(tiny.get_config(shapes), finished) == 0
    assert "training is finished, 6 of 6 steps" in capsys.readouterr().out


def flags(shapes, workdir, **more):
    values = dict(
        config=tiny.get_config(shapes), workdir=str(workdir), checkpoint=None, output=None
    )
    processes = dict.fromkeys(["coordinator", "processes", "process"])
    return argparse.Namespace(**values | processes | more)


def test_evaluate_writes_what_pycocotools_confirms(finished, shapes, tmp_path, capsys):
    output = tmp_path / "detections.json"
    evaluate.main(flags(shapes, finished, output=str(output)))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {*coco.KEYS, "per_class"}
    assert "AP50" in capsys.readouterr().out
    truth = COCO(str(shapes / "annotations" / "val.json"))
    scorer = COCOeval(truth, truth.loadRes(str(output)), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    np.testing.assert_allclose([metrics[key] for key in coco.KEYS], scorer.stats, atol=1e-12)


def test_detections_do_not_depend_on_batch_size_or_bucket(finished, shapes, tmp_path):
    outputs = []
    for name, changes in (
        ("a", dict(eval__batch_size=4)),
        ("b", dict(eval__batch_size=1, data__val__buckets="((96,128),)")),
    ):
        config = tiny.get_config(shapes, **changes)
        outputs.append(tmp_path / name / "detections.json")
        evaluate.main(flags(shapes, finished, config=config, output=str(outputs[-1])))
    tiny.assert_same_detections(*outputs)


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
    )
    predict.main(arguments)
    report = json.loads((tmp_path / "detections.json").read_text())
    assert [entry["image"] for entry in report] == images
    names = {c["name"] for c in json.loads(
        (shapes / "annotations" / "val.json").read_text())["categories"]}  # fmt: skip
    for entry in report:
        assert (tmp_path / f"{pathlib.Path(entry['image']).stem}.png").exists()
        assert all(found["category"] in names for found in entry["detections"])


def test_init_from_takes_what_fits_and_says_what_not(finished, shapes, tmp_path, capsys):
    config = tiny.get_config(shapes)
    train.complete(config, sources.load(config.data, "train"))
    config.model.num_classes += 1
    config.init_from = str(finished)
    model = train.detector.build(config.model)
    params = train.initial_parameters(model, config)
    said = capsys.readouterr().out
    assert "as initialised: roi_head/head0/logits\n" in said
    loaded, _ = checkpoint.load_weights(finished)
    np.testing.assert_array_equal(
        params["backbone"]["stem"]["conv"]["kernel"], loaded["backbone"]["stem"]["conv"]["kernel"]
    )
    del tmp_path


def test_nan_losses_stop_training_with_the_images_named(shapes, tmp_path, capsys):
    config = tiny.get_config(shapes, max_bad_steps=2, optimizer__learning_rate=float("inf"))
    config.optimizer.warmup_steps = 0
    with pytest.raises(train.UserError, match=r"number 2 in a row.*"):
        tiny.run(config, tmp_path)
    del capsys


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


def test_parallel_start_leaves_a_chosen_cache_alone(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    try:
        parallel.start()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
