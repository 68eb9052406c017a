import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from mixtrain_jax.config import load, saved
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import audit
from mixtrain_jax.evaluation.working_point import Matches
from tools import experiment, make_shapes
from tools.experiments import judging, labels, suites, tables


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    run(folder)
    return folder


def run(folder):
    command = [sys.executable, "tools/experiment.py", "--suite=quick", f"--output={folder}"]
    root = pathlib.Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_every_arm_is_trained_and_measured_once(output):
    results = {result["arm"]: result for result in tables.read(output)}
    assert set(results) == {"plain", "missing_only"}
    for arm, steps in (("plain", [2, 4]), ("missing_only", [4])):
        result = results[arm]
        assert 0 <= result["student"]["AP"] <= 1
        assert [point["step"] for point in result["curve"]] == steps
        assert "--config.seed=0" in result["command"]
        assert all(0 <= point["AP of the average"] <= 1 for point in result["curve"])
        assert 0 <= result["student, unseen images"]["AP"] <= 1
    assert "diagnosis" not in results["plain"]
    assert results["missing_only"]["diagnosis"][0]["kept"] == 1  # of the human boxes: it only adds
    assert "training" not in run(output)  # a second time


def test_who_judges_leaves_the_config_as_it_is(output):
    """It is handed on to the diagnosis, and by it the run was trained."""
    asked = saved.read(epath.Path(output / "runs" / "plain-0")).asked
    before = asked.to_dict()
    files = suites.SUITES["quick"].make(None, output / "labels-0", 0)
    judge = judging.Judge(asked, files)
    assert asked.to_dict() == before
    assert judge._config.model.roi_head.score_threshold == judging.LOWEST


def test_an_arm_begins_where_the_other_one_stood(output):
    log = (output / "missing_only-0.log").read_text()
    assert "step 2" in log and "resum" in log
    lines = (output / "runs" / "missing_only-0" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["step"] == 3


def test_cocos_suite_is_the_papers_table(tmp_path, monkeypatch):
    """Each row is a recipe that resolves, on labels of which some are held out."""
    suite = suites.SUITES["coco"]
    with pytest.raises(UserError, match="--source: name the folder with annotations, train2017"):
        experiment.Experiment(suite, None, tmp_path).labels(0)
    folder = tmp_path / "coco"
    make_shapes.make(str(folder), train=6, val=2, size=64, seed=0)
    for split in ("train", "val"):
        (folder / split).rename(folder / f"{split}2017")
        labelled = folder / "annotations" / f"{split}.json"
        labelled.rename(labelled.with_name(f"instances_{split}2017.json"))
    monkeypatch.setattr(labels, "HELD_OUT", 3)
    made = experiment.Experiment(suite, folder, tmp_path / "out")
    files = made.labels(0)
    ours, others = (
        {image["id"] for image in json.loads(path.read_text())["images"]}
        for path in (files.noisy, files.held_out)
    )
    assert len(ours) == 4 and len(others) == 2 and not ours & others
    names = [arm.name for arm in suite.arms]
    assert names == [
        "plain", "plain_strong", "plain_random", *suites.ABLATION_ROWS, "mixtraining"
    ]  # fmt: skip
    steps = set()
    for arm in suite.arms:
        asked = load.load(suite.recipe_of(arm), made.flags(arm, 0))
        assert asked.init_from == str(folder / "resnet50")
        assert load_dataset(asked.data, "train").image_ids.tolist() == sorted(ours)
        steps.add(resolve(asked, train=load_dataset(asked.data, "train")).steps)
    assert steps == {96 * 7330}
    assert "SOURCE/train2017" in made._told("mixtrain_jax.train", made.arguments(suite.arms[0], 0))


def test_the_table_has_a_row_for_each_arm(output):
    table = (output / "results.md").read_text()
    assert table.count("| plain |") == 1 and "| missing_only |" in table
    assert "found precision" in table
    assert "missing_only" in (output / "results.html").read_text()


def test_a_killed_copy_of_the_common_part_is_made_again(output, tmp_path):
    (tmp_path / "runs").mkdir()
    shutil.copytree(output / "runs" / "plain-0", tmp_path / "runs" / "plain-0")
    half = tmp_path / "runs" / "missing_only-0" / "checkpoints.part" / "2"
    half.mkdir(parents=True)
    made = experiment.Experiment(suites.SUITES["quick"], None, tmp_path)
    made.begin(suites.MISSING_ONLY, 0, tmp_path / "runs" / "missing_only-0")
    names = [path.name for path in (tmp_path / "runs" / "missing_only-0").iterdir()]
    assert names == ["checkpoints"]
    assert (tmp_path / "runs" / "missing_only-0" / "checkpoints" / "2" / "student").is_dir()


def test_runs_of_earlier_versions_of_the_package_are_taken(tmp_path):
    """They lack fields, or have some that there are no more."""
    asked = load.load("cells", {"mixtraining.start_step": "400", "steps": "900"})
    saved.save(tmp_path, asked, resolve(asked, classes=6), saved.Origin())
    content = json.loads((tmp_path / saved.NAME).read_text())
    method = content["asked"]["fields"]["mixtraining"]
    del method["start_share"]
    method["auto_rating"] = False
    (tmp_path / saved.NAME).write_text(json.dumps(content))
    experiment._check_trained_by(tmp_path, asked)


def test_folders_are_told_by_name_alone(tmp_path):
    made = experiment.Experiment(suites.SUITES["quick"], tmp_path / "x_data", tmp_path / "x")
    told = made._told("train", [f"--config.a={tmp_path}/x_data/b", f"--config.c={tmp_path}/x/d"])
    assert told == "python -m train --config.a=SOURCE/b --config.c=OUTPUT/d"


def stood_in(made, monkeypatch, steps=("1200", "2400")):
    """Has an experiment only write down what it would run; returns these (module, name, flags)."""
    ran = []

    def run(module, arguments, name):
        ran.append((module, name, arguments))
        workdir = made.output / "runs" / name
        for step in steps:
            (workdir / "checkpoints" / step).mkdir(parents=True, exist_ok=True)
        config, *flags = (argument.removeprefix("--config") for argument in arguments)
        fields = dict(flag[1:].split("=", 1) for flag in flags if flag.startswith("."))
        asked = load.load(config.removeprefix("="), fields)
        saved.save(workdir, asked, resolve(asked, classes=6), saved.Origin())
        if module == experiment.AUDIT:
            (workdir / "audit").mkdir(exist_ok=True)
            (workdir / "audit" / "corrected.json").write_text("{}")

    monkeypatch.setattr(made, "_run", run)
    return ran


def test_the_common_part_is_trained_anew_where_only_its_figures_are_kept(tmp_path, monkeypatch):
    suite = suites.SUITES["una30"]._replace(make=tiny, first=0)
    made = experiment.Experiment(suite, None, tmp_path)
    ran = stood_in(made, monkeypatch)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "plain-3.json").write_text("{}")
    made.train(suites.MISSING_ONLY, 3)
    assert [(module, name) for module, name, _ in ran] == [
        ("mixtrain_jax.train", "plain-3"), ("mixtrain_jax.train", "missing_only-3")
    ]  # fmt: skip
    assert (tmp_path / "runs" / "missing_only-3" / "checkpoints" / "1200").is_dir()


