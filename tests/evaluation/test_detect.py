"""The detector from a file's pixels to boxes in the photograph, against the released code."""

import jax
import numpy as np
import pytest

from mixtrain_jax import config as configs
from mixtrain_jax.data import records, views
from mixtrain_jax.evaluation import detect
from mixtrain_jax.runtime import parallel
from tests.golden import micro_cascade as golden


@pytest.fixture(scope="module")
def detector():
    """The released weights in our detector, with its test scale."""
    config = configs.load(str(configs.ROOT / "configs" / "cascade.py"))
    golden.model_config(config.model)
    config.data.val.scale = (333, 200)
    params = parallel.place(golden.params(detect.parameter_shapes(config)))
    return config, detect.predictor(config), params


def share_within(theirs, found, distance, margin):
    """The share of `theirs` that has a detection of its class as near in place and in score."""
    valid = np.asarray(found.valid[0])
    boxes, scores, labels = (
        np.asarray(x[0])[valid] for x in (found.boxes, found.scores, found.labels)
    )
    near = [
        (
            (np.abs(boxes - row[:4]).max(axis=1) < distance)
            & (np.abs(scores - row[4]) < margin)
            & (labels == int(row[5]))
        ).any()
        for row in theirs
    ]
    return np.mean(near)


@pytest.mark.golden
@pytest.mark.parametrize(("name", "key"), [("img2_400x260", "2"), ("img3_180x420", "3")])
def test_resized_pictures_give_nearly_the_released_boxes(detector, name, key):
    # These weights magnify a grey level of difference in resizing a hundredfold.
    config, predict, params = detector
    picture = records.decode((golden.FOLDER / "images" / f"{name}.png").read_bytes())
    view = jax.tree.map(np.asarray, views.single_view(picture, config))
    (_, found, exact) = next(detect.detect(predict, params, [view]))
    assert exact.all()
    theirs = golden.arrays()[f"detections{key}"]
    assert share_within(theirs, found, 1, 0.02) >= 0.75
    assert share_within(theirs, found, 5, 0.1) >= 0.88
