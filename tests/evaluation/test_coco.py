import contextlib
import copy
import dataclasses
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mixtrain_jax.data.sources.annotations import from_lists
from mixtrain_jax.data.sources.dataset import assemble
from mixtrain_jax.data.sources.image_files import Reading
from mixtrain_jax.evaluation import coco
from mixtrain_jax.types import Detections

CATEGORIES = [
    {"id": 0, "name": "nought"},
    {"id": 3, "name": "three"},
    {"id": 90, "name": "ninety"},
    {"id": 7, "name": "never seen"},
]


def random_case(seed, images=12):
    """Annotations with crowds and ids with gaps, and results of all qualities."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 6)):
            box = [*rng.uniform(0, 300, 2), *np.exp(rng.uniform(2, 5.5, 2))]
            category = int(rng.choice([0, 3, 90]))
            annotations.append(
                {
                    "id": len(annotations) + 100,
                    "image_id": image * 5,
                    "category_id": category,
                    "bbox": [float(v) for v in box],
                    "area": float(box[2] * box[3] * 0.8),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            for _ in range(rng.integers(0, 4)):
                near = np.array(box) * rng.normal(1, 0.04, 4)
                results.append(
                    {
                        "image_id": image * 5,
                        "category_id": category if rng.random() < 0.8 else 90,
                        "bbox": near.round(3).tolist(),
                        "score": round(float(rng.random()), 2),  # with ties
                    }
                )
    ground_truth = {
        "info": {},
        "images": [{"id": image * 5, "width": 640, "height": 640} for image in range(images)],
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    return ground_truth, results


def pycocotools_stats(folder, ground_truth, results, category=None, image_ids=None):
    """The official way: files, loadRes, COCOeval; one category after the other if asked."""
    (folder / "truth.json").write_text(json.dumps(ground_truth))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(folder / "truth.json")
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
        if category is not None:
            evaluation.params.catIds = [category]
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("scorer", coco.SCORERS)
@pytest.mark.parametrize("seed", range(4))
def test_score_equals_pycocotools_run_on_the_files(seed, scorer, tmp_path, capsys):
    ground_truth, results = random_case(seed)
    before = copy.deepcopy((ground_truth, results))
    metrics = coco.score(ground_truth, results, scorer=scorer)
    assert capsys.readouterr() == ("", "")
    assert (ground_truth, results) == before
    expected = pycocotools_stats(tmp_path, ground_truth, results)
    # faster-coco-eval divides in another order: the last bit may differ.
    tolerance = 0 if scorer == coco.PYCOCOTOOLS else 1e-15
    np.testing.assert_allclose([metrics[key] for key in coco.KEYS], expected, 0, tolerance)
    assert 0.05 < metrics["AP"] < 0.95
    assert set(metrics["per_class"]) == {c["name"] for c in CATEGORIES}
    for category in CATEGORIES:
        alone = pycocotools_stats(tmp_path, ground_truth, results, category["id"])
        each = metrics["per_class"][category["name"]]
        assert (each["AP"], each["AP50"]) == pytest.approx(tuple(alone[:2]), abs=1e-12)
    assert metrics["per_class"]["never seen"] == {"AP": -1.0, "AP50": -1.0}
    assert json.loads(json.dumps(metrics)) == metrics


def test_both_scorers_give_the_same_numbers():
    """On more than fits COCO's limits: over a hundred detections of an image and class, crowds."""
    ground_truth, results = random_case(11, images=150)
    rng = np.random.default_rng(0)
    for score in rng.random(150).round(1).tolist():
        box = [*rng.uniform(0, 300, 2), *rng.uniform(20, 200, 2)]
        results.append({"image_id": 0, "category_id": 3, "bbox": box, "score": score})
    ours, theirs = (coco.score(ground_truth, results, scorer=name) for name in coco.SCORERS)
    keys = coco.KEYS
    np.testing.assert_allclose([ours[k] for k in keys], [theirs[k] for k in keys], 0, 1e-15)
    for name, each in theirs["per_class"].items():
        assert ours["per_class"][name] == pytest.approx(each, abs=1e-15)
    assert 0 < ours["AR1"] < ours["AR10"]


