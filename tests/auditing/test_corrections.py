import copy
import dataclasses
import json

import numpy as np
import pytest

from mixtrain_jax.auditing import corrections, files
from mixtrain_jax.auditing.findings import CLASS, DUPLICATE, MISSING, PLACE, SPURIOUS, Findings
from mixtrain_jax.auditing.labels import Detections, from_coco
from mixtrain_jax.auditing.ranking import Ranking
from mixtrain_jax.data.sources import coco_values
from mixtrain_jax.errors import UserError

COCO = {
    "info": {"by": "hand"},
    "images": [
        {"id": 7, "file_name": "a.png", "width": 100, "height": 80},
        {"id": 9, "file_name": "b.png", "width": 100, "height": 80},
    ],
    "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 5, "bbox": [10, 10, 20, 20], "iscrowd": 1},
        {"id": 2, "image_id": 9, "category_id": 5, "bbox": [0, 0, 10, 10], "segmentation": [[1]]},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [50, 50, 20, 20]},
        {"id": 4, "image_id": 7, "category_id": 2, "bbox": [51, 50, 20, 20]},
        {"id": 5, "image_id": 7, "category_id": 2, "bbox": [0, 0, 0, 10]},
        {"id": 6, "image_id": 9, "category_id": 2, "bbox": [70, 10, 10, 10], "segmentation": [[2]]},
    ],
}
HUMAN, PLACES, CATEGORY_IDS = from_coco(COCO, "labels.json")
FILES = ["a.png", "b.png"]
CATEGORIES = [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}]


def findings(*rows):
    """Findings from (image, kind, score, human, box, label)."""
    image, kind, score, human, boxes, labels = zip(*rows)
    return Findings(
        np.array(image, np.int32),
        np.array(kind, np.int8),
        np.array(score, np.float32),
        np.array(human, np.int32),
        np.full(len(rows), -1, np.int32),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int32),
    )


FOUND = findings(
    (0, MISSING, 0.9, -1, (5, 5, 15, 25), 1),
    (1, PLACE, 0.8, 0, (0, 0, 12, 10), 1),
    (0, DUPLICATE, 0.7, 1, (50, 50, 70, 70), 0),
    (0, DUPLICATE, 0.6, 2, (51, 50, 71, 70), 0),
    (1, CLASS, 0.3, 3, (70, 10, 80, 20), 1),
)


def audit(found=FOUND, **changes):
    nothing = Detections(HUMAN.image[:0], HUMAN.boxes[:0], HUMAN.labels[:0], HUMAN.boxes[:0, 0])
    ranking = Ranking(found, nothing, "ratings", {"right": 0.9, "missing": 0.1}, 1.0)
    return files.to_json(
        ranking,
        HUMAN,
        image_ids=[7, 9],
        file_names=FILES,
        sizes=np.array([[80, 100], [80, 100]]),
        categories=CATEGORIES,
        annotation_ids=[COCO["annotations"][place]["id"] for place in PLACES],
        **changes,
    )


def test_coco_boxes_become_a_table_without_crowds_and_empty_boxes():
    assert CATEGORY_IDS == [2, 5]
    np.testing.assert_array_equal(PLACES, [1, 2, 3, 5])
    np.testing.assert_array_equal(HUMAN.image, [1, 0, 0, 1])
    np.testing.assert_array_equal(HUMAN.labels, [1, 0, 0, 0])
    np.testing.assert_array_equal(HUMAN.boxes[1], [50, 50, 70, 70])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "not a COCO annotation file"),
        ({"annotations": [{"image_id": 8, "category_id": 2, "bbox": [0] * 4}]}, "names image 8"),
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": [0] * 4}]}, "category 3"),
    ],
)
def test_broken_coco_is_one_clear_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        from_coco(COCO | change, "labels.json")
    assert "labels.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_several_duplicates_one_stays():
    same = COCO["annotations"][2]
    content = COCO | {"annotations": [same | {"id": number} for number in range(3)]}
    human, _, _ = from_coco(content, "labels.json")
    rows = [(0, DUPLICATE, 0.9 - 0.1 * n, n, (50, 50, 70, 70), 0) for n in range(3)]
    result = corrections.apply(human, findings(*rows), np.ones(3, bool))
    np.testing.assert_array_equal(result.removed, [0, 1])
    np.testing.assert_array_equal(result.spared, [2])


@pytest.mark.parametrize("twin", [(0, CLASS, 0.9, 0, (50, 50, 70, 70), 1),
                                  (0, PLACE, 0.9, 0, (10, 50, 30, 70), 0)])  # fmt: skip
