"""The audit from a run's directory to files: findings, corrected labels, decisions applied."""

import argparse
import json
import pathlib
import shutil

import numpy as np
import pytest
from etils import epath

from mixtrain_jax import audit as command
from mixtrain_jax import cli
from mixtrain_jax.auditing import dump, own, ranking
from mixtrain_jax.auditing.findings import KINDS
from mixtrain_jax.config import load as configs
from mixtrain_jax.config import saved
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.sources.load import load_dataset, parts
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import looks
from mixtrain_jax.runtime import checkpoint
from mixtrain_jax.training import folds
from tests import harness, tiny
from tests.mixtraining import small

TWIN = 10_000  # id of a copy of the first annotation, which training leaves out


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """A finished run of a few steps on labels with a box that stands there twice."""
    workdir = tmp_path_factory.mktemp("audit") / "run"
    config = tiny.get_config(shapes, steps=3)
    content = json.loads((shapes / "annotations" / "train.json").read_text())
    content["annotations"].append(content["annotations"][0] | {"id": TWIN})
    labels = workdir.parent / "train.json"
    labels.write_text(json.dumps(content))
    config.data.train.annotations = str(labels)
    assert harness.run(config, workdir) == 0
    return config, workdir


def flags(run, **more):
    config, workdir = run
    values = dict(split="train", output=None, folds=0, threshold=0.5, apply=None, dump=False)
    values["calibration"] = ""
    return argparse.Namespace(**dict(config=config, workdir=str(workdir)) | values | more)


def test_an_audit_of_the_runs_own_labels(run, capsys):
    config, workdir = run
    annotations = pathlib.Path(config.data.train.annotations)
    before = annotations.read_bytes()
    assert command.main(flags(run, threshold=0.2, dump=True)) == 0
    found = json.loads((workdir / "audit" / "audit.json").read_text())
    given = json.loads(before)
    assert found["data"]["human_boxes"] == len(given["annotations"])
    assert found["model"]["seen"] == "in sample"
    assert {f["kind"] for f in found["findings"]} <= {
        "class", "place", "missing", "spurious", "duplicate"
    }  # fmt: skip
    ids = {each["id"]: each for each in given["annotations"]}
    for finding in found["findings"]:
        if finding["human"] is not None:  # the box is that of the file
            own = ids[finding["human"]["annotation_id"]]
            np.testing.assert_allclose(finding["human"]["bbox"], own["bbox"], atol=0.01)
            assert own["image_id"] == finding["image_id"]
    corrected = json.loads((workdir / "audit" / "corrected.json").read_text())
    applied = [f for f in found["findings"] if f["score"] >= 0.2]
    gone = sum(f["kind"] in ("spurious", "duplicate") for f in applied)
    added = sum(f["kind"] == "missing" for f in applied)
    assert len(corrected["annotations"]) == len(given["annotations"]) - gone + added
    assert (workdir / "audit" / "audit.html").stat().st_size > 1000
    assert annotations.read_bytes() == before
    assert "findings with a score of at least 0.2" in capsys.readouterr().out
    seen = dump.read(workdir / "audit" / "looks.npz")
    assert list(seen.views) == ["mirrored_teacher", "student"] and set(seen.fold) == {-1}
    said = seen.look.probabilities
    assert all((said != view.probabilities).any() for view in seen.views.values())
    twins = np.flatnonzero((seen.human.boxes == seen.human.boxes[0]).all(axis=1))
    assert len(twins) == 2  # both are rated, though only one was trained on
    np.testing.assert_allclose(said[twins[0]], said[twins[1]], atol=1e-5)
    refined = seen.look.refined
    np.testing.assert_allclose(refined[twins[0]], refined[twins[1]], atol=1e-3)
    again = ranking.rank(seen.human, seen.look, list(seen.views.values()), len(seen.sizes))
    assert sorted(again.findings.score)[-9:] == pytest.approx(
        sorted(f["score"] for f in found["findings"])[-9:], abs=1e-4
    )

    first = found["findings"][0]
    decisions = {"version": 1, "fingerprint": found["fingerprint"],
                 "decisions": {str(first["id"]): "accept"}}  # fmt: skip
    (workdir / "decisions.json").write_text(json.dumps(decisions))
    assert command.main(flags(run, apply=str(workdir / "decisions.json"))) == 0
    accepted = json.loads((workdir / "audit" / "accepted.json").read_text())
    changed = [each for each in accepted["annotations"] if "audit" in each]
    gone = len(given["annotations"]) - len(accepted["annotations"])
    assert len(changed) == 1 or gone == 1