def test_a_common_part_that_is_not_kept_is_one_line(tmp_path, monkeypatch):
    suite = suites.SUITES["una30"]._replace(make=tiny, first=0)
    made = experiment.Experiment(suite, None, tmp_path)
    stood_in(made, monkeypatch, steps=("1800", "3600"))
    with pytest.raises(UserError, match="plain-3 has not kept the checkpoint of step 1200"):
        made.train(suites.MISSING_ONLY, 3)


def test_a_common_part_of_other_settings_is_refused(tmp_path, monkeypatch):
    suite = suites.SUITES["una30"]._replace(make=tiny, first=0)
    before = suite._replace(settings=suite.settings | {"steps": "2400"})
    made = experiment.Experiment(before, None, tmp_path)
    stood_in(made, monkeypatch)
    made.train(suites.PLAIN, 3)
    made.suite = suite
    with pytest.raises(UserError, match=r"by other settings \(config.steps: 2400 before, 3600 now"):
        made.train(suites.MISSING_ONLY, 3)


def test_figures_of_other_settings_are_refused(tmp_path, monkeypatch):
    suite = suites.SUITES["una30"]._replace(make=tiny, first=0)
    made = experiment.Experiment(suite, None, tmp_path)
    ran = stood_in(made, monkeypatch)
    monkeypatch.setattr(made, "measure", lambda *_: {"student": dict.fromkeys(tables.SCORES, 0.0)})
    made.run(suites.PLAIN, 3)
    made.run(suites.PLAIN, 3)
    assert len(ran) == 1
    made.suite = suite._replace(settings=suite.settings | {"steps": "2400"})
    with pytest.raises(UserError, match="plain-3.json is of other settings .*steps=2400"):
        made.run(suites.PLAIN, 3)


def test_images_of_another_suite_are_refused(tmp_path):
    tiny(None, tmp_path / "labels-0", 0)
    with pytest.raises(UserError, match="has 12 training images, and this suite takes 400"):
        suites.SUITES["una30"].make(None, tmp_path / "labels-0", 0)


