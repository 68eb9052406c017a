import numpy as np
import pytest

from mixtrain_jax.evaluation import coco, errors
from mixtrain_jax.evaluation.errors import Boxes
from mixtrain_jax.pages import errors as page

NAMES = ["cat", "dog"]


def boxes(*rows):
    """Boxes from (image, class, x1, y1, x2, y2) or with a score at the end."""
    width = len(rows[0]) if rows else 6
    table = np.array(rows, float).reshape(-1, width)
    scores = table[:, 6] if width == 7 else None
    return Boxes(table[:, 0].astype(int), table[:, 2:6], table[:, 1].astype(int), scores)


TRUTH = boxes(
    (0, 0, 0, 0, 10, 10), (0, 1, 50, 50, 60, 60), (1, 0, 0, 0, 10, 10), (1, 1, 80, 80, 95, 95)
)


def test_perfect_detections_lose_nothing():
    perfect = Boxes(TRUTH.image, TRUTH.boxes, TRUTH.labels, np.ones(4))
    result = errors.analyse(perfect, TRUTH, NAMES, 2)
    assert result["AP50"] == 1
    assert set(result["lost"].values()) == {0}
    assert set(result["counts"].values()) == {0}
    assert result["confusion"] == [[2, 0, 0], [0, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ((0, 1, 0, 0, 10, 10, 0.9), "classification"),
        ((0, 0, 5, 0, 15, 10, 0.9), "localisation"),  # IoU 1/3
        ((0, 1, 5, 0, 15, 10, 0.9), "both"),
        ((0, 0, 0, 0, 10, 9, 0.2), "duplicate"),
        ((0, 0, 30, 30, 40, 40, 0.9), "background"),
    ],
)
def test_each_false_positive_has_its_kind_and_mending_it_restores_all(row, kind):
    rest = [
        (*map(float, r), 0.5) for r in np.column_stack([TRUTH.image, TRUTH.labels, TRUTH.boxes])
    ]
    if kind in ("classification", "localisation"):
        rest = rest[1:]  # the box that it should have found
    result = errors.analyse(boxes(row, *rest), TRUTH, NAMES, 2)
    assert result["counts"] == {name: int(name == kind) for name in errors.KINDS}
    if kind == "duplicate":  # ranked below every hit of its class it costs nothing
        assert result["lost"][kind] == 0
    else:
        assert result["AP50"] < 1
        assert result["AP50"] + result["lost"][kind] == pytest.approx(1)
    assert all(loss == 0 for name, loss in result["lost"].items() if name != kind)


def test_a_missed_box_costs_its_recall():
    three = Boxes(TRUTH.image[:3], TRUTH.boxes[:3], TRUTH.labels[:3], np.ones(3))
    result = errors.analyse(three, TRUTH, NAMES, 2)
    assert result["counts"]["missed"] == 1
    assert result["AP50"] + result["lost"]["missed"] == pytest.approx(1)
    assert result["confusion"] == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert result["images"][0] == {"image": 1, "hits": 1, "false": 0, "missed": 1}
    assert result["per_size"]["small"] == {"boxes": 4, "AP50": result["AP50"], "found": 0.75}
    assert result["per_size"]["large"]["boxes"] == 0


def test_the_best_threshold_is_where_f1_is_largest():
    found = boxes(
        (0, 0, 0, 0, 10, 10, 0.9),
        (1, 0, 0, 0, 10, 10, 0.6),
        (0, 0, 30, 30, 40, 40, 0.3),
        (1, 0, 30, 30, 40, 40, 0.2),
    )
    cat = errors.analyse(found, TRUTH, NAMES, 2)["per_class"][0]
    assert (cat["threshold"], cat["f1"], cat["precision"], cat["recall"]) == (0.6, 1, 1, 1)
    confusion = errors.analyse(found, TRUTH, NAMES, 2)["confusion"]
    assert confusion == [[2, 0, 0], [0, 0, 2], [0, 0, 0]]  # what is below it does not count


