import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from etils import epath

from mixtrain_jax.config import load, saved
from tools import experiment
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


def test_the_common_part_is_trained_anew_where_only_its_figures_are_kept(tmp_path, monkeypatch):
    suite = suites.SUITES["una30"]._replace(make=tiny, first=0)
    made = experiment.Experiment(suite, None, tmp_path)
    ran = []

    def train(module, arguments, name):
        ran.append((module, name))
        start = tmp_path / "runs" / name / "checkpoints" / str(suite.start_step)
        start.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(made, "_run", train)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "plain-3.json").write_text("{}")
    made.train(suites.MISSING_ONLY, 3)
    assert ran == [("mixtrain_jax.train", "plain-3"), ("mixtrain_jax.train", "missing_only-3")]
    assert (tmp_path / "runs" / "missing_only-3" / "checkpoints" / "1200").is_dir()


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


def test_repaired_labels_are_audited_once_and_without_clean_ones(tmp_path, monkeypatch):
    suite = suites.SUITES["una30"]._replace(make=tiny, first=0)
    made = experiment.Experiment(suite, None, tmp_path)
    runs = []

    def audit(module, arguments, name):
        runs.append((module, arguments))
        corrected = tmp_path / "runs" / name / "audit" / "corrected.json"
        corrected.parent.mkdir(parents=True)
        corrected.write_text("{}")

    monkeypatch.setattr(made, "_run", audit)
    for _ in range(2):
        flags = made.flags(suites.REPAIRED, 0)
    corrected = tmp_path / "runs" / "audit_plain-0" / "audit" / "corrected.json"
    assert flags["data.train.annotations"] == str(corrected)
    ((module, arguments),) = runs
    assert module == "mixtrain_jax.audit" and "--config=cells:plain" in arguments
    assert f"--config.data.train.annotations={tmp_path / 'labels-0' / 'noisy.json'}" in arguments
    assert not any("clean" in argument for argument in arguments)


def test_all_arms_start_from_the_same_weights_of_other_images(tmp_path, monkeypatch):
    suite = suites.SUITES["una30"]._replace(make=tiny, first=2)
    made = experiment.Experiment(suite, None, tmp_path)
    runs = []

    def train(module, arguments, name):
        runs.append(arguments)
        (tmp_path / "runs" / name / "checkpoints" / "2400").mkdir(parents=True)

    monkeypatch.setattr(made, "_run", train)
    flags = [made.flags(arm, seed) for arm in (suites.PLAIN, suites.FULL_AUTO) for seed in (0, 1)]
    assert {each["init_from"] for each in flags} == {str(tmp_path / "runs" / "first")}
    (arguments,) = runs
    assert f"--config.data.train.annotations={tmp_path / 'first' / 'objects.json'}" in arguments
    assert "--config.steps=2400" in arguments  # however long the arms are trained
    assert flags[0]["steps"] == suite.settings["steps"] != "2400"
    content = json.loads((tmp_path / "first" / "objects.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["object"]
    assert {entry["category_id"] for entry in content["annotations"]} == {1}
    pictures = [
        {path.read_bytes() for path in (tmp_path / folder / "train").iterdir()}
        for folder in ("first", "images")
    ]
    assert not pictures[0] & pictures[1]


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
