"""Which boxes the teacher rates: those of the weak view, or of the strong view mapped back."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.config import load as configs
from mixtrain_jax.data.views import geometry
from mixtrain_jax.mixtraining import step as steps
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.mixtraining.criteria import Criteria
from mixtrain_jax.types import Detections, View

SIZE = np.array([400, 400])
BOX = np.array([[150.0, 170, 250, 230]], np.float32)  # and the strong view cuts the second in half
BOXES = np.concatenate([BOX, [[0.0, 0, 100, 60]]]).astype(np.float32)


def view(boxes, matrix):
    """One image with boxes, as a view that shows it moved by a matrix."""
    moved, valid = geometry.transform_boxes(boxes, matrix, SIZE)
    return View(
        image=np.zeros([1, 8, 8, 3], np.float32),
        size=SIZE[None].astype(np.int32),
        matrix=np.asarray(matrix, np.float32)[None],
        boxes=moved[None],
        labels=np.array([[1, 0]], np.int32),
        valid=valid[None],
        index=np.zeros(1, np.int32),
    )


def rated(monkeypatch, which, matrix):
    """The boxes that the teacher is asked to rate, of a strong view with this matrix."""
    asked = []

    def score_boxes(pyramid, size, boxes):
        asked.append(np.asarray(boxes[0]))
        return jnp.array([[[0.2, 0.8], [0.3, 0.7]]])

    found = Detections(
        jnp.zeros([1, 1, 4]), jnp.zeros([1, 1]), jnp.zeros([1, 1], jnp.int32),
        jnp.zeros([1, 1], bool),
    )  # fmt: skip
    stub = types.SimpleNamespace(
        features=lambda image, size, keys: (jnp.zeros([1, 2, 2, 1]),),
        detect=lambda pyramid, size: (found, jnp.ones(1, bool)),
        score_boxes=score_boxes,
    )
    monkeypatch.setattr(teaching, "bind", lambda model, params: stub)
    method = configs.load("faster").mixtraining
    method.rate_boxes = which
    weak, strong = view(BOXES, np.eye(3)), view(BOXES, matrix)
    criteria = Criteria(jnp.float32(0.9))
    look = teaching.teacher_predictions(None, None, weak, strong)
    output, _ = steps.teacher_supervision(
        None, None, look, strong, method, criteria, rating_threshold=0.9, soften=False
    )
    return asked[0], np.asarray(output.ratings[0])


def overlap(one, other):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    both = np.prod(np.maximum(high - low, 0))
    return both / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - both)


def test_the_weak_views_own_boxes_are_rated_by_default(monkeypatch):
    assert configs.load("faster").mixtraining.rate_boxes == "weak"
    assert configs.load("faster:released").mixtraining.rate_boxes == "strong"
    turned = geometry.rotate(27, SIZE)
    boxes, ratings = rated(monkeypatch, "weak", turned)
    np.testing.assert_array_equal(boxes, BOXES)
    np.testing.assert_allclose(ratings, [0.7999, 0.3], atol=1e-3)  # each of its own class


def test_a_box_that_the_strong_view_cuts_is_rated_whole(monkeypatch):
    shifted = geometry.translate(-50, 0)
    boxes, _ = rated(monkeypatch, "weak", shifted)
    np.testing.assert_array_equal(boxes[1], [0, 0, 100, 60])
    boxes, _ = rated(monkeypatch, "strong", shifted)
    np.testing.assert_allclose(boxes[1], [50, 0, 100, 60], atol=1e-3)


@pytest.mark.parametrize(("degrees", "expected"), [(15, 0.87), (21, 0.76), (27, 0.63)])
def test_mapped_back_a_turned_box_is_smaller_than_the_object(monkeypatch, degrees, expected):
    boxes, _ = rated(monkeypatch, "strong", geometry.rotate(degrees, SIZE))
    assert overlap(boxes[0], BOX[0]) == pytest.approx(expected, abs=0.006)
    shorter = np.cos(np.radians(degrees)) ** 2  # mid-points of edges, there and back
    half = np.array([50, 30]) * shorter
    np.testing.assert_allclose(boxes[0], [*(200 - half), *(200 + half)], rtol=1e-5)