def test_a_box_whose_twin_is_renamed_or_moved_away_is_no_duplicate(twin):
    pair = COCO | {"annotations": COCO["annotations"][2:4]}
    human, _, _ = from_coco(pair, "labels.json")
    rows = findings(twin, (0, DUPLICATE, 0.7, 1, (51, 50, 71, 70), 0))
    result = corrections.apply(human, rows, np.ones(2, bool))
    assert len(result.removed) == 0
    np.testing.assert_array_equal(result.spared, [1])
    assert len(result.labels) == 2


@pytest.mark.parametrize("scores", [(0.9, 0.7), (0.7, 0.9)])
@pytest.mark.parametrize(
    ("twin", "left", "spared"),
    [
        ((0, SPURIOUS, None, 0, (50, 50, 70, 70), 0), [1], [1]),
        ((0, CLASS, None, 0, (50, 50, 70, 70), 1), [0, 1], [1]),
        ((0, PLACE, None, 0, (10, 50, 30, 70), 0), [0, 1], [1]),
    ],
)
def test_whichever_score_is_higher_the_same_boxes_stay(twin, left, spared, scores):
    """Else an object loses both of its boxes: one as a duplicate, then the other as spurious."""
    pair = COCO | {"annotations": COCO["annotations"][2:4]}
    human, _, _ = from_coco(pair, "labels.json")
    image, kind, _, row, box, label = twin
    rows = findings(
        (image, kind, scores[0], row, box, label),
        (0, DUPLICATE, scores[1], 1, (51, 50, 71, 70), 0),
    )
    result = corrections.apply(human, rows, np.ones(2, bool))
    assert result.source.tolist() == left and result.spared.tolist() == spared


@pytest.mark.parametrize(
    ("found", "left"),
    [
        # A dog becomes a cat where the cat has a box already.
        ([(0, CLASS, 0.9, 0, (50, 50, 70, 70), 0)], [1, 2]),
        ([(0, PLACE, 0.9, 2, (51, 50, 71, 70), 0)], [0, 1]),  # another cat moved onto it
        ([(0, CLASS, 0.9, 0, (50, 50, 70, 70), 2)], [0, 1, 2]),
        # Both are renamed to the same: the likelier stays.
        (
            [(0, CLASS, 0.7, 0, (50, 50, 70, 70), 2), (0, CLASS, 0.9, 1, (51, 50, 71, 70), 2)],
            [1, 2],
        ),
    ],
)
def test_an_object_drawn_twice_under_two_names_has_one_box_in_the_end(found, left):
    """As dog and as cat; a third box is far away."""
    drawn = [[50, 50, 20, 20], [51, 50, 20, 20], [5, 5, 20, 20]]
    annotations = [
        {"id": n, "image_id": 7, "category_id": (5, 2, 2)[n], "bbox": box}
        for n, box in enumerate(drawn)
    ]
    human, _, _ = from_coco(COCO | {"annotations": annotations}, "labels.json")
    result = corrections.apply(human, findings(*found), np.ones(len(found), bool))
    assert result.source.tolist() == left
    assert sorted([*left, *result.removed.tolist()]) == [0, 1, 2]


def test_boxes_that_lay_on_each_other_before_are_left_to_the_finding_of_duplicates():
    pair = COCO | {"annotations": COCO["annotations"][2:4]}
    human, _, _ = from_coco(pair, "labels.json")
    moved = findings((0, PLACE, 0.9, 0, (52, 50, 72, 70), 0))
    assert len(corrections.apply(human, moved, np.ones(1, bool)).removed) == 0


@pytest.mark.parametrize(
    ("label", "box", "added"),
    [(0, (5, 6, 25, 25), 0), (0, (5, 30, 25, 50), 1), (1, (5, 5, 25, 25), 1)],
)
def test_a_box_that_is_missing_where_another_moves_to_is_not_added(label, box, added):
    pair = COCO | {"annotations": COCO["annotations"][2:3]}
    human, _, _ = from_coco(pair, "labels.json")
    rows = findings((0, PLACE, 0.9, 0, (5, 5, 25, 25), 0), (0, MISSING, 0.8, -1, box, label))
    result = corrections.apply(human, rows, np.ones(2, bool))
    assert result.source.tolist() == [0] + [-1] * added


def test_without_labels_errors_are_counted_by_what_is_found():
    found = FOUND.take([0])
    nobody = HUMAN.take(np.zeros(0, int))
    rows = corrections.summarise(nobody, found, ["cat", "dog"])
    counted = {(r["class"], r["kind"]): r["errors"] for r in rows if r["errors"]}
    assert counted == {("dog", "missing"): 0.9, ("all", "missing"): 0.9}


