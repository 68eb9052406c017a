import dataclasses
import json

import numpy as np
import pytest

from mixtrain_jax.auditing import dump, measure, noise
from mixtrain_jax.auditing.dump import Dump
from mixtrain_jax.errors import UserError
from tests.auditing import simulated
from tools import benchmark_audit

IMAGES = 60


def example(seed, source=True):
    clean, sizes = simulated.truth(seed, IMAGES)
    planted = noise.plant(clean, sizes, simulated.CLASSES, 0.1, seed)
    looks = [simulated.look(clean, planted.labels, sizes, seed + n) for n in (100, 200)]
    return Dump(
        np.arange(IMAGES),
        [f"{n}.png" for n in range(IMAGES)],
        sizes,
        list("abcd"),
        planted.labels,
        looks[0],
        {"flip": looks[1]},
        np.arange(IMAGES, dtype=np.int32) % 2,
        clean,
        np.ones(IMAGES, bool),
        planted.source if source else None,
    )


def run(*arguments):
    benchmark_audit.main(benchmark_audit.parse().parse_args([str(a) for a in arguments]))


def test_it_fits_and_compares(tmp_path, capsys):
    for seed in (1, 2):
        dump.write(tmp_path / f"{seed}.npz", example(seed))
    models, report = tmp_path / "models.json", tmp_path / "report.json"
    run("--fit", tmp_path / "1.npz", "--output", models, "--note", "a test")
    assert json.loads(models.read_text())["note"] == "a test"
    path = tmp_path / "2.npz"
    run(path, "--calibration", models, "--output", report, "--rounds", 20)
    numbers = json.loads(report.read_text())[str(path)]
    complete, score = numbers["ours, complete"], numbers["detection score, all looks"]
    assert complete["AP"] > score["AP"] > numbers["random"]["AP"]
    low, high = complete["AP interval"]
    assert low < complete["AP"] < high
    assert complete["errors"] == 4 * round(0.1 * len(example(2).truth))
    printed = capsys.readouterr().out
    assert "| ours, complete |" in printed
    assert "before and after repair" in printed


def test_one_fold_is_measured_alone(tmp_path):
    data = example(3)
    whole = benchmark_audit.errors_of(data)
    parts = [benchmark_audit.errors_of(data, fold) for fold in (0, 1)]
    assert not (parts[0].images & parts[1].images).any()
    assert sum(len(part.missing) for part in parts) == len(whole.missing)
    found = benchmark_audit.ours(data, "views")
    counts = [measure.judge(found, errors).errors() for errors in (whole, *parts)]
    assert counts[0] == counts[1] + counts[2] and min(counts) > 0
    dump.write(tmp_path / "3.npz", data)
    with pytest.raises(UserError, match="--fold=2: .* has no such fold"):
        run(tmp_path / "3.npz", "--fold", 2)


def test_ultralytics_formulas_are_those_of_an_image_taken_per_box():
    data = example(3)
    found = benchmark_audit.ultralytics(data, data.look.detections)
    seen = data.look.detections
    row = int(np.flatnonzero(found.human < 0)[0])
    detection = found.detection[row]
    there = data.human.image == seen.image[detection]
    best = max(
        (one_iou(seen.boxes[detection], box) for box in data.human.boxes[there]), default=0.0
    )
    assert found.score[row] == pytest.approx(seen.scores[detection] * (1 - best), abs=1e-6)


def one_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def test_objectlab_names_what_it_is_about():
    pytest.importorskip("cleanlab")
    data = example(4)
    found = benchmark_audit.objectlab(data, data.look.detections, 0.2)
    assert len(found) == len(data.human) + len(data.look.detections)
    top = found.take(slice(0, 20))
    errors = benchmark_audit.errors_of(data)
    human = top.human[top.human >= 0]
    assert (errors.kinds[human] >= 0).mean() > 0.3  # far more than one in five
    tuned = benchmark_audit.tuned(data, data.look.detections)
    assert len(tuned) == len(found)


def test_better_labels_come_from_a_coco_file(tmp_path):
    given = example(1)
    path = tmp_path / "better.json"
    boxes = given.truth.boxes
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(float)
    entries = [
        {"id": n, "image_id": int(image), "category_id": int(label) + 5, "bbox": list(box)}
        for n, (image, label, box) in enumerate(zip(given.truth.image, given.truth.labels, sides))
    ]
    content = {
        # In another order, without the last image of the dump, and with one that it lacks.
        "images": [{"id": n} for n in [999, *reversed(range(IMAGES - 1))]],
        "categories": [{"id": 5 + n, "name": name} for n, name in enumerate("abcd")],
        "annotations": [e for e in entries if e["image_id"] < IMAGES - 1][::-1],
    }
    content["annotations"] += [{"image_id": 999, "category_id": 5, "bbox": [0, 0, 9, 9]}]
    path.write_text(json.dumps(content))
    bare = dataclasses.replace(given, truth=None, truth_known=np.zeros(IMAGES, bool), source=None)
    found = benchmark_audit.with_truth(bare, str(path))
    assert found.truth_known.tolist() == [True] * (IMAGES - 1) + [False]
    kept = given.truth.take(given.truth.image < IMAGES - 1)
    for row in range(IMAGES):
        ours, theirs = (t.take(t.image == row) for t in (found.truth, kept))
        np.testing.assert_allclose(ours.boxes[::-1], theirs.boxes, atol=1e-3)
        assert ours.labels[::-1].tolist() == theirs.labels.tolist()
    strangers = content | {"images": [{"id": 999}], "annotations": []}
    path.write_text(json.dumps(strangers))
    with pytest.raises(UserError, match="none of its images, by their ids, is in the dump"):
        benchmark_audit.with_truth(bare, str(path))
    content["categories"][0]["name"] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="its categories are .*other"):
        benchmark_audit.with_truth(bare, str(path))


def test_a_dump_without_truth_is_refused(tmp_path):
    bare = example(5)
    bare = Dump(
        bare.image_ids, bare.file_names, bare.sizes, bare.class_names, bare.human, bare.look
    )
    dump.write(tmp_path / "bare.npz", bare)
    with pytest.raises(UserError, match="no truth"):
        run(tmp_path / "bare.npz")