def test_score_of_some_images_only(tmp_path):
    ground_truth, results = random_case(5)
    some = [25, 0, 10, 30]
    metrics = coco.score(ground_truth, results, np.array(some))
    expected = pycocotools_stats(tmp_path, ground_truth, results, image_ids=some)
    np.testing.assert_allclose([metrics[key] for key in coco.KEYS], expected, 0, 1e-15)
    assert metrics["AP"] != coco.score(ground_truth, results)["AP"]


def two_objects():
    """Two small squares in two images; annotation ids from 0, neither area nor iscrowd."""
    return {
        "images": [{"id": 0}, {"id": 1}],
        "categories": [{"id": 0, "name": "square"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0, "bbox": [10, 10, 20, 20]},
            {"id": 1, "image_id": 1, "category_id": 0, "bbox": [40, 10, 20, 20]},
        ],
    }


def test_score_of_a_case_done_by_hand():
    results = [
        {"image_id": 0, "category_id": 0, "bbox": [10, 10, 20, 20], "score": 0.9},
        # Within the object and 0.62 of it: found at the thresholds 0.50, 0.55 and 0.60.
        {"image_id": 1, "category_id": 0, "bbox": [40, 10, 20, 12.4], "score": 0.8},
    ]
    metrics = coco.score(two_objects(), results)
    half = 51 / 101  # precision 1 at the recalls 0, 0.01, ..., 0.50, then 0
    assert metrics["AP50"] == pytest.approx(1)
    assert metrics["AP75"] == pytest.approx(half)
    assert metrics["AP"] == metrics["APs"] == pytest.approx((3 + 7 * half) / 10)
    assert metrics["AR1"] == metrics["AR100"] == metrics["ARs"] == pytest.approx(0.65)
    assert metrics["APm"] == metrics["APl"] == metrics["ARl"] == -1
    assert metrics["per_class"] == {"square": {"AP": metrics["AP"], "AP50": metrics["AP50"]}}

    # A surer mistake before them halves the precision of the first and leaves 2/3 for the second.
    mistake = {"image_id": 0, "category_id": 0, "bbox": [200, 200, 20, 20], "score": 0.95}
    assert coco.score(two_objects(), [*results, mistake])["AP50"] == pytest.approx(2 / 3)


def test_perfect_results_score_one_with_ids_from_zero():
    results = [
        {"image_id": a["image_id"], "category_id": 0, "bbox": a["bbox"], "score": 0.5}
        for a in two_objects()["annotations"]
    ]
    assert coco.score(two_objects(), results)["AP"] == pytest.approx(1)


def test_no_results_and_nothing_to_find():
    metrics = coco.score(two_objects(), [])
    assert [metrics[key] for key in ("AP", "AP50", "APs", "AR1", "AR100")] == [0] * 5
    assert metrics["per_class"] == {"square": {"AP": 0.0, "AP50": 0.0}}
    nothing = coco.score({**two_objects(), "annotations": []}, [])
    assert {nothing[key] for key in coco.KEYS} == {-1.0}


@pytest.mark.parametrize("scorer", coco.SCORERS)
@pytest.mark.parametrize("box", [[np.nan] * 4, [np.nan, 10, 20, 20], [10, 10, np.inf, 20]])
def test_an_object_without_a_finite_box_is_missed(box, scorer):
    """pycocotools takes any detection for a hit of it: nothing is less than what is no number."""
    truth = two_objects()
    truth["annotations"][0]["bbox"] = box
    results = [
        {"image_id": 0, "category_id": 0, "bbox": [10, 10, 20, 20], "score": 0.9},
        {"image_id": 1, "category_id": 0, "bbox": [40, 10, 20, 20], "score": 0.95},
    ]
    metrics = coco.score(truth, results, scorer=scorer)
    assert metrics["AP50"] == pytest.approx(51 / 101) and metrics["AR100"] == 0.5
    np.testing.assert_equal(truth["annotations"][0]["bbox"], box)


