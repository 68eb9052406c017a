"""Where parameters come from: what fits is taken, what does not is named, nothing else."""

import json

import jax
import numpy as np
import pytest

from mixtrain_jax.errors import UserError
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import checkpoint
from mixtrain_jax.training import warm_start
from tests.mixtraining import small


@pytest.fixture(scope="module")
def model():
    return detector.build(small.config().model)


def start(model, source, categories=(), config=None):
    config = config or small.config()
    config.seed, config.init_from = 3, str(source)
    return warm_start.initial_parameters(model, config, categories)


def test_nothing_to_start_from_is_the_seed(model):
    ours = start(model, "")
    jax.tree.map(np.testing.assert_array_equal, ours, detector.init(model, 3))


def test_a_backbone_alone_leaves_the_rest_as_initialised(model, tmp_path, capsys):
    params = jax.device_get(detector.init(model, 5))
    checkpoint.save_weights(tmp_path / "weights", {"backbone": params["backbone"]})
    source = tmp_path / "weights"
    ours = start(model, source)
    jax.tree.map(np.testing.assert_array_equal, ours["backbone"], params["backbone"])
    jax.tree.map(np.testing.assert_array_equal, ours["rpn"], detector.init(model, 3)["rpn"])
    assert capsys.readouterr().out.endswith("; as initialised: fpn, roi_head, rpn\n")


def test_as_many_classes_of_other_names_leave_the_logits_as_initialised(model, tmp_path, capsys):
    params = jax.device_get(detector.init(model, 5))
    names = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "owl"))]
    meta = {"categories": names}
    checkpoint.save_weights(tmp_path / "weights", params, meta=meta)
    source = tmp_path / "weights"
    same = start(model, source, names)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    capsys.readouterr()
    ours = start(model, source, names[::-1])
    fresh = detector.init(model, 3)
    heads = [params["roi_head"]["head0"] for params in (ours, fresh)]
    jax.tree.map(np.testing.assert_array_equal, *[head["logits"] for head in heads])
    jax.tree.map(np.testing.assert_array_equal, ours["backbone"], params["backbone"])
    assert "as initialised: roi_head/head0/logits" in capsys.readouterr().out


def test_what_gives_arrays_another_meaning_is_told(model, tmp_path, caplog):
    params = jax.device_get(detector.init(model, 5))
    config = small.config()
    meta = {"config": json.loads(json.dumps(config.to_dict()))}
    checkpoint.save_weights(tmp_path / "weights", params, meta=meta)
    source = tmp_path / "weights"
    start(model, source, config=config)
    assert "trained otherwise" not in caplog.text
    style = {"caffe": "pytorch", "pytorch": "caffe"}[config.model.backbone.style]
    config.model.backbone.style = style
    config.data.std = (1.0, 1.0, 1.0)
    start(model, source, config=config)
    assert f"config.model.backbone.style is {style}, and was" in caplog.text
    assert "config.data.std is (1.0, 1.0, 1.0), and was (58.395, 57.12, 57.375)" in caplog.text
    assert "config.data.mean" not in caplog.text
    config.model.rpn.anchor_scale *= 2
    start(model, source, config=config)
    assert "config.model.rpn.anchor_scale is" in caplog.text
    caplog.clear()
    checkpoint.save_weights(tmp_path / "backbone", {"backbone": params["backbone"]}, meta=meta)
    start(model, tmp_path / "backbone", config=config)
    assert "anchor_scale" not in caplog.text and "style" in caplog.text


def test_weights_of_something_else_are_refused(model, tmp_path):
    checkpoint.save_weights(tmp_path / "weights", {"head": {"kernel": np.zeros((3, 3))}})
    with pytest.raises(UserError, match="none of its arrays fits this model"):
        start(model, tmp_path / "weights")


def test_parts_are_named_by_the_largest_that_is_whole():
    taken = {("a", "x"), ("b", "c", "x")}
    left = {("a", "y"), ("b", "d", "x"), ("b", "d", "y"), ("e", "x")}
    assert warm_start.outline(left, taken) == ["a/y", "b/d", "e"]


def test_a_checkpoint_of_other_classes_gives_all_but_the_last_layers(model, tmp_path, capsys):
    """They are as many here, so all arrays fit; but they would name the wrong things."""
    params = jax.device_get(detector.init(model, 5))
    old, new = ([{"id": 1, "name": f"{kind} {i}"} for i in range(3)] for kind in ("old", "new"))
    checkpoint.save_weights(tmp_path / "weights", params, meta={"categories": old})
    ours = start(model, tmp_path / "weights", new)
    head, theirs = ours["roi_head"]["head0"], params["roi_head"]["head0"]
    assert (head["logits"]["kernel"] != theirs["logits"]["kernel"]).any()
    np.testing.assert_array_equal(head["deltas"]["kernel"], theirs["deltas"]["kernel"])  # agnostic
    np.testing.assert_array_equal(head["fc1"]["kernel"], theirs["fc1"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, ours["backbone"], params["backbone"])
    assert capsys.readouterr().out.endswith("; as initialised: roi_head/head0/logits\n")


def test_classes_are_others_where_both_are_named():
    cat, dog, also = ({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 7, "name": "cat"})
    assert warm_start.other_classes([cat, dog], [dog, cat])
    assert warm_start.other_classes([cat], [cat, dog])
    assert not warm_start.other_classes([cat, dog], [also, dog])
    assert not warm_start.other_classes([], [cat]) and not warm_start.other_classes([cat], [])


def test_arrays_of_another_shape_or_name_do_not_fit():
    ours = {("a",): np.zeros(3), ("b",): np.zeros((2, 2)), ("c",): np.zeros(1)}
    theirs = {("a",): np.ones(3), ("b",): np.ones(4), ("d",): np.ones(1)}
    assert list(warm_start.fitting(ours, theirs)) == [("a",)]
