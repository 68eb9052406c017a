"""The pictures of a run: each box in the colour of what became of it."""

import dataclasses

import numpy as np
import pytest

from mixtrain_jax.config import recipes
from mixtrain_jax.mixtraining.targets import BoxAssignment, TeacherOutput
from mixtrain_jax.training import pictures
from mixtrain_jax.types import Detections, Targets
from tests.mixtraining import small

# By the README: green people's, red left out, yellow drawn better, blue found.
EXPECTED = {
    "a human": (80, 200, 120),
    "b dropped": (230, 60, 110),
    "c replaced": (255, 190, 40),
    "a missing": (90, 160, 255),
}


def test_a_box_has_the_colour_of_what_became_of_it(monkeypatch):
    boxes = np.float32([[2, 2, 12, 12], [20, 2, 30, 12], [2, 20, 12, 30], [20, 20, 30, 30]])[None]
    labels = np.array([[0, 1, 2, 0]])
    human = Targets(boxes[:, :2] + 1, labels[:, :2], np.ones((1, 2), bool))  # as people drew them
    yes, no = np.array([[True, False]]), np.array([[False, True]])
    assignment = BoxAssignment(kept=yes, replaced=no & False, dropped=no, mending=yes, missing=no)
    output = TeacherOutput(
        Detections(boxes[:, 2:], np.ones((1, 2)), labels[:, 2:], np.ones((1, 2), bool)),
        human, np.ones((1, 2)), Targets(boxes, labels, np.ones((1, 4), bool)), assignment,
        np.ones(1, bool),
    )  # fmt: skip
    drawn = {}

    def draw_boxes(picture, boxes, texts, colors, side):
        for box, text, color in zip(boxes.tolist(), texts, colors, strict=True):
            drawn[text] = color, box
        return picture

    monkeypatch.setattr(pictures.draw, "draw_boxes", draw_boxes)
    monkeypatch.setattr(pictures, "of_view", lambda *_: np.zeros((32, 32, 3), np.uint8))
    pictures._strong(None, output, 0, "abc", recipes.base().data)
    assert {text: color for text, (color, _) in drawn.items()} == EXPECTED
    assert drawn["a human"][1] == boxes[0, 0].tolist()  # where it is a target
    assert drawn["b dropped"][1] == human.boxes[0, 1].tolist()  # where people drew it
    assert drawn["c replaced"][1] == boxes[0, 2].tolist()
    assert drawn["a missing"][1] == boxes[0, 3].tolist()


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_a_view_is_drawn_as_the_picture_it_was_made_of(channels):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (20, 30, 3), np.uint8)
    mean = (123.675, 116.28, 103.53)
    image = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    image[1, :20, :30] = picture if channels == "rgb" else picture[..., ::-1]
    shown = np.zeros((2, 32, 32), bool)
    shown[1, :20, :30] = True
    shown[1, 4:8, 3:17] = False
    view = dataclasses.replace(
        small.view(0, 2),
        image=image,
        size=np.array([[32, 32], [20, 30]], np.int32),
        shown=np.packbits(shown, axis=-1),
    )
    back = pictures.of_view(view, 1, mean, channels)
    hole = (124, 116, 104) if channels == "rgb" else (104, 116, 124)
    assert (back[4:8, 3:17] == hole).all()
    back, picture[4:8, 3:17] = back.copy(), back[4:8, 3:17]
    np.testing.assert_array_equal(back, picture)