def random_scene(seed, images=40):
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 5)):
            corner, side = rng.uniform(0, 150, 2), rng.uniform(8, 120, 2)
            box, label = np.concatenate([corner, corner + side]), rng.integers(0, 2)
            truth.append((image, label, *box))
            for _ in range(rng.integers(0, 3)):
                moved = box + rng.normal(0, 0.15, 4) * np.tile(side, 2)
                seen = label if rng.random() < 0.8 else 1 - label
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                found.append((image, seen, *moved, rng.random()))
        corner = rng.uniform(0, 150, 2)
        found.append((image, rng.integers(0, 2), *corner, *(corner + 20), 0.7 * rng.random()))
    return boxes(*found), boxes(*truth)


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_that_of_pycocotools(seed):
    from mixtrain_jax.evaluation import coco

    found, truth = random_scene(seed)

    def xywh(box):
        return [*box[:2], box[2] - box[0], box[3] - box[1]]

    truth_json = {
        "images": [{"id": n, "width": 400, "height": 400} for n in range(40)],
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(NAMES)],
        "annotations": [
            {"id": n + 1, "image_id": int(i), "category_id": int(c) + 1, "bbox": xywh(b)}
            for n, (i, c, b) in enumerate(zip(truth.image, truth.labels, truth.boxes.tolist()))
        ],
    }
    results = [
        {"image_id": int(i), "category_id": int(c) + 1, "bbox": xywh(b), "score": float(s)}
        for i, c, b, s in zip(found.image, found.labels, found.boxes.tolist(), found.scores)
    ]
    expected = coco.score(truth_json, results)
    result = errors.analyse(found, truth, NAMES, 40)
    assert result["AP50"] == pytest.approx(expected["AP50"], abs=1e-9)
    for row in result["per_class"]:
        assert row["AP50"] == pytest.approx(expected["per_class"][row["name"]]["AP50"], abs=1e-9)


def test_counts_add_up_on_random_scenes():
    found, truth = random_scene(7)
    result = errors.analyse(found, truth, NAMES, 40)
    false = sum(count for kind, count in result["counts"].items() if kind != "missed")
    hits = sum(1 for _ in found.labels) - false
    assert 0 < hits <= len(truth.labels)
    assert all(loss >= 0 for loss in result["lost"].values())
    assert result["AP50"] + max(result["lost"].values()) <= 1
    table = np.array(result["confusion"])
    np.testing.assert_array_equal(table[:2].sum(axis=1), np.bincount(truth.labels))
    for name, curve in result["curves"].items():
        recall, precision = np.array(curve).T
        assert (np.diff(recall) >= 0).all() and (np.diff(precision) <= 0).all(), name