def test_results_of_another_data_set_are_refused():
    stray = {"image_id": 77, "category_id": 0, "bbox": [0, 0, 5, 5], "score": 0.5}
    with pytest.raises(ValueError, match="77"):
        coco.score(two_objects(), [stray])


@pytest.fixture
def dataset():
    table = from_lists(
        images=[(name, name, (640, 640)) for name in "abc"], boxes=[], names=[], source="val"
    )
    ids = np.array([139, 0, 872], np.int64)
    table = dataclasses.replace(table, image_ids=ids, categories=CATEGORIES[:3])
    return assemble(table, Reading(), "val", max_boxes=5)


def test_results_carry_original_ids_and_skip_padding(dataset):
    detections = Detections(
        boxes=np.array(
            [
                [[10, 20, 30.5, 60.12345], [1, 2, 3, 4], [5, 5, 9, 9]],
                [[0, 0, 7, 7]] * 3,
                [[0, 0, 640, 640], [0, 0, 1, 1], [0, 0, 1, 1]],
            ],
            np.float32,
        ),
        scores=np.array([[0.9, 0.123456789, 0.1], [0.8] * 3, [1.0, 0, 0]], np.float32),
        labels=np.array([[2, 0, 1], [1] * 3, [1, 0, 0]], np.int32),
        valid=np.array([[True, True, False], [True] * 3, [True, False, False]]),
    )
    entries = coco.results(detections, np.array([2, -1, 1], np.int32), dataset)
    assert entries == [
        {"image_id": 872, "category_id": 90, "bbox": [10, 20, 20.5, 40.123], "score": 0.9},
        {"image_id": 872, "category_id": 0, "bbox": [1, 2, 2, 2], "score": 0.123457},
        {"image_id": 0, "category_id": 3, "bbox": [0, 0, 640, 640], "score": 1.0},
    ]
    assert json.loads(json.dumps(entries)) == entries
    none = dataclasses.replace(dataset, image_ids=dataset.image_ids[:0])
    assert coco.results(detections, np.array([-1, -1, -1]), none) == []


def test_table_shows_every_number_once():
    metrics = {key: (number + 1) / 100 for number, key in enumerate(coco.KEYS)}
    metrics["APl"] = -1.0
    metrics["per_class"] = {
        "a name longer than others": {"AP": 0.555, "AP50": 0.666},
        "b": {"AP": -1.0, "AP50": -1.0},
    }
    lines = coco.table(metrics).splitlines()
    assert lines[1].split() == ["AP", "0.010", "0.040", "0.050", "-"]
    assert lines[2].split() == ["AP50", "0.020"]
    assert lines[6].split() == ["AR100", "0.090", "0.100", "0.110", "0.120"]
    assert lines[-2].split() == ["a", "name", "longer", "than", "others", "0.555", "0.666"]
    assert lines[-1].split() == ["b", "-", "-"]
    assert len({len(line) for line in lines[-3:]}) == 1


def test_table_of_many_classes_uses_columns():
    classes = {f"class{n}": {"AP": n / 1000, "AP50": 0.5} for n in range(80)}
    metrics = {**dict.fromkeys(coco.KEYS, 0.25), "per_class": classes}
    rows = coco.table(metrics).splitlines()[8:]
    assert rows[0].split() == ["class", "AP", "AP50"] * 3
    assert len(rows) == 1 + 27
    words = " ".join(rows).split()
    assert all(words.count(name) == 1 for name in classes)
    # Down the columns, not along the rows.
    assert [row.split()[0] for row in rows[1:]] == [f"class{n}" for n in range(27)]
