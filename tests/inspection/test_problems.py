"""What is odd about boxes: each kind planted in arrays, and found where it was planted."""

import numpy as np
import pytest

from mixtrain_jax.config import recipes
from mixtrain_jax.inspection import boxes
from mixtrain_jax.inspection.problems import DOUBT, MISTAKE, NOTE
from mixtrain_jax.ops import boxes as box_ops

SCALE = (1333, 800)
GOOD = [(0, 100, 100, 220, 200), (1, 300, 150, 420, 290)]


def table(per_image, size=(480, 640), names=("cat", "dog")):
    """A table of images with boxes (label, x1, y1, x2, y2) each."""
    rows = np.repeat(np.arange(len(per_image)), [len(each) for each in per_image])
    flat = np.array([box for each in per_image for box in each], float).reshape(-1, 5)
    return boxes.Table(
        split="train",
        files=[f"{row}.jpg" for row in range(len(per_image))],
        names=list(names),
        sizes=np.tile(np.array(size, np.int32), (len(per_image), 1)),
        rows=rows,
        labels=flat[:, 0].astype(int),
        boxes=flat[:, 1:],
    )


def problems(*per_image, scale=SCALE, model=None):
    found = boxes.check(table(per_image), scale, model or recipes.base().model)
    return {(each.kind, each.what): each for each in found}


def only(found, word):
    (problem,) = [each for (_, what), each in found.items() if word in what]
    return problem


def test_good_boxes_have_no_problems():
    assert problems(GOOD, GOOD[:1], []) == {}


def test_one_box_with_two_classes():
    problem = only(problems(GOOD, [*GOOD, (1, 101, 100, 221, 200)]), "two classes")
    assert (problem.kind, problem.count) == (MISTAKE, 1)
    assert problem.where == ("1.jpg: cat at 100 100 220 200 and dog",)


def test_boxes_drawn_twice_unless_they_are_equal():
    near = (0, 101, 100, 221, 200)  # an IoU of .98
    assert only(problems([GOOD[0], near]), "drawn twice").count == 1
    assert problems([GOOD[0], GOOD[0]]) == {}  # trained on once, which the reader tells
    apart = (0, 110, 100, 230, 200)  # .85
    assert problems([GOOD[0], apart]) == {}


def test_boxes_of_the_whole_image_and_of_odd_shape_and_outside():
    whole, long, out = (0, 0, 0, 640, 480), (0, 10, 10, 400, 22), (1, 600, 400, 700, 460)
    found = problems(*[GOOD] * 20, [whole], [long], [out])
    assert only(found, "whole image").where == ("20.jpg: cat at 0 0 640 480",)
    assert only(found, "whole image").kind == MISTAKE
    assert only(found, "as long as wide").where == ("21.jpg: cat at 10 10 400 22",)
    assert only(found, "half outside").where == ("22.jpg: dog at 600 400 700 460",)
    # Where every image has one it is what people meant.
    assert only(problems([whole], [whole]), "whole image").kind == DOUBT


def test_images_with_the_boxes_of_another():
    three = [*GOOD, (0, 10, 300, 80, 400)]
    found = problems(three, GOOD, three[::-1], GOOD)
    assert only(found, "of another image").where == ("2.jpg as 0.jpg",)


@pytest.mark.parametrize(("side", "small"), [(9.0, True), (10.5, False)])
def test_objects_below_the_finest_stride(side, small):
    """At 200 of 480 pixels a box of 9.6 is 4 pixels wide."""
    found = problems([(0, 50, 50, 50 + side, 50 + side)], scale=(1333, 200))
    assert any("finest stride" in what for _, what in found) == small


def test_objects_that_no_anchor_can_be_matched_with():
    rpn = recipes.base().model.rpn  # the smallest anchor has a side of 32 pixels
    sides = np.array([[32, 32], [16, 16], [17.6, 17.6], [4, 400]], float)
    ious = boxes.best_ious(sides, rpn.anchor_scale, rpn.anchor_ratios)
    np.testing.assert_allclose(ious[:3], [1, 0.25, (17.6 / 32) ** 2], rtol=1e-6)
    # Against the detector's own IoU, with anchors about the origin.
    shapes = [
        (8 * stride / ratio**0.5, 8 * stride * ratio**0.5)
        for stride in (4, 8, 16, 32, 64)
        for ratio in rpn.anchor_ratios
    ]
    anchors, centred = (
        np.concatenate([-np.array(each) / 2, np.array(each) / 2], axis=1)
        for each in (shapes, sides)
    )
    best = np.asarray(box_ops.iou(centred.astype(np.float32), anchors.astype(np.float32))).max(1)
    np.testing.assert_allclose(ious, best, rtol=1e-4)
    small = [(0, 0, 0, 10, 10), *GOOD]
    problem = only(problems(small, *[GOOD] * 10, scale=(640, 480)), "overlap no anchor")
    assert (problem.count, problem.kind) == (1, NOTE)
    problem = only(problems(small, scale=(640, 480)), "overlap no anchor")  # one of three
    assert (problem.count, problem.kind) == (1, DOUBT)


@pytest.mark.parametrize(("detections", "proposals"), [(3, 1000), (100, 3), (100, 1000)])
def test_more_objects_than_a_detector_finds(detections, proposals):
    model = recipes.base().model
    model.roi_head.detections, model.rpn.test_proposals = detections, proposals
    four = [(0, x, 100, x + 60, 160) for x in (0, 100, 200, 300)]
    found = problems(four, four[:3], model=model)
    if min(detections, proposals) == 100:
        assert not found
        return
    problem = only(found, "more objects than a detector finds")
    assert (problem.kind, problem.where) == (DOUBT, ("0.jpg: 4",))
    assert ("detections = 3" if detections == 3 else "test_proposals = 3") in problem.what