def test_corrections_are_applied_and_one_of_two_duplicates_stays():
    result = corrections.apply(HUMAN, FOUND, FOUND.score >= 0.5)
    np.testing.assert_array_equal(result.removed, [1])
    np.testing.assert_array_equal(result.spared, [2])
    np.testing.assert_array_equal(result.source, [2, -1, 0, 3])
    np.testing.assert_array_equal(result.finding, [-1, 0, 1, -1])
    np.testing.assert_array_equal(result.labels.labels, [0, 1, 1, 0])
    np.testing.assert_array_equal(result.labels.boxes[2], [0, 0, 12, 10])


def test_corrected_coco_says_what_changed_and_the_original_stays():
    before = copy.deepcopy(COCO)
    result = corrections.apply(HUMAN, FOUND, np.ones(len(FOUND), bool))
    out = corrections.correct_coco(COCO, PLACES, [7, 9], CATEGORY_IDS, result, FOUND)
    assert before == COCO
    assert out["info"] == COCO["info"]
    by_id = {entry["id"]: entry for entry in out["annotations"]}
    assert sorted(by_id) == [1, 2, 4, 5, 6, 7]  # 3 is gone, 7 is new, crowd and empty box stay
    assert by_id[1] == COCO["annotations"][0]
    assert by_id[2]["bbox"] == [0, 0, 12, 10]
    assert by_id[2]["area"] == 120
    assert "segmentation" not in by_id[2]
    assert by_id[2]["audit"] == {"kind": "place", "score": 0.8}
    assert by_id[6]["category_id"] == 5
    assert by_id[6]["segmentation"] == [[2]]
    assert by_id[7] == {
        "id": 7,
        "image_id": 7,
        "iscrowd": 0,
        "category_id": 5,
        "bbox": [5, 5, 10, 20],
        "area": 200,
        "audit": {"kind": "missing", "score": 0.9},
    }
    json.dumps(out)
    from_coco(out, "corrected.json")


@pytest.mark.parametrize("ids", [lambda n: f"{n}", float, lambda n: f"box {n}"])
def test_an_added_box_has_an_id_of_its_own(ids):
    content = copy.deepcopy(COCO)
    for entry in content["annotations"]:
        entry["id"] = ids(entry["id"])
    result = corrections.apply(HUMAN, FOUND, np.ones(len(FOUND), bool))
    out = corrections.correct_coco(content, PLACES, [7, 9], CATEGORY_IDS, result, FOUND)
    keys = [coco_values.key(entry["id"]) for entry in out["annotations"]]
    assert len(set(keys)) == len(keys) == 6


def test_nothing_accepted_gives_the_same_annotations():
    result = corrections.apply(HUMAN, FOUND, np.zeros(len(FOUND), bool))
    assert corrections.correct_coco(COCO, PLACES, [7, 9], CATEGORY_IDS, result, FOUND) == COCO


def test_an_audit_is_written_and_read_back():
    written = json.loads(json.dumps(audit(lowest=0.5)))
    assert written["left_out"] == 1
    assert written["applied"] == 3  # of two boxes that double each other one stays
    assert [entry["kind"] for entry in written["findings"]] == [
        "missing",
        "place",
        "duplicate",
        "duplicate",
    ]
    assert written["findings"][0]["human"] is None
    assert written["findings"][1]["human"]["annotation_id"] == 2
    assert written["findings"][2]["proposed"] is None
    back = files.from_json(written, "audit.json", HUMAN, [7, 9], FILES, CATEGORIES)
    for name in ("image", "kind", "human", "labels"):
        np.testing.assert_array_equal(getattr(back, name), getattr(FOUND, name)[:4], err_msg=name)
    np.testing.assert_allclose(back.boxes, FOUND.boxes[:4], atol=0.01)
    np.testing.assert_allclose(back.score, FOUND.score[:4], atol=1e-4)


