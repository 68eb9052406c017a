import numpy as np
import pytest
import scipy.optimize

from mixtrain_jax.auditing import findings as finding
from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.labels import Detections, Labels
from mixtrain_jax.auditing.merging import merge
from mixtrain_jax.ops.numpy_boxes import iou
from tests.auditing import simulated


def labels(*rows):
    """Labels of image 0 from (class, x1, y1, x2, y2)."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Labels(np.zeros(len(table), np.int32), table[:, 1:], table[:, 0].astype(np.int32))


def detections(*rows):
    """Detections in image 0 from (class, score, x1, y1, x2, y2)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(
        np.zeros(len(table), np.int32),
        table[:, 2:],
        table[:, 0].astype(np.int32),
        table[:, 1],
    )


def found(human, look):
    """The evidence about human boxes and about missing ones."""
    merged = merge([look], 1)
    evidence = finding.human_evidence(human, merged, 1)
    return evidence, finding.missing_evidence(human, merged, evidence.match, 1)


def test_greedy_matching_is_nearly_the_best_one_to_one_matching():
    rng = np.random.default_rng(0)
    ours, best, equal = 0.0, 0.0, 0
    for _ in range(300):
        table = rng.random((rng.integers(1, 9), rng.integers(1, 9))) ** 2
        scores = rng.random(table.shape[1])
        weight = np.where(table >= finding.MATCH_IOU, table * scores, 0)
        pairs = finding.greedy(table, scores)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
        assert all(table[pair] >= finding.MATCH_IOU for pair in pairs)
        mine = sum(weight[pair] for pair in pairs)
        optimum = weight[scipy.optimize.linear_sum_assignment(weight, maximize=True)].sum()
        assert optimum / 2 <= mine <= optimum + 1e-9
        ours, best, equal = ours + mine, best + optimum, equal + (mine > optimum - 1e-9)
    assert ours > 0.95 * best  # of random tables, far more tangled than images are


def test_on_images_greedy_and_the_best_matching_are_the_same():
    clean, sizes = simulated.truth(0)
    look = simulated.look(clean, clean, sizes, seed=1)
    matched, _ = finding.match(clean, look.detections, len(sizes))
    found = look.detections
    differ = 0
    for image in range(len(sizes)):
        mine, seen = np.flatnonzero(clean.image == image), np.flatnonzero(found.image == image)
        table = iou(clean.boxes[mine], found.boxes[seen])
        weight = np.where(table >= finding.MATCH_IOU, table * found.scores[seen], 0)
        rows, columns = scipy.optimize.linear_sum_assignment(weight, maximize=True)
        best = np.full(len(mine), -1)
        real = weight[rows, columns] > 0
        best[rows[real]] = seen[columns[real]]
        differ += int((best != matched[mine]).sum())
    assert differ <= 0.01 * len(clean)


def test_matching_ignores_the_class_and_takes_each_detection_once():
    human = labels((0, 0, 0, 10, 10), (1, 1, 0, 11, 10))
    look = detections((1, 0.9, 0, 0, 10, 10))
    matched, overlap = finding.match(human, look, 1)
    np.testing.assert_array_equal(matched, [0, -1])
    np.testing.assert_allclose(overlap, [1, 0])


def test_evidence_of_a_scene():
    human = labels((0, 0, 0, 10, 10), (0, 50, 50, 60, 60), (0, 51, 50, 61, 60), (1, 90, 90, 99, 99))
    look = Look(
        detections(
            (0, 0.8, 0, 0, 10, 8),  # the first box, lower edge elsewhere
            (0, 0.6, 50, 50, 60, 60),  # the second; the third doubles it
            (2, 0.9, 90, 90, 99, 99),  # another class on the fourth
            (1, 0.7, 30, 30, 40, 40),  # nobody drew this one
        )
    )
    evidence, missing = found(human, look)
    np.testing.assert_array_equal(evidence.match, [0, 1, -1, 2])
    np.testing.assert_allclose(evidence.match_iou, [0.8, 1, 0, 1])
    np.testing.assert_array_equal(evidence.agrees, [1, 1, 0, 0])
    np.testing.assert_allclose(evidence.support, [0.64, 0.6, 0.6 * 9 / 11, 0], atol=1e-6)
    np.testing.assert_allclose(evidence.rival, [0, 0, 0, 0.9], atol=1e-6)
    np.testing.assert_array_equal(evidence.rival_label, [-1, -1, -1, 2])
    np.testing.assert_allclose(evidence.crowding, [0, 9 / 11, 9 / 11, 0])
    np.testing.assert_allclose(evidence.lesser, [0, 0, 0.6 * 2 / 11, 0], atol=1e-6)
    np.testing.assert_array_equal(missing.detection, [3])
    np.testing.assert_allclose(missing.score, [0.7], atol=1e-6)
    np.testing.assert_allclose(missing.touching, [0])


