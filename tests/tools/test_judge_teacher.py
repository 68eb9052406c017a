"""What a teacher made of one hand-made image, counted."""

import numpy as np

from mixtrain_jax.mixtraining.targets import BoxAssignment
from tools import judge_teacher


def boxes(*rows):
    return np.array([row[:4] for row in rows], np.float32), np.array([row[4] for row in rows])


def test_counts_of_an_image():
    truth = boxes((0, 0, 10, 10, 0), (20, 0, 30, 10, 1), (40, 0, 50, 10, 2), (60, 0, 70, 10, 0))
    # The first is well drawn, the second half beside its object, two objects have no box.
    human = boxes((0, 0, 10, 10, 0), (24, 0, 34, 10, 1))
    # One mends the second; one finds a missing one, one has its wrong class, one is nowhere.
    pseudo = boxes(
        (20, 0, 31, 10, 1),
        (40, 0, 50, 11, 2),
        (60, 0, 70, 10, 1),
        (90, 0, 99, 9, 0),
        (0, 0, 0, 0, 0),
    )
    assignment = BoxAssignment(
        kept=np.array([True, False]),
        replaced=np.array([False, True]),
        dropped=np.array([False, False]),
        mending=np.array([True, False, False, False, False]),
        missing=np.array([False, True, True, True, False]),
    )
    tally = judge_teacher.Tally()
    tally.add(human, human[0] * [1, 1, 1, 0.5], pseudo, assignment, truth)
    assert (tally.kept_before, tally.kept_after) == (1, 0.5)
    assert (tally.human, tally.kept, tally.replaced, tally.dropped) == (2, 1, 1, 0)
    assert (tally.badly_drawn, tally.replaced_badly_drawn) == (1, 1)
    # The second human box shares 6 of 14 columns with its object: not the same by IoU 0.5.
    assert tally.unlabelled == 3
    assert (tally.found, tally.found_rightly, tally.unlabelled_found) == (3, 1, 1)
    np.testing.assert_allclose([tally.before, tally.after], [6 / 14, 10 / 11], rtol=1e-6)
    assert (tally.mending, tally.mending_rightly, tally.mended) == (1, 1, 1)
    assert "precision 0.333, recall 0.333" in tally.report()


def test_a_found_box_that_stands_in_for_a_dropped_one():
    truth = boxes((0, 0, 10, 10, 0), (20, 0, 30, 10, 1))
    human = boxes((2, 0, 12, 10, 0), (50, 0, 60, 10, 1), (0, 0, 10, 10, 1))
    pseudo = boxes((1, 0, 11, 10, 0), (20, 0, 30, 10, 0))
    dropped, none = np.array([True, True, False]), np.zeros(3, bool)
    assignment = BoxAssignment(
        kept=~dropped, replaced=none, dropped=dropped,
        mending=np.array([True, False]), missing=np.array([False, True]),
    )  # fmt: skip
    tally = judge_teacher.Tally()
    tally.add(human, human[0], pseudo, assignment, truth)
    figures = tally.figures()
    assert (figures["mending an image"], figures["mending precision"]) == (1, 1)
    before, after = figures["mended IoU before"], figures["mended IoU after"]
    np.testing.assert_allclose([before, after], [8 / 12, 9 / 11], rtol=1e-6)
    assert tally.mended == 1 and tally.replaced == 0
    assert figures["found precision"] == 0


def test_an_image_without_boxes():
    tally = judge_teacher.Tally()
    nothing = np.zeros([0, 4], np.float32), np.zeros([0], np.int64)
    none = np.zeros([0], bool)
    tally.add(nothing, nothing[0], nothing, BoxAssignment(none, none, none, none, none), nothing)
    assert tally == judge_teacher.Tally(images=1)
    assert "precision -, recall -" in tally.report()