def test_scores_by_a_calibration_of_ones_own(run, tmp_path):
    file = pathlib.Path(ranking.__file__).with_name("calibration.json")
    models = json.loads(file.read_text())
    for model in models["levels"]["views"]:
        model["weights"] = (np.array(model["weights"]) / 2).tolist()
    own = tmp_path / "own.json"
    own.write_text(json.dumps(models))
    assert command.main(flags(run, calibration=str(own), output=str(tmp_path), dump=True)) == 0
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["model"]["calibration"] == str(own)
    seen = dump.read(tmp_path / "looks.npz")
    looks = seen.human, seen.look, list(seen.views.values()), len(seen.sizes)
    told = sorted(finding["score"] for finding in found["findings"])[-9:]
    by_own, by_packages = (
        sorted(ranking.rank(*looks, models).findings.score)[-9:]
        for models in (ranking.read(str(own)), None)
    )
    assert told == pytest.approx(by_own, abs=1e-4)
    assert told != pytest.approx(by_packages, abs=1e-3)


def test_errors_planted_into_the_labels_themselves_are_learned_from(run, tmp_path, monkeypatch):
    monkeypatch.setattr(own, "SHARE", 0.3)  # of few boxes
    monkeypatch.setattr(own, "FEWEST", 3)
    taken = {}
    monkeypatch.setattr(own, "rank", lambda *args: taken.setdefault("ranked", own_rank(*args)))
    monkeypatch.setattr(own, "example", lambda *args: taken.setdefault("of", own_example(*args)))
    assert command.main(flags(run, calibration="own", output=str(tmp_path))) == 0
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["model"]["calibration"] == "own"
    scores = sorted(each["score"] for each in found["findings"])
    assert scores[-5:] == pytest.approx(sorted(taken["ranked"].findings.score)[-5:], abs=1e-4)
    example = taken["of"]
    assert {KINDS.index(kind) for kind in ("class", "place", "spurious")} <= set(
        example.errors.kinds.tolist()
    )
    assert len(example.look.probabilities) == len(example.human) and len(example.views) == 2
    monkeypatch.setattr(own, "FEWEST", 10_000)
    monkeypatch.setattr(folds, "judges", lambda *_: pytest.fail("came as far as training"))
    with pytest.raises(UserError, match="boxes are too few"):
        command.main(flags(run, calibration="own", output=str(tmp_path)))


own_rank, own_example = own.rank, own.example


def test_a_detector_that_never_saw_a_mirror_image_is_not_asked_about_one(run):
    config, workdir = run
    config = configs.override_all(config, {"data.augment.flip": "0"})
    output = workdir / "straight"
    assert command.main(flags((config, workdir), dump=True, output=str(output))) == 0
    assert list(dump.read(output / "looks.npz").views) == ["student"]


def test_folds_are_trained_without_what_they_judge(run, monkeypatch):
    config, workdir = run
    with harness.traced_once():
        output = str(workdir / "by_folds")
        assert command.main(flags(run, folds=2, output=output, dump=True)) == 0
    found = json.loads((workdir / "by_folds" / "audit.json").read_text())
    assert found["model"]["seen"] == "out of fold" and found["data"]["unreadable"] == 0
    everything = load_dataset(config.data, "train")
    part = parts(everything.image_ids, 2)
    # The detector without part k, and no other, has looked at part k.
    assert dump.read(workdir / "by_folds" / "looks.npz").fold.tolist() == part.tolist()
    assert sorted(np.bincount(part)) == [7, 7]
    for k in range(2):
        asked = configs.override_all(config, {"data.train.leave_out": f"({k}, 2)"})
        trained = load_dataset(asked.data, "train")
        left = set(everything.image_ids.tolist()) - set(trained.image_ids.tolist())
        assert left == set(everything.image_ids[part == k].tolist())
        assert len(trained.ground_truth["images"]) == 7
        row = int(np.flatnonzero(everything.image_ids == trained.image_ids[3])[0])
        assert trained.read(3) == everything.read(row)
        assert (workdir / "folds" / f"2-{k}" / "checkpoints" / "3").is_dir()
        assert saved.read(workdir / "folds" / f"2-{k}").asked.data.train.leave_out == (k, 2)


@pytest.mark.parametrize("images", ["own", "others"])
def test_folds_that_start_from_weights_that_saw_the_images_are_not_out_of_fold(
    run, tmp_path, monkeypatch, caplog, images
):
    config, workdir = run
    asked = configs.override_all(config, {"init_from": str(workdir)})
    if images == "others":
        other = tmp_path / "others"
        shutil.copytree(asked.data.train.images, other)
        asked.data.train.images = str(other)
    assert folds.started_on_the_same_images(asked) == (images == "own")
    assert not folds.started_on_the_same_images(config)
    gone = configs.override_all(config, {"init_from": str(tmp_path / "gone")})
    assert not folds.started_on_the_same_images(gone)
    told = {}
    monkeypatch.setattr(folds, "judges", lambda *_: [])
    monkeypatch.setattr(folds, "load_dataset", lambda *_: None)
    monkeypatch.setattr(folds, "audit", lambda *_, **fields: told.update(fields))
    folds.audit_split(asked, "", workdir, workdir, split="train", folds=2, threshold=0.5)
    assert told["seen"] == ("by its first weights" if images == "own" else "out of fold")
    assert ("have seen what they judge" in caplog.text) == (images == "own")