@pytest.mark.parametrize("name", suites.SUITES)
def test_no_two_arms_of_a_suite_are_the_same_run(name):
    suite = suites.SUITES[name]
    asked = {}
    for arm in suite.arms:
        flags = {f"mixtraining.{field}": value for field, value in arm.flags.items()}
        config = load.load(suite.recipe_of(arm), flags)
        same = asked.setdefault((arm.labels, repr(config.to_dict())), arm.name)
        assert same == arm.name


def test_rows_of_the_ablation_differ_from_full_by_what_they_say():
    suite = suites.SUITES["ablation"]
    arms = {arm.name: arm for arm in suite.arms}
    switches = ("mixed_augmentation", "replace_boxes", "add_missing", "soft_background")

    def of_row(name):
        flags = {f"mixtraining.{field}": value for field, value in arms[name].flags.items()}
        method = load.load(suite.recipe_of(arms[name]), flags).mixtraining.to_dict()
        rest = {field: value for field, value in method.items() if field not in switches}
        return [method[field] for field in switches], rest

    expected = {
        "full": [True, True, True, True],
        "mixed_augmentation": [True, False, False, True],
        "replace_only": [True, True, False, True],
        "missing_only": [True, False, True, True],
        "hard_background": [True, True, True, False],
    }
    rows = {name: of_row(name) for name in expected}
    assert {name: row[0] for name, row in rows.items()} == expected
    assert all(row[1] == rows["full"][1] for row in rows.values())


def test_repaired_labels_are_audited_once_for_each_calibration(tmp_path, monkeypatch):
    suite = suites.SUITES["una30"]._replace(make=tiny, first=0)
    made = experiment.Experiment(suite, None, tmp_path)
    ran = stood_in(made, monkeypatch)
    for _ in range(2):
        made.train(suites.REPAIRED, 0)
    corrected = tmp_path / "runs" / "audit_plain-0" / "audit" / "corrected.json"
    assert [module for module, *_ in ran] == [experiment.AUDIT, experiment.TRAIN, experiment.TRAIN]
    assert f"--config.data.train.annotations={corrected}" in ran[1][2]
    noisy = tmp_path / "labels-0" / "noisy.json"
    assert f"--config.data.train.annotations={noisy}" in ran[0][2] and "--folds=2" in ran[0][2]
    assert not any("clean" in argument for argument in ran[0][2])
    monkeypatch.setattr(made, "measure", lambda *_: {"student": dict.fromkeys(tables.SCORES, 0.0)})
    made.run(suites.REPAIRED, 0)
    made.suite = suite._replace(calibration="other.json")
    with pytest.raises(UserError, match=r"repaired_labels-0.json is of other settings .*other.js"):
        made.run(suites.REPAIRED, 0)
    del ran[3:]
    made.train(suites.REPAIRED, 0)
    assert ran[3][0] == experiment.AUDIT and "--calibration=other.json" in ran[3][2]


@pytest.mark.parametrize("name", ["cells", "cells_errors"])
def test_cells_are_repaired_by_scores_that_have_seen_no_clean_label(name):
    """The package's calibration has seen errors planted into TXL-PBC's labels."""
    made = experiment.Experiment(suites.SUITES[name]._replace(make=tiny), None, pathlib.Path("x"))
    made._labels[0] = labels.Files(*[pathlib.Path("x")] * 6)
    (calibration,) = [each for each in made.audit_arguments(0) if "calibration" in each]
    asked = calibration.removeprefix("--calibration=")
    assert audit.by_own(asked) and audit.read_calibration(asked)
    note = json.loads(suites.GENERATED.read_text())["note"]
    assert "generated images" in note and "cells" not in note


