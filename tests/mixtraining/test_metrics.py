"""What the teacher's metrics say of boxes laid out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.mixtraining import metrics as measuring
from mixtrain_jax.mixtraining.targets import BoxAssignment, TeacherOutput
from mixtrain_jax.types import Detections, Targets, View


def mask(*rows):
    return jnp.array(rows, bool)


# In pixels of a view twice as large as the image: sides of 20, 60 and 200 there, padding.
SIDES = jnp.array([[40, 120, 400, 0], [40, 120, 0, 0]], jnp.float32)
HUMAN = Targets(
    jnp.stack([jnp.zeros_like(SIDES), jnp.zeros_like(SIDES), SIDES, SIDES], -1),
    jnp.zeros((2, 4), int),
    mask([1, 1, 1, 0], [1, 1, 0, 0]),
)
ASSIGNMENT = BoxAssignment(
    kept=mask([1, 0, 1, 0], [0, 0, 0, 0]),
    replaced=mask([0, 0, 0, 0], [0, 1, 0, 0]),
    dropped=mask([0, 1, 0, 0], [1, 0, 0, 0]),
    mending=mask([0, 0], [1, 0]),
    missing=mask([1, 1], [0, 0]),
)
FOUND = Detections(
    jnp.zeros((2, 2, 4)),
    jnp.array([[0.9, 0.8], [0.7, 0.1]]),
    jnp.zeros((2, 2), int),
    mask([1, 1], [1, 0]),
)
RATINGS = jnp.array([[0.9, 0.2, 0.8, 0.5], [0.1, 0.6, 0.5, 0.5]])


def of_teacher(devices=1):
    """The metrics, of `devices` devices that all see the same."""
    view = View(
        image=jnp.zeros((2, 8, 8, 3)), size=jnp.full((2, 2), 8), boxes=HUMAN.boxes,
        matrix=jnp.tile(jnp.diag(jnp.array([2.0, 2, 1])), (2, 1, 1)), labels=HUMAN.labels,
        valid=HUMAN.valid, index=jnp.arange(2),
    )  # fmt: skip
    output = TeacherOutput(FOUND, HUMAN, RATINGS, HUMAN, ASSIGNMENT, mask(1, 0))
    told = measuring.teacher_metrics(output, view)
    told = jax.tree.map(lambda x: x * devices, told)
    return {name: float(value) for name, value in measuring.as_numbers(told).items()}


@pytest.mark.parametrize("devices", [1, 3])
def test_counts_are_an_image_and_ratios_are_of_boxes(devices):
    assert of_teacher(devices) == pytest.approx(
        {
            "boxes/kept": 1, "boxes/replaced": 0.5, "boxes/dropped": 1, "boxes/mending": 0.5,
            "boxes/missing": 1, "boxes/human": 2.5,
            "teacher/easy": 3 / 5, "teacher/easy_small": 1 / 2, "teacher/easy_medium": 1 / 2,
            "teacher/easy_large": 1, "teacher/rating": (0.9 + 0.2 + 0.8 + 0.1 + 0.6) / 5,
            "teacher/score": (0.9 + 0.8 + 0.7) / 3, "teacher/at_limit": 1,
        }
    )  # fmt: skip


def test_where_there_is_nothing_ratios_are_zero():
    nothing = measuring.Ratio(jnp.float32(0), jnp.float32(0))
    assert measuring.as_numbers({"x": nothing, "y": jnp.float32(2)}) == {"x": 0, "y": 2}
    half = measuring.Ratio(jnp.float32(0.2), jnp.float32(0.4))  # a mean over parts of a batch
    np.testing.assert_allclose(measuring.as_numbers({"x": half})["x"], 0.5)