def test_folds_do_not_learn_from_random_weights_what_began_with_others(run, tmp_path):
    config, workdir = run
    asked = configs.override_all(config, {"model.backbone.norm": "frozen_batch"})
    source = tmp_path / "weights"
    params, meta = checkpoint.load_weights(workdir)
    meta["config"]["init_from"] = "weights/r50"
    checkpoint.save_weights(source, params, meta=meta)
    with pytest.raises(UserError, match="init_from is empty.*began with weights/r50"):
        folds.audit_split(
            asked, str(source), workdir, tmp_path, split="train", folds=2, threshold=0.5
        )
    assert not folds.lacks_weights(config)
    assert folds._first_weights(str(workdir)) is None  # such a run's folds may begin as it did


@pytest.mark.parametrize("per_epoch", [None, 20])
def test_folds_take_as_many_steps_as_the_run(shapes, tmp_path, monkeypatch, per_epoch):
    config = tiny.get_config(shapes, steps=3)
    config.update(steps=None, epochs=6.0, images_per_epoch=per_epoch)
    dataset = load_dataset(config.data, "train")
    trained = []

    def train(asked, workdir, stop, from_scratch):
        left = load_dataset(asked.data, "train")
        trained.append((len(left), resolve(asked, train=left).steps))
        return 0

    monkeypatch.setattr(folds.loop, "train", train)
    workdir = epath.Path(tmp_path)
    folds.judges(config, dataset, str(workdir), workdir, "train", 2, None)
    steps = resolve(config, train=dataset).steps
    assert trained == [(len(dataset) // 2, steps)] * 2


def test_folds_of_other_labels_or_another_config_are_not_taken(run, shapes, tmp_path):
    config, workdir = run
    annotations = tmp_path / "train.json"
    content = json.loads((shapes / "annotations" / "train.json").read_text())
    annotations.write_text(json.dumps(content))
    path = {"data.train.annotations": str(annotations)}
    copy = tmp_path / "run"
    shutil.copytree(workdir / "folds", copy / "folds")
    asked = {"workdir": str(copy), "folds": 2}
    with pytest.raises(UserError, match=r"2-0 holds another run: config.data.train.an.*; delete"):
        command.main(flags((configs.override_all(config, path), copy), **asked))
    for k in range(2):  # as if it had been this file from the start
        written = copy / "folds" / f"2-{k}" / "config.json"
        before = json.dumps(config.data.train.annotations)
        written.write_text(written.read_text().replace(before, json.dumps(str(annotations))))
    for entry in content["annotations"][:3]:
        entry["bbox"][2] += 1
    annotations.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"2-[01] holds another run: its labels: .*; delete"):
        command.main(flags((configs.override_all(config, path), copy), **asked))


def test_copies_of_one_image_are_in_one_part():
    files = [f"train/{n}.rf.{copy}.jpg" for n in range(9) for copy in "abc"] + ["x.jpg", "y.jpg"]
    ids = np.arange(len(files)) + 100
    dealt = parts(ids, 2, files)
    assert all(len(set(dealt[3 * n : 3 * n + 3])) == 1 for n in range(9))
    assert len(set(dealt)) == 2 and min(np.bincount(dealt)) >= 11
    np.testing.assert_array_equal(parts(ids, 2, [f"{n}.jpg" for n in ids]), parts(ids, 2))


def test_parts_depend_on_ids_and_not_on_their_order():
    ids = np.array([50, 3, 9, 27, 4, 8, 1])
    dealt = dict(zip(ids.tolist(), parts(ids, 3).tolist()))
    shuffled = ids[::-1]
    assert dict(zip(shuffled.tolist(), parts(shuffled, 3).tolist())) == dealt
    assert sorted(np.bincount(list(dealt.values())).tolist()) == [2, 2, 3]


def test_a_mirrored_view_is_the_mirror_image_with_its_boxes():
    view = small.view(0, 3)
    mirrored = looks.mirror(view)
    for i, (_, width) in enumerate(view.size):
        np.testing.assert_array_equal(
            mirrored.image[i, :, :width], view.image[i, :, :width][:, ::-1]
        )
        assert not mirrored.image[i, :, width:].any()
    back = looks.mirror(mirrored)
    np.testing.assert_array_equal(back.image, view.image)
    np.testing.assert_allclose(back.boxes, view.boxes, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(threshold=1.5), "--threshold=1.5: choose from 0 to 1"),
        (dict(folds=1), "--folds=1: choose 2 or more"),
        (dict(folds=-2), "--folds=-2: choose 2 or more"),
        (dict(folds=2, split="val"), "no detector is trained on val"),
        (dict(folds=2, calibration="nowhere.json"), "nowhere.json"),
    ],
)
def test_flags_that_cannot_be(run, changes, message):
    with pytest.raises(UserError, match=message):
        command.main(flags(run, **changes))


def test_decisions_of_another_audit_are_one_line(run, tmp_path, capsys):
    _, workdir = run
    with pytest.raises(SystemExit) as end:
        cli.run(command.main, command.parse(), [f"--workdir={workdir}", "--apply=nowhere.json"])
    assert end.value.code == cli.BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1
