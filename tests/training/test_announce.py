"""What a run says and refuses before its first step."""

import dataclasses
import types

import numpy as np
import pytest

from mixtrain_jax.config import recipes
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.errors import UserError, memory_in_one_line
from mixtrain_jax.inspection import memory_estimate
from mixtrain_jax.runtime.machine import Machine
from mixtrain_jax.training import announce, warm_start
from tests.mixtraining import small


def config(val=(64, 64), **changes):
    changed = small.config(**changes)
    changed.data.train.update(scale=(64, 48, 64), buckets=((64, 64),))
    changed.data.val.update(scale=val, buckets=((64, 64),))
    return resolve(changed, classes=small.CLASSES)


def images(*sizes):
    return types.SimpleNamespace(sizes=np.array(sizes, np.int32))


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(announce.logging, "warning", lambda text, *a: said.append(text % a))
    return said


def test_memory_is_told_warned_about_and_refused(capsys, warnings):
    whole = memory_estimate.of_training(config(), (64, 64), 1).total

    def there(share):
        return Machine("cpu", "cpu", 1, 1, round(whole * share), 2)

    announce.check_memory(config(), there(1.2))
    assert "a step in 64x64 takes about" in capsys.readouterr().out
    assert warnings == []
    announce.check_memory(config(), there(0.9))
    assert "config.accumulate=2" in warnings[0]
    with pytest.raises(UserError, match=r"are free: set config.model.remat.* config.max_memory"):
        announce.check_memory(config(), there(0.7))
    announce.check_memory(config(max_memory=0), there(0.7))


def test_bfloat16_on_gpus_without_units_for_it_is_a_warning(warnings):
    old = Machine("gpu", "an old GPU", 1, 1, None, 2, bfloat16=False)
    announce.warn_dtype(config(model__dtype="bfloat16"), dataclasses.replace(old, bfloat16=True))
    announce.warn_dtype(config(model__dtype="float32"), old)
    assert warnings == []
    announce.warn_dtype(config(model__dtype="bfloat16"), old)
    assert "try config.model.dtype=float32" in warnings[0]


def test_padding_of_each_bucket():
    told = announce.describe_padding(config(), images((64, 64)))
    share = 1 - np.mean([side**2 for side in range(48, 65)]) / 64**2
    assert told == f"64x64 100% of views, {share:.0%} empty"


def test_a_val_scale_outside_of_trainings_is_a_warning(warnings):
    train = images((480, 640), (480, 640))
    announce.warn_other_scale(config(), train, images((480, 640)))
    assert warnings == []
    far = config(val=(256, 200))
    announce.warn_other_scale(far, train, images((480, 640)))
    assert "short side of 192 pixels, training images with 48 to 48" in warnings[0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, ""),
        (
            {"replace_score_threshold": 0.5},
            "replace_score_threshold = 0.5 is not above 0.9, the",
        ),
        ({"replace_score_threshold": 0.5, "mend_normal": True}, ""),
        (
            {"replace_score_threshold": 0.5, "mend_normal": True, "normal_gt_score_threshold": 0.5},
            "is not above 0.5",
        ),
        ({"replace_score_threshold": 0.5, "gt_score_threshold": 0.4}, ""),
        ({"replace_score_threshold": 0.5, "mixed_augmentation": False}, ""),
        ({"replace_score_threshold": 0.5, "auto_share": True}, ""),
        ({"normal_gt_score_threshold": 0.1}, "normal_gt_score_threshold needs mend_normal"),
        ({"normal_gt_score_threshold": 0.1, "mend_normal": True}, ""),
        ({"must_agree": True}, ""),
        ({"auto_count": 0.3, "replace_boxes": False}, ""),
        ({"auto_count": 0.3, "replace_boxes": False, "add_missing": False}, "none is a target"),
        ({"normal_gt_score_threshold": 0.1, "enabled": False}, ""),
    ],
)
def test_switches_of_the_method_without_effect_are_warned_of(warnings, fields, told):
    method = recipes.base().mixtraining
    method.update(fields)
    announce.warn_fields_without_effect(method)
    assert len(warnings) == bool(told) and told in "".join(warnings)


def test_more_boxes_than_the_detector_finds_is_a_warning(warnings):
    room = config().model.roi_head.detections
    for counts, told in (([0, room], ""), ([room + 1, 2, room + 5], "2 images of train have more")):
        boxes = types.SimpleNamespace(counts=np.array(counts))
        announce.warn_crowded_images(config(), types.SimpleNamespace(boxes=boxes))
        assert bool(warnings) == bool(told) and told in "".join(warnings)


def test_frozen_random_weights_are_refused():
    warm_start.require_weights(config())  # group norm
    for changes, file in (
        ({"model__backbone__norm": "frozen_batch"}, "resnet50_msra-5891d200.pth"),
        ({"model__backbone__name": "swin"}, "swin_small_patch4_window7_224.pth"),
    ):
        with pytest.raises(UserError) as refused:
            warm_start.require_weights(config(**changes))
        line = str(refused.value)
        assert file in line and "tools/convert_torch.py" in line and "--from_scratch" in line
        warm_start.require_weights(config(**changes, init_from="weights/x"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 125. GiB"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 134217728 bytes.\nStack"),
    ],
)
def test_out_of_memory_is_one_line(error):
    with pytest.raises(UserError, match=r"^out of memory: do less \((Un|RES)[^\n]*\)$"):
        with memory_in_one_line("do less"):
            raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED: Quota"):
        with memory_in_one_line("do less"):
            raise RuntimeError("RESOURCE_EXHAUSTED: Quota exceeded")


@pytest.mark.parametrize(
    ("patience", "every", "val", "warned"),
    [(0, 0, True, False), (3, 0, True, True), (3, 20, True, False), (3, 25, True, True),
     (3, 20, False, True), (3, 20, "empty", True), (0, 20, "empty", False)],
)  # fmt: skip
def test_a_patience_without_effect_is_a_warning(warnings, patience, every, val, warned):
    asked = types.SimpleNamespace(
        steps=100, eval=types.SimpleNamespace(patience=patience, every=every)
    )
    boxes = types.SimpleNamespace(counts=np.array([0, 0 if val == "empty" else 2]))
    announce.warn_patience(asked, types.SimpleNamespace(boxes=boxes) if val else None)
    assert bool(warnings) == warned