def test_an_audit_of_other_labels_is_refused():
    written = audit()
    with pytest.raises(UserError, match="4 human boxes, the labels have 3"):
        files.from_json(written, "audit.json", HUMAN.take([0, 1, 2]), [7, 9], FILES, CATEGORIES)
    with pytest.raises(UserError, match="about other labels"):
        files.from_json(written, "audit.json", HUMAN.take([1, 0, 2, 3]), [7, 9], FILES, CATEGORIES)
    turned = HUMAN.take([0, 2, 1, 3])  # two boxes of one image and class
    with pytest.raises(UserError, match="about other labels, or they changed since"):
        files.from_json(written, "audit.json", turned, [7, 9], FILES, CATEGORIES)
    renamed = [{"id": 2, "name": "cow"}, {"id": 5, "name": "dog"}]
    with pytest.raises(UserError, match="about other labels"):
        files.from_json(written, "audit.json", HUMAN, [7, 9], FILES, renamed)
    with pytest.raises(UserError, match="version"):
        files.from_json(written | {"version": 0}, "audit.json", HUMAN, [7, 9], FILES, CATEGORIES)
    written["findings"][0]["score"] = 0.1
    with pytest.raises(UserError, match="edited by hand"):
        files.from_json(written, "audit.json", HUMAN, [7, 9], FILES, CATEGORIES)


def test_labels_that_changed_elsewhere_are_refused_too():
    """Ids of VOC's and YOLO's images are places, so without one image the next has its id."""
    written = audit(found=FOUND.take([0]))  # a missing box: of the human ones it says nothing
    for human, files_now in (
        (dataclasses.replace(HUMAN, labels=HUMAN.labels[::-1]), FILES),
        (dataclasses.replace(HUMAN, boxes=HUMAN.boxes + 1), FILES),
        (HUMAN, ["b.png", "c.png"]),
    ):
        with pytest.raises(UserError, match="about other labels, or they changed since"):
            files.from_json(written, "audit.json", human, [7, 9], files_now, CATEGORIES)
    del written["data"]["labels"]  # as older ones were written
    assert len(files.from_json(written, "audit.json", HUMAN, [7, 9], FILES, CATEGORIES)) == 1
    with pytest.raises(UserError, match="about other labels"):
        files.from_json(written, "audit.json", HUMAN, [7, 9], ["b.png", "c.png"], CATEGORIES)


def test_what_is_applied_is_written_whatever_its_score():
    found = dataclasses.replace(FOUND, score=FOUND.score / 20)
    assert len(audit(found)["findings"]) == 0
    written = audit(found, threshold=0.02)
    assert len(written["findings"]) == 4 and written["left_out"] == 1


def test_decisions_choose_what_is_applied():
    written = audit()
    made = {
        "version": 1,
        "fingerprint": written["fingerprint"],
        "decisions": {"0": "accept", "3": "reject", "4": "accept"},
    }
    accepted = files.read_decisions(made, "decisions.json", written)
    np.testing.assert_array_equal(accepted, [True, False, False, False, True])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected"),
        ({"decisions": ["0"]}, "expected"),
        ({"fingerprint": "other"}, "another audit"),
        ({"decisions": {"99": "accept"}}, "'99' is not in the audit"),
        ({"decisions": {"x": "accept"}}, "'x' is not in the audit"),
        ({"decisions": {"0": "yes"}}, "expected 'accept' or 'reject'"),
    ],
)
def test_broken_decisions_are_one_clear_line(change, message):
    written = audit()
    made = {"version": 1, "fingerprint": written["fingerprint"], "decisions": {}} | change
    with pytest.raises(UserError, match=message) as caught:
        files.read_decisions(made, "decisions.json", written)
    assert str(caught.value).startswith("decisions.json: ")
    assert "\n" not in str(caught.value)


def test_the_summary_adds_up():
    rows = {(row["class"], row["kind"]): row for row in audit()["summary"]}
    assert rows["dog", "missing"]["errors"] == 0.9
    assert rows["dog", "missing"]["boxes"] == 1
    assert rows["dog", "missing"]["rate"] == pytest.approx(0.9 / 1.9, abs=1e-4)
    assert rows["cat", "duplicate"]["errors"] == 1.3
    assert rows["cat", "class"]["errors"] == 0.3
    assert rows["all", "duplicate"]["boxes"] == 4
    for row in rows.values():
        assert 0 <= row["low"] <= row["rate"] <= row["high"] <= 1


def test_wilson_is_the_textbook_interval():
    # Newcombe, Statistics in Medicine 1998, table I: 81 of 263 and 0 of 20.
    np.testing.assert_allclose(corrections.wilson(81, 263), (0.2553, 0.3662), atol=1e-4)
    np.testing.assert_allclose(corrections.wilson(0, 20), (0, 0.1611), atol=1e-4)
    assert corrections.wilson(0, 0) == (0, 1)


def test_spurious_boxes_go():
    found = findings((1, SPURIOUS, 0.9, 3, (70, 10, 80, 20), 0))
    result = corrections.apply(HUMAN, found, np.array([True]))
    np.testing.assert_array_equal(result.removed, [3])
    assert len(result.labels) == 3
