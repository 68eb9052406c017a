"""The pictures of a run: each box in the colour of what became of it."""

import numpy as np

from mixtrain_jax.config import recipes
from mixtrain_jax.mixtraining.step import TeacherOutput
from mixtrain_jax.mixtraining.targets import BoxAssignment
from mixtrain_jax.training import pictures
from mixtrain_jax.types import Detections, Targets

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
    monkeypatch.setattr(pictures.draw, "of_view", lambda *_: np.zeros((32, 32, 3), np.uint8))
    pictures._strong(None, output, 0, "abc", recipes.base().data)
    assert {text: color for text, (color, _) in drawn.items()} == EXPECTED
    assert drawn["a human"][1] == boxes[0, 0].tolist()  # where it is a target
    assert drawn["b dropped"][1] == human.boxes[0, 1].tolist()  # where people drew it
    assert drawn["c replaced"][1] == boxes[0, 2].tolist()
    assert drawn["a missing"][1] == boxes[0, 3].tolist()
