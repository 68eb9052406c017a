"""A detector that says what a test wants, and views of one image for it."""

import jax.numpy as jnp
import numpy as np

from mixtrain_jax.config import recipes
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.types import Detections, View


def one(x):
    return x


def config(**fields):
    options = recipes.base().mixtraining
    options.update(fields)
    return options


def view(boxes, labels, width=40, side=64):
    """One image, `width` of its `side` columns used, every column its own grey."""
    image = np.zeros((1, side, side, 3), np.float32)
    image[:, :, :width] = np.arange(1, width + 1)[:, None]
    count = len(boxes)
    return View(
        image=jnp.asarray(image),
        size=jnp.array([[side, width]]),
        matrix=jnp.eye(3)[None],
        boxes=jnp.asarray(boxes, jnp.float32).reshape(1, count, 4),
        labels=jnp.asarray(labels, jnp.int32)[None],
        valid=jnp.ones((1, count), bool),
        index=jnp.zeros(1, jnp.int32),
    )


def detections(boxes, labels, scores):
    return Detections(
        jnp.asarray(boxes, jnp.float32)[None],
        jnp.asarray(scores, jnp.float32)[None],
        jnp.asarray(labels, jnp.int32)[None],
        jnp.ones((1, len(boxes)), bool),
    )


class Stub:
    """Stands in for the detector.

    Attributes:
      found: `upright` and `mirrored`, what it finds in either view; `probabilities`, what it says
        of any boxes; `asked`, the boxes and the stage that it was last asked about.
    """

    def __init__(self):
        self.found, self.seen = {}, []

    def features(self, image, size, keys=None):
        self.seen.append(np.asarray(image))
        return (image,)

    def detect(self, pyramid, size):
        upright = float(pyramid[0][0, 0, 0, 0]) == 1
        return self.found["upright" if upright else "mirrored"], jnp.ones(1, bool)

    def score_boxes(self, pyramid, size, boxes, stage=None):
        self.found["asked"] = boxes, stage
        return self.found["probabilities"]


def seen_from(matrix, size=(64, 40)):
    """A teacher's features of a view from which the matrix leads to the student's."""
    there = jnp.asarray(matrix, jnp.float32)[None]
    size = jnp.array([size])
    return teaching.TeacherFeatures((jnp.ones((1, 1, 1, 1)),), size, there, jnp.linalg.inv(there))