def test_all_arms_start_from_the_same_weights_of_other_images(tmp_path, monkeypatch):
    suite = suites.SUITES["una30"]._replace(make=tiny, first=2)
    made = experiment.Experiment(suite, None, tmp_path)
    ran = stood_in(made, monkeypatch)
    for seed in (0, 1):
        for arm in (suites.PLAIN, suites.FULL_AUTO):
            made.train(arm, seed)
    (module, name, arguments), *arms = ran
    made.suite = suite._replace(first_steps=1200, settings=suite.settings | {"seed": "7"})
    with pytest.raises(UserError, match=r"first was trained by other settings .*config.seed"):
        made.first()
    assert (module, name) == (experiment.TRAIN, "first")
    assert [name for _, name, _ in arms] == ["plain-0", "full_auto-0", "plain-1", "full_auto-1"]
    first = f"--config.init_from={tmp_path / 'runs' / 'first'}"
    assert all(first in arguments for _, _, arguments in arms)
    assert f"--config.data.train.annotations={tmp_path / 'first' / 'objects.json'}" in arguments
    assert "--config.steps=2400" in arguments  # however long the arms are trained
    assert suite.settings["steps"] != "2400"
    content = json.loads((tmp_path / "first" / "objects.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["object"]
    assert {entry["category_id"] for entry in content["annotations"]} == {1}
    pictures = [
        {path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("first/train", "images/train", "images/val", "unseen/val")
    ]
    assert len(set.union(*pictures)) == sum(map(len, pictures)) == 2 + 12 + 4 + 4


def tiny(source, output, seed):
    return labels.shapes(source, output, "una", 0.3, seed, train=8, held_out=4, val=4, size=64)


def test_noise_is_of_the_training_and_held_out_images_alone(output):
    files = labels.shapes(
        None, output / "labels-0", "una", 0.3, 0, train=8, held_out=4, val=4, size=64
    )
    read = {name: json.loads(getattr(files, name).read_text()) for name in files._fields[:4]}
    ids = {name: {image["id"] for image in content["images"]} for name, content in read.items()}
    assert ids["noisy"] == ids["clean"] and not ids["noisy"] & ids["held_out"]
    assert (len(ids["noisy"]), len(ids["held_out"]), len(ids["val"])) == (8, 4, 4)
    boxes = {
        name: {(entry["image_id"], *entry["bbox"]) for entry in content["annotations"]}
        for name, content in read.items()
    }
    lost = len(boxes["clean"] - boxes["noisy"]) / len(boxes["clean"])
    assert 0.3 < lost < 0.7  # 30% dropped, and 30% of them moved
    assert boxes["held_out"] != {
        (entry["image_id"], *entry["bbox"])
        for entry in json.loads((output / "images" / "annotations" / "train.json").read_text())[
            "annotations"
        ]
        if entry["image_id"] in ids["held_out"]
    }
    truth = json.loads((output / "images" / "annotations" / "val.json").read_text())
    assert read["val"] == truth


def test_thresholds_are_chosen_on_noisy_labels_and_judged_on_clean_ones():
    """By hand: scores .9, .6, .4 and .2, of which the noisy labels lack the object at .6."""
    scores = np.array([0.9, 0.6, 0.4, 0.2])
    noisy = Matches(scores, np.array([True, False, False, False]), 1)
    clean = Matches(scores, np.array([True, True, False, False]), 2)
    found = judging.working_points(clean, noisy)
    assert 0.6 < found["threshold chosen"] <= 0.9
    assert found["F1 chosen"] == pytest.approx(2 / 3)  # one of two, and nothing wrong
    assert found["F1 best"] == 1 and 0.4 < found["threshold best"] <= 0.6
    # Divided by the mean score of held-out boxes that are found, .9, .6 becomes .67 and .4 .44.
    assert found["F1 at .5"] == found["F1 at .5 corrected"] == 1
    low = judging.working_points(
        clean._replace(scores=scores / 2), noisy._replace(scores=scores / 2)
    )
    assert low["F1 at .5"] == 0 and low["F1 at .5 corrected"] == 1


def test_the_seed_that_chose_has_a_row_of_its_own():
    def run(seed, value):
        return {"arm": "plain", "seed": seed, "student": dict.fromkeys(tables.SCORES, value)}

    rows = dict(tables.by_arm([run(9, 0.9), run(0, 0.1), run(1, 0.3)]))
    assert rows["plain"][0] == [0.1, 0.3] and rows["plain, the seed that chose"][0] == [0.9]


@pytest.mark.parametrize("name", ["cells", "cells_errors", "una0", "una30", "oamil20", "ablation"])
def test_kept_figures_are_of_the_settings_of_today(name, tmp_path):
    """Copied into a new output they are not measured again."""

    def files(source, output, seed):
        images = (source / "bccd" / "JPEGImages",) * 2
        val = output / "val.json"
        if not name.startswith("cells"):
            images = output.parent / "images" / "train", output.parent / "images" / "val"
            val = output.parent / "images" / "annotations" / "val.json"
        others = (output / f"{part}.json" for part in ("noisy", "clean", "held_out"))
        return labels.Files(*others, val, *images)

    suite = suites.SUITES[name]._replace(make=files)
    made = experiment.Experiment(suite, tmp_path / "source", tmp_path / "out")
    arms = {arm.name: arm for arm in made.suite.arms}
    kept_files = sorted((load.ROOT / "docs" / "evidence" / name).glob("*.json"))
    assert kept_files
    for file in kept_files:
        kept = json.loads(file.read_text())
        arguments = made.arguments(arms[kept["arm"]], kept["seed"])
        assert made._told(experiment.TRAIN, arguments) == kept["command"], file