def test_evidence_of_several_looks_and_of_stronger_detections():
    human = labels((0, 0, 0, 10, 10))
    first = Look(
        detections((0, 0.9, 0, 0, 10, 10), (0, 0.8, 40, 0, 50, 10), (0, 0.5, 40, 0, 50, 8))
    )
    second = Look(detections((0, 0.9, 0, 0, 10, 8)))
    third = Look(detections())
    merged = merge([first, second, third], 1)
    evidence = finding.human_evidence(human, merged, 1)
    np.testing.assert_allclose(evidence.agreement, [2 / 3])
    missing = finding.missing_evidence(human, merged, evidence.match, 1)
    order = np.argsort(-missing.score)
    np.testing.assert_allclose(missing.shadow[order], [0, 0.8], atol=1e-6)
    np.testing.assert_allclose(missing.agreement, [1 / 3, 1 / 3])
    np.testing.assert_allclose(evidence.steadiness, [(9 / 10 + 8 / 9) / 2], rtol=1e-6)
    np.testing.assert_allclose(missing.steadiness, [1, 1])


def test_each_kind_proposes_what_should_be_there():
    human = labels((0, 0, 0, 10, 10), (0, 50, 50, 60, 60), (0, 51, 50, 61, 60), (1, 90, 90, 99, 99))
    look = Look(
        detections(
            (0, 0.8, 0, 0, 10, 8),
            (0, 0.6, 50, 50, 60, 60),
            (2, 0.9, 90, 90, 99, 99),
            (1, 0.7, 30, 30, 40, 40),
        )
    )
    evidence, missing = found(human, look)
    wishes = np.zeros((4, 5))
    wishes[0, finding.PLACE], wishes[1, finding.SPURIOUS] = 0.8, 0.1
    wishes[2, finding.DUPLICATE], wishes[3, finding.CLASS] = 0.7, 0.9
    result = finding.choose(human, look, evidence, missing, wishes, np.array([0.5]))
    words = [finding.KINDS[kind] for kind in result.kind]
    assert words == ["class", "place", "duplicate", "missing", "spurious"]
    np.testing.assert_array_equal(result.human, [3, 0, 2, -1, 1])
    np.testing.assert_array_equal(result.detection, [2, 0, -1, 3, 1])
    np.testing.assert_array_equal(result.labels, [2, 0, 0, 1, 0])
    np.testing.assert_allclose(result.boxes[1], [0, 0, 10, 8])  # the detection's
    np.testing.assert_allclose(result.boxes[0], human.boxes[3])  # only the class is wrong
    np.testing.assert_allclose(result.score, [0.9, 0.8, 0.7, 0.5, 0.1], atol=1e-6)


def test_of_missing_boxes_in_one_place_the_likeliest_is_found():
    """A detector that wavers between two classes sees one object."""
    look = Look(
        detections(
            (0, 0.9, 0, 0, 10, 10), (1, 0.8, 0, 0, 10, 9), (1, 0.7, 40, 0, 50, 10),
            (2, 0.6, 45, 0, 55, 10), (2, 0.5, 0, 1, 10, 10),
        )
    )  # fmt: skip
    evidence, missing = found(labels(), look)
    chances = np.array([0.6, 0.7, 0.8, 0.9, 0.65])
    result = finding.choose(labels(), look, evidence, missing, np.zeros((0, 5)), chances)
    by_row = dict(zip(result.detection.tolist(), result.score.tolist()))
    assert by_row == pytest.approx({1: 0.7, 2: 0.8, 3: 0.9})


def test_a_kind_that_the_matching_rules_out_is_never_chosen():
    human = labels((0, 0, 0, 10, 10))
    evidence, missing = found(human, Look(detections()))
    wishes = np.array([[0.3, 0.3, 0, 0.1, 0.3]])
    result = finding.choose(human, Look(detections()), evidence, missing, wishes, np.zeros(0))
    assert finding.KINDS[result.kind[0]] == "spurious"  # no other class, no detection, no twin
    np.testing.assert_allclose(result.score, [0.1])


def test_no_box_is_renamed_to_the_class_that_it_has():
    human = labels((0, 0, 0, 10, 10))  # of the only class there is
    look = Look(detections(), np.array([[0.4, 0.6]], np.float32), human.boxes)
    evidence, missing = found(human, look)
    wishes = np.array([[0.1, 0.6, 0.1, 0.1, 0.1]])
    result = finding.choose(human, look, evidence, missing, wishes, np.zeros(0))
    assert finding.KINDS[result.kind[0]] != "class"


def test_ratings_name_the_class_where_no_detection_does():
    human = labels((0, 0, 0, 10, 10))
    ratings = np.array([[0.1, 0.2, 0.6, 0.1]], np.float32)
    look = Look(detections(), ratings, human.boxes)
    evidence, missing = found(human, look)
    np.testing.assert_allclose([evidence.own[0], evidence.other[0]], [0.1, 0.6], atol=1e-6)
    assert evidence.other_label[0] == 2
    assert evidence.kept[0] == 1
    result = finding.choose(
        human, look, evidence, missing, np.array([[1.0, 0, 0, 0, 0]]), np.zeros(0)
    )
    assert result.labels[0] == 2


def test_without_boxes_there_is_nothing_to_find():
    for human, seen in (
        (labels(), detections()),
        (labels((0, 0, 0, 5, 5)), detections()),
        (labels(), detections((0, 0.5, 0, 0, 5, 5))),
    ):
        evidence, missing = found(human, Look(seen))
        result = finding.choose(
            human,
            Look(seen),
            evidence,
            missing,
            np.full((len(human), 5), 0.2),
            np.full(len(missing.detection), 0.2),
        )
        assert len(result) == len(human) + len(seen)
