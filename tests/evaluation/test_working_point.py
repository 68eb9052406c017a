import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mixtrain_jax.evaluation import working_point
from mixtrain_jax.evaluation.working_point import Matches


def random_case(seed, images=10):
    """Crowded annotations, crowds among them, and results of all qualities with tied scores."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 9)):
            box = [*rng.uniform(0, 120, 2), *rng.uniform(20, 90, 2)]
            category = int(rng.choice([1, 4]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image * 3,
                    "category_id": category,
                    "bbox": [round(float(v)) for v in box],
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            for _ in range(rng.integers(0, 4)):
                near = np.array(box) + rng.normal(0, 8, 4)
                results.append(
                    {
                        "image_id": image * 3,
                        "category_id": category if rng.random() < 0.8 else 4,
                        "bbox": np.maximum(near, 1).round(2).tolist(),
                        "score": round(float(rng.random()), 1),
                    }
                )
    truth = {
        "images": [{"id": image * 3, "width": 300, "height": 300} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "one"}, {"id": 4, "name": "four"}],
    }
    return truth, results


def by_pycocotools(truth, results, iou, image_ids=None):
    """Sorted (score, right) of every detection that counts, and the number of objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **copy.deepcopy(truth)}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.params.iouThrs = np.array([iou])
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
    pairs, objects = [], 0
    for each in evaluation.evalImgs:
        if each is None or each["aRng"] != evaluation.params.areaRng[0]:
            continue
        objects += int((np.array(each["gtIgnore"]) == 0).sum())
        for score, found, ignored in zip(
            each["dtScores"], each["dtMatches"][0], each["dtIgnore"][0], strict=True
        ):
            if not ignored:
                pairs.append((score, found > 0))
    return sorted(pairs), objects


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_matches_are_those_of_pycocotools(seed, iou):
    truth, results = random_case(seed)
    ours = working_point.match(truth, results, iou=iou)
    pairs, objects = by_pycocotools(truth, results, iou)
    assert ours.objects == objects
    assert sorted(zip(ours.scores, ours.right, strict=True)) == pairs
    assert (np.diff(ours.scores) <= 0).all()
    assert ours.right.any() and not ours.right.all()


def test_only_the_chosen_images_count():
    truth, results = random_case(3)
    chosen = [0, 6, 9, 21]
    ours = working_point.match(truth, results, chosen)
    pairs, objects = by_pycocotools(truth, results, 0.5, chosen)
    assert (sorted(zip(ours.scores, ours.right, strict=True)), ours.objects) == (pairs, objects)


def test_only_the_best_hundred_of_a_class_count():
    truth = {
        "images": [{"id": 1}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}],
    }
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [50, 50, 5, 5], "score": 0.5} for _ in range(100)
    ]
    results.append({"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.4})
    found = working_point.match(truth, results)
    assert (len(found.scores), found.right.any()) == (100, False)
    found = working_point.match(truth, results[50:])
    assert (len(found.scores), found.right.sum()) == (51, 1)


def test_a_result_on_an_unknown_image_is_an_error():
    truth, results = random_case(0)
    with pytest.raises(ValueError, match="unknown images, such as 77"):
        working_point.match(truth, [*results, {**results[0], "image_id": 77}])


def random_matches(seed):
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.choice(np.linspace(0.05, 1, 15), rng.integers(1, 40)))[::-1]
    right = rng.random(len(scores)) < scores
    return Matches(scores, right, int(right.sum() + rng.integers(1, 10)))


def slowly(matches, threshold):
    """Precision, recall and F1 of what scores at least `threshold`, one detection at a time."""
    taken = hits = 0
    for score, right in zip(matches.scores.tolist(), matches.right.tolist(), strict=True):
        if score >= threshold:
            taken += 1
            hits += right
    precision = hits / taken if taken else 1.0
    recall = hits / matches.objects
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return precision, recall, f1


@pytest.mark.parametrize("seed", range(20))
def test_points_are_those_of_a_slow_reference(seed):
    matches = random_matches(seed)
    thresholds = sorted(set(matches.scores.tolist()), reverse=True)
    reference = {t: slowly(matches, t) for t in thresholds}

    curve = working_point.curve(matches)
    assert [point.threshold for point in curve] == thresholds
    for point in curve:
        assert point[1:] == pytest.approx(reference[point.threshold])
        assert working_point.at(matches, point.threshold) == point
    between = 0.5 * (thresholds[0] + thresholds[-1]) + 1e-4
    assert working_point.at(matches, between)[1:] == pytest.approx(slowly(matches, between))

    best = working_point.best_f1(matches)
    assert best.f1 == pytest.approx(max(f1 for _, _, f1 in reference.values()))
    for precision in (0.5, 0.8, 0.95):
        point = working_point.at_precision(matches, precision)
        recalls = [recall for p, recall, _ in reference.values() if p >= precision]
        assert point.recall == pytest.approx(max(recalls, default=0))
        assert point.precision >= precision
    for recall in (0.1, 0.4, 0.99):
        reaching = [t for t in thresholds if reference[t][1] >= recall]
        expected = reaching[0] if reaching else thresholds[-1]
        assert working_point.at_recall(matches, recall).threshold == expected


def test_nothing_found_and_nothing_to_find():
    none = Matches(np.zeros(0), np.zeros(0, bool), 3)
    for point in (
        working_point.best_f1(none),
        working_point.at_precision(none, 0.9),
        working_point.at_recall(none, 0.9),
        working_point.at(none, 0.5),
    ):
        assert point[1:] == (1, 0, 0)
    wrong = Matches(np.array([0.9, 0.8]), np.zeros(2, bool), 0)
    assert working_point.at(wrong, 0.5)[1:] == (0, 0, 0)
    assert working_point.at_precision(wrong, 0.9) == (np.inf, 1, 0, 0)
    assert working_point.calibration_error(none) == 0


def test_calibration_error():
    rng = np.random.default_rng(1)
    scores = np.sort(rng.random(50000))[::-1]
    calibrated = Matches(scores, rng.random(50000) < scores, 1)
    assert working_point.calibration_error(calibrated) < 0.01
    halved = Matches(scores / 2, calibrated.right, 1)  # off by half of the mean score, .25
    assert working_point.calibration_error(halved) == pytest.approx(0.25, abs=0.01)
    upper = working_point.calibration_error(halved, least=0.25)  # scores of .25 to .5 mean .5 to 1
    assert upper == pytest.approx(0.375, abs=0.01)
    by_hand = Matches(np.array([0.9, 0.7, 0.4]), np.array([True, False, False]), 1)
    # bins of two and one: |.8 - .5| twice, |.4 - 0| once
    assert working_point.calibration_error(by_hand, bins=2) == pytest.approx((0.6 + 0.4) / 3)
    assert working_point.calibration_error(by_hand, bins=10) == pytest.approx((0.1 + 0.7 + 0.4) / 3)
