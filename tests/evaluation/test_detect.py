"""The detector from a file's pixels to boxes in the image, against the released code."""

import re

import jax
import numpy as np
import pytest

from mixtrain_jax.config import load as configs
from mixtrain_jax.data.input.single import single_view
from mixtrain_jax.data.sources import image_files
from mixtrain_jax.evaluation import detect
from mixtrain_jax.runtime import parallel
from tests.golden import micro_cascade as golden
from tests.mixtraining import small


@pytest.fixture(scope="module")
def detector():
    """The released weights in our detector, with its test scale."""
    config = configs.load(str(configs.ROOT / "configs" / "cascade.py"))
    golden.model_config(config.model)
    config.data.val.scale = (333, 200)
    params = parallel.replicate(golden.params(detect.parameter_shapes(config.model)))
    return config, detect.predictor(config.model, config.data, config.eval.dtype), params


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
    picture = image_files.decode((golden.FOLDER / "images" / f"{name}.png").read_bytes())
    view = jax.tree.map(np.asarray, single_view(picture, config.data))
    (_, found, exact) = next(detect.detect(predict, params, [view]))
    assert exact.all()
    theirs = golden.arrays()[f"detections{key}"]
    assert share_within(theirs, found, 1, 0.02) >= 0.75
    assert share_within(theirs, found, 5, 0.1) >= 0.88


@pytest.mark.parametrize(("dtype", "exact"), [("float32", True), ("bfloat16", False)])
def test_products_of_float32_are_not_rounded(monkeypatch, dtype, exact):
    """What the compiler is told; by default GPUs use TF32 and TPUs bfloat16 for float32."""
    config = small.config()
    monkeypatch.setattr(parallel, "map_predict", lambda predict: predict)
    predict = detect.predictor(config.model, config.data, dtype)
    shapes = detect.parameter_shapes(config.model)
    views = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), small.view(0, 1)
    )
    text = jax.jit(predict).lower(shapes, views).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", text)
    told = [line for line in products if "HIGHEST" in line]
    if exact:
        assert len(products) > 20 and told == products
    else:
        assert len(told) < len(products) / 2