def test_without_detections_or_boxes_there_are_numbers_still():
    nothing = Boxes(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    result = errors.analyse(nothing, TRUTH, NAMES, 2)
    assert result["AP50"] == 0
    assert result["counts"]["missed"] == 4
    found = boxes((0, 0, 0, 0, 10, 10, 0.9))
    result = errors.analyse(found, nothing, NAMES, 2)
    assert result["counts"]["background"] == 1
    assert result["confusion"][2] == [0, 0, 0]


def test_what_is_found_in_a_crowd_of_its_class_does_not_count():
    crowd = boxes((0, 0, 20, 20, 44, 44), (1, 1, 0, 20, 40, 60))
    hits = [
        (*map(float, r), 0.5) for r in np.column_stack([TRUTH.image, TRUTH.labels, TRUTH.boxes])
    ]
    inside = [(0, 0, 24, 24, 30, 30, 0.9), (1, 1, 10, 30, 20, 40, 0.9)]
    outside = [(0, 1, 24, 24, 30, 30, 0.9), (0, 0, 38, 38, 50, 50, 0.9)]  # class; a quarter inside

    def analyse(*rows):
        return errors.analyse(errors.counted(boxes(*rows), TRUTH, crowd, 2), TRUTH, NAMES, 2)

    result = analyse(*hits, *inside)
    assert result["AP50"] == 1 and result["counts"]["background"] == 0
    assert [row["threshold"] for row in result["per_class"]] == [0.5, 0.5]
    result = analyse(*hits, *inside, *outside)
    assert result["counts"]["background"] == 2
    assert errors.analyse(boxes(*hits, *inside), TRUTH, NAMES, 2)["counts"]["background"] == 2


@pytest.mark.parametrize("seed", range(4))
def test_ap_with_crowds_is_that_of_coco(seed):
    """Against `coco.score`, which the tests of it compare with pycocotools."""
    rng = np.random.default_rng(seed)

    def some(count, *more):
        low = rng.uniform(0, 60, (count, 2))
        return [
            (
                rng.integers(3),
                rng.integers(2),
                *a,
                *(a + rng.uniform(8, 40, 2)),
                *(m() for m in more),
            )
            for a in low
        ]

    truth, crowds = some(14), some(4)
    near = [(*t[:2], *(np.array(t[2:]) + rng.uniform(-3, 3, 4)), rng.uniform()) for t in truth]
    found = near + some(20, rng.uniform)
    content = {
        "images": [{"id": i, "height": 100, "width": 100} for i in range(3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(row[0]),
                "category_id": int(row[1]),
                "bbox": [row[2], row[3], row[4] - row[2], row[5] - row[3]],
                "area": (row[4] - row[2]) * (row[5] - row[3]),
                "iscrowd": int(n >= len(truth)),
            }
            for n, row in enumerate(truth + crowds)
        ],
    }
    results = [
        {
            "image_id": int(row[0]),
            "category_id": int(row[1]),
            "bbox": [row[2], row[3], row[4] - row[2], row[5] - row[3]],
            "score": row[6],
        }
        for row in found
    ]
    expected = coco.score(content, results)["AP50"]
    counting = errors.counted(boxes(*found), boxes(*truth), boxes(*crowds), 3)
    result = errors.analyse(counting, boxes(*truth), NAMES, 3)
    assert result["AP50"] == pytest.approx(expected, abs=1e-9)


def test_ap_where_more_is_found_than_counts_is_that_of_coco():
    """COCO looks at 100 detections of a class in an image; two images, two classes, ties."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 900, (300, 2))
    truth = [(n % 2, n // 150, *a, *(a + 30)) for n, a in enumerate(corner)]
    found = [(*row, round(rng.uniform(), 2)) for row in truth]
    content = {
        "images": [{"id": i, "height": 1000, "width": 1000} for i in range(2)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": c, "bbox": [x, y, 30, 30]}
            for n, (i, c, x, y, _, _) in enumerate(truth)
        ],
    }
    more = [(0, 0, *a, *(a + 30), rng.uniform()) for a in rng.uniform(0, 900, (80, 2))]
    results = [
        {"image_id": i, "category_id": c, "bbox": [x, y, 30, 30], "score": score}
        for i, c, x, y, _, _, score in found + more
    ]
    expected = coco.score(content, results)["AP50"]
    nothing = Boxes(
        *(np.zeros((0, *shape), kind) for shape, kind in (((), int), ((4,), float), ((), int)))
    )
    counting = errors.counted(boxes(*found, *more), boxes(*truth), nothing, 2)
    assert len(counting.labels) < len(found + more)
    result = errors.analyse(counting, boxes(*truth), NAMES, 2)
    assert result["AP50"] == pytest.approx(expected, abs=1e-9)


def test_the_page_of_many_classes_shows_those_with_the_most_errors(monkeypatch):
    monkeypatch.setattr(page, "CLASSES", 2)
    #          there: a, b, c, nothing
    confusion = [[5, 1, 0, 0], [0, 5, 0, 3], [0, 0, 9, 0], [0, 0, 0, 0]]
    assert page._most_wrong(confusion) == [0, 1]
    assert page._merged(confusion, [0, 1]) == confusion
    assert page._merged(confusion, [1]) == [[5, 0, 3], [1, 14, 0], [0, 0, 0]]
