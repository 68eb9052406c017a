"""Recipes for data sets and machines: what is chosen, and that the text is what was chosen."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from mixtrain_jax.config import load as configs
from mixtrain_jax.config import recipes
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.errors import UserError
from mixtrain_jax.inspection import boxes, memory_estimate, recipe, weights
from mixtrain_jax.inspection.facts import Facts, how, where
from mixtrain_jax.inspection.weights import PretrainedWeights
from mixtrain_jax.models import detector
from mixtrain_jax.runtime.machine import Machine

GIB = 2**30
CPU = Machine("cpu", "cpu", 1, 1, 16 * GIB, 2)
GPU = Machine("gpu", "a GPU", 4, 4, 70 * GIB, 32)
SWIN = PretrainedWeights("weights/swin", {"name": "swin", "embed_dim": 96, "depths": (2, 2, 18, 2)})
RESNET = PretrainedWeights("w/r50", {"name": "resnet", "depth": 50, "norm": "frozen_batch"})


def facts(images=240, size=(480, 640), val=50, most=28, sides=(0.05, 0.3)):
    """`sides`: of the objects, least and most, over their image's short side."""
    rng = np.random.default_rng(0)
    return Facts(
        fields={"source": "voc", "classes": ("a", 'b"'), "train.annotations": "x/y"},
        images=images,
        val_images=val,
        classes=("a", 'b"'),
        sizes=np.tile(np.array(size, np.int32), (images, 1)),
        boxes_an_image=np.r_[most, rng.integers(0, most, images - 1)],
        rows=np.arange(1000) % images,
        sides=rng.uniform(*sides, (1000, 2)) * min(size),
    )


def made(tmp_path, *arguments):
    """The config that a recipe's text makes, and its plan."""
    path = tmp_path / "mine.py"
    plan = recipe.choose(*arguments)
    text = recipe.text(plan, *arguments[:2], str(path))
    path.write_text(text)
    assert max(map(len, text.replace(str(path), "mine.py").splitlines())) <= 100
    return configs.load(str(path)), plan


@pytest.mark.parametrize(
    "arguments",
    [
        (facts(), CPU, None),
        (facts(images=20, size=(900, 300), val=0, most=700), CPU, SWIN),
        (facts(), GPU, None),
        (facts(images=5000), GPU, SWIN),
        (facts(), Machine("tpu", "TPU v5e", 8, 8, None, 100), RESNET),
    ],
)
def test_the_text_makes_the_config_that_was_chosen(tmp_path, arguments):
    config, plan = made(tmp_path, *arguments)
    assert config.to_dict() == plan.config().to_dict()
    data, machine, _ = arguments
    assert config.batch_size % (2 * machine.devices) == 0
    assert config.data.classes == ("a", 'b"')
    assert config.data.train.scale[1] <= config.data.val.scale[1] <= config.data.train.scale[2]
    lines = [line for line in plan.lines() if line.name == "eval.every"]
    assert bool(lines) == bool(data.val_images)
    for line in plan.lines():
        assert line.reason or line.name.startswith("data."), line


def test_a_small_detector_for_a_cpu(tmp_path):
    config, _ = made(tmp_path, facts(), CPU, None)
    assert (config.model.backbone.depth, config.model.backbone.norm) == (18, "group")
    assert config.data.train.buckets == ((160, 224),)
    assert config.data.val.buckets == ()  # images to come may stand
    assert config.data.train.scale == (224, 128, 160)
    assert config.batch_size == 8
    steps = round(config.epochs * 240 / 8)
    assert steps % 50 == 0
    assert 550 <= steps <= 650
    assert (config.mixtraining.start_share, config.mixtraining.ema_momentum) == (0.8, 0.99)
    assert config.data.max_boxes == 30
    assert config.optimizer.learning_rate == 1e-3
    # More cores, up to the four that are used, take more steps in the same time.
    more, _ = made(tmp_path, facts(), Machine("cpu", "cpu", 1, 1, 16 * GIB, 8), None)
    assert 1.8 * config.epochs < more.epochs < 2.2 * config.epochs


def test_standing_images_and_mixed_ones_have_their_buckets():
    standing = recipe.choose(facts(size=(640, 480)), CPU, None).config()
    assert standing.data.train.buckets == ((224, 160),)
    mixed = facts()
    mixed.sizes[:100] = mixed.sizes[:100, ::-1]
    assert recipe.choose(mixed, CPU, None).config().data.train.buckets == ((160, 224), (224, 160))


def test_panoramas_are_seen_small_and_a_few_of_them_do_not_make_photographs_smaller():
    scale = recipe.choose(facts(size=(1000, 10_000)), CPU, None).config().data.train.scale
    assert scale[2] >= 48 and scale[0] >= 480
    mixed = facts(images=100)
    mixed.sizes[:12] = 1000, 10_000
    short = recipe.choose(mixed, CPU, None).config().data.train.scale[2]
    assert short >= 96  # of 160 without them
    widest = recipe.choose(facts(size=(100, 10_000)), CPU, None).config().data
    assert widest.train.buckets == ((32, 1120),)


def test_the_time_that_reading_takes_is_told():
    def minutes(size):
        lines = recipe.choose(facts(size=size), CPU, None).lines()
        (line,) = [line for line in lines if line.name == "epochs"]
        return int(re.search(r"about (\d+) minutes", line.reason)[1])

    small, photographs = minutes((480, 640)), minutes((3000, 4000))
    # 600 steps of 8 images of 12 megapixels, .03 core-seconds each, on two cores.
    assert photographs - small == pytest.approx(600 * 8 * 11.7 * 0.03 / 2 / 60, abs=1.5)


def test_many_boxes_are_cut_and_said():
    crowded = facts(most=30)
    crowded.boxes_an_image[:2] = 900, 800
    (line,) = [x for x in recipe.choose(crowded, CPU, None).lines() if x.name == "data.max_boxes"]
    assert 200 <= line.value < 800
    assert line.reason == "the fullest image has 900; 2 images have more, which are cut"


def test_without_weights_group_norm_nothing_frozen_and_longer(tmp_path):
    bare, plan = made(tmp_path, facts(), GPU, None)
    given, _ = made(tmp_path, facts(), GPU, RESNET)
    assert bare.model.backbone.norm == "group"
    assert bare.model.backbone.frozen_stages == -1
    assert bare.epochs == pytest.approx(3 * given.epochs, rel=0.01)
    (line,) = [line for line in plan.lines() if line.name == "epochs"]
    assert "3 times as long" in line.reason and "--weights" in line.reason
    assert given.init_from == "w/r50"
    assert given.model.backbone.norm == "frozen_batch"
    assert given.optimizer.name == "sgd"
    assert given.optimizer.learning_rate == pytest.approx(0.01 * given.batch_size / 32)


def test_gpus_without_units_for_bfloat16_compute_in_float32(tmp_path):
    old = dataclasses.replace(GPU, bfloat16=False)
    assert made(tmp_path, facts(), old, None)[0].model.dtype == "float32"
    assert made(tmp_path, facts(), GPU, None)[0].model.dtype == "bfloat16"


def test_what_is_chosen_fits_the_memory():
    def plan(memory):
        machine = Machine("gpu", "a GPU", 1, 1, memory, 8)
        config = recipe.choose(facts(), machine, SWIN).config()
        resolved = resolve(configs.override_all(config, {"steps": "9"}), classes=2)
        long, _, short = config.data.train.scale
        bucket = (-(-short // 32) * 32, -(-long // 32) * 32)
        return config, memory_estimate.of_training(resolved, bucket, 1).total

    large, takes = plan(70 * GIB)
    assert takes <= 56 * GIB
    small, takes = plan(8 * GIB)
    assert takes <= 6.4 * GIB
    assert small.batch_size < large.batch_size
    assert large.data.train.scale == (1333, 480, 800)


@pytest.mark.parametrize("told", [False, True])
def test_a_recipe_has_the_network_that_the_weights_are_of(tmp_path, monkeypatch, told):
    """Whether their checkpoint holds the config they were trained by or not."""
    fields = {
        "model.backbone.embed_dim": "192", "model.backbone.num_heads": "6,12,24,48",
        "model.backbone.window_size": "12", "model.backbone.depths": "1,1,1,1",
        "data.channels": "bgr", "model.num_classes": "2", "model.backbone.drop_path": "0.7",
    }  # fmt: skip
    config = configs.load("faster", fields)
    shapes = jax.eval_shape(lambda: detector.init(detector.build(config.model), 0))
    params = jax.tree.map(lambda leaf: np.zeros((), leaf.dtype), shapes)
    params["backbone"] = jax.tree.map(
        lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes["backbone"]
    )
    meta = {"config": json.loads(json.dumps(config.to_dict()))} if told else {}

    monkeypatch.setattr(weights.checkpoint, "load_weights", lambda source: (params, meta))
    found = weights.read("w/swin_large")
    made_of, _ = made(tmp_path, facts(), GPU, found)
    backbone = made_of.model.backbone
    assert (backbone.num_heads, backbone.window_size) == ((6, 12, 24, 48), 12)
    assert (backbone.embed_dim, backbone.drop_path) == (192, 0.2)
    assert made_of.data.channels == ("bgr" if told else "rgb")
    assert made_of.optimizer.name == "adamw"


SMALL = (0.012, 0.02)  # at a short side of 800: 10 to 16 pixels


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_anchors_are_of_the_size_that_reaches_the_objects(tmp_path, machine):
    """As the detector's own matching sees them, at the scale that the recipe chooses."""
    sides = SMALL if machine is GPU else (0.03, 0.05)  # of 160 pixels: 5 to 8
    tiny = facts(sides=sides)
    config, plan = made(tmp_path, tiny, machine, None)
    (line,) = [line for line in plan.lines() if line.name == "model.rpn.anchor_scale"]
    usual = 8.0 if machine is GPU else 4.0
    assert config.model.rpn.anchor_scale == line.value < usual
    assert "an anchor fits" in line.reason
    long, short = config.data.val.scale
    seen = tiny.sides * min(short / 480, long / 640)
    for size, reached in ((line.value, True), (usual, False)):
        ious = boxes.best_ious(seen, size, config.model.rpn.anchor_ratios)
        assert ((ious >= 0.3).mean() > 0.95) == reached


def test_the_usual_anchors_stay_where_they_reach_as_much():
    rpn = recipe.choose(facts(), GPU, SWIN).config().model.rpn
    assert rpn.anchor_scale == 8.0
    # Some small objects among many: others would lose as many large ones.
    both = facts(sides=(0.02, 0.95))
    assert recipe.choose(both, GPU, SWIN).config().model.rpn.anchor_scale == 8.0


def test_anchors_are_those_of_the_weights_unless_others_reach_more(tmp_path):
    own = {"anchor_scale": 4.0, "anchor_ratios": (1.0,)}
    given = PretrainedWeights("mine:best", dict(SWIN.backbone), {}, own)
    config, plan = made(tmp_path, facts(sides=(0.03, 0.2)), GPU, given)
    assert (config.model.rpn.anchor_scale, config.model.rpn.anchor_ratios) == (4.0, (1.0,))
    assert [line.reason for line in plan.lines() if ".anchor_" in line.name] == [
        "as the weights are"
    ] * 2
    large, _ = made(tmp_path, facts(sides=(0.5, 0.9)), GPU, given)
    assert large.model.rpn.anchor_scale == 8.0


def test_views_of_objects_are_as_long_sides_allow():
    wide = facts(size=(100, 1000), sides=(0.5, 0.5))  # 50 pixels
    for scale, side in (((500, 200), 25), ((4000, 200), 100)):
        seen = boxes.seen(wide.sides, wide.rows, wide.sizes, scale)
        np.testing.assert_allclose(seen, side)


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_a_detector_of_full_images_finds_as_many_as_there_are(tmp_path, machine):
    usual, full = (made(tmp_path, facts(most=n), machine, None)[0].model for n in (28, 180))
    assert (usual.roi_head.detections, full.roi_head.detections) == (100, 180)
    assert full.rpn.test_proposals >= 360 and full.rpn.test_candidates >= 360
    assert full.roi_head.nms_candidates >= 540
    base = recipe.choose(facts(), machine, None).config().model
    assert usual.rpn.test_proposals == base.rpn.test_proposals in (96, 1000)


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_rate_and_length_are_of_the_batch_that_is_asked_for(tmp_path, machine):
    usual = recipe.choose(facts(images=2000), machine, None).config()
    batch = 2 * usual.batch_size
    plan = recipe.choose(facts(images=2000), machine, None, {"batch_size": batch})
    config = plan.config()
    assert config.batch_size == batch
    ratio = config.optimizer.learning_rate / usual.optimizer.learning_rate
    assert ratio == pytest.approx(2**0.5, rel=0.03)
    # On a CPU at least 600 steps, on a GPU so many images.
    assert config.epochs == (usual.epochs if machine is GPU else 600 * batch / 2000)
    (line,) = [line for line in plan.lines() if line.name == "batch_size"]
    assert "as asked" in line.reason


@pytest.mark.parametrize("machine", [CPU, Machine("cpu", "cpu", 1, 1, 16 * GIB, 4), GPU])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_has_parts_enough_to_accumulate(machine, accumulate):
    asked = {"accumulate": accumulate}
    config = recipe.choose(facts(), machine, None, asked).config()
    command = recipe.train_command(machine, "mine.py", config)
    count = re.search(r"DEVICES=(\d)", command)
    devices = machine.devices if machine is GPU else int(count[1]) if count else 1
    resolve(configs.override_all(config, {"steps": "9"}), classes=2, devices=devices)
    if machine is not GPU:
        assert config.batch_size == max(8, 2 * accumulate)
    with pytest.raises(UserError, match="make it a multiple"):
        recipe.check_batch(GPU, asked | {"batch_size": 4 * accumulate})


def test_plain_training_asked_for_shares_a_batch_in_whole_images():
    plain = {"mixtraining.enabled": False, "batch_size": 3}
    recipe.check_batch(dataclasses.replace(GPU, devices=1, local_devices=1), plain)
    with pytest.raises(UserError, match="make it a multiple of 2"):
        recipe.check_batch(dataclasses.replace(GPU, devices=1, local_devices=1), {"batch_size": 3})


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_a_short_run_warms_up_in_a_part_of_it(machine):
    for asked in ({"steps": 60}, {"epochs": 1.0}):
        config = recipe.choose(facts(), machine, None, asked).config()
        steps = asked.get("steps") or 240 / config.batch_size
        assert config.optimizer.warmup_steps <= steps / 8
        assert config.epochs == pytest.approx(steps * config.batch_size / 240)


@pytest.mark.parametrize("machine", [CPU, Machine("gpu", "a GPU", 1, 1, 8 * GIB, 8)])
def test_val_is_seen_as_training_is_asked_to(machine):
    """Whether it fits or not: the batch is made smaller, and not what is evaluated."""
    scale = {"data.train.scale": (2666, 800, 1600), "data.train.buckets": ()}
    plan = recipe.choose(facts(), machine, None, scale)
    assert plan.config().data.val.scale == (2666, 1600)
    assert [line.name for line in plan.lines()].count("data.train.scale") == 1


def test_memory_is_judged_at_the_scale_that_is_asked_for():
    machine = Machine("gpu", "a GPU", 1, 1, 16 * GIB, 8)
    usual = recipe.choose(facts(), machine, None).config()
    scale = {"data.train.scale": (2666, 800, 1600), "data.train.buckets": ()}
    config = recipe.choose(facts(), machine, None, scale).config()
    assert (config.batch_size, config.model.remat) != (usual.batch_size, usual.model.remat)
    resolved = resolve(configs.override_all(config, {"steps": "9"}), classes=2)
    assert memory_estimate.of_training(resolved, (1600, 2688), 1, "gpu").total <= 13 * GIB


def test_what_the_data_need_is_taken_over_from_a_config(tmp_path):
    assert not how(recipes.base().data)
    old = configs.override_all(recipes.base(), {
        "data.white": "4095", "data.train.leave_out": "(0, 2)", "data.augment.flip": "0",
        "data.exif": "stored",
    })  # fmt: skip
    here = dataclasses.replace(facts(), fields=where(old.data) | how(old.data))
    config, _ = made(tmp_path, here, CPU, None)
    assert config.data.white == 4095 and config.data.train.leave_out == (0, 2)
    assert config.data.augment.flip == 0 and config.data.exif == "stored"


def test_a_name_with_a_line_end_is_no_syntax_error(tmp_path):
    named = {"source": "coco", "train.annotations": 'a "odd"\n\\name.json'}
    config, _ = made(tmp_path, dataclasses.replace(facts(), fields=named), CPU, None)
    assert config.data.train.annotations == named["train.annotations"]


def test_anchors_suit_the_scale_and_ratios_that_are_asked_for():
    """At twice the scale the usual ones reach what they do not at the recipe's own."""
    tiny = facts(sides=SMALL)
    for asked, scale in (
        ({}, 4.0),
        ({"data.val.scale": (2666, 1600)}, 8.0),
        ({"model.rpn.anchor_ratios": (9.0,)}, 8.0),  # no size reaches anything
    ):
        config = recipe.choose(tiny, GPU, None, asked).config()
        assert config.model.rpn.anchor_scale == scale
    assert recipe.choose(facts(), GPU, None, {"data.max_boxes": 150}).config().model.roi_head[
        "detections"
    ] == 150  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "batch", "devices"),
    [(CPU, 6, 1), (CPU, 8, 2), (CPU, 3, None), (GPU, 16, 4), (GPU, 6, None), (GPU, 1, None)],
)
def test_a_batch_that_devices_cannot_share_is_refused(machine, batch, devices):
    if devices is None:
        with pytest.raises(UserError, match=f"config.batch_size is {batch}: make it a multiple"):
            recipe.check_batch(machine, {"batch_size": batch})
        return
    recipe.check_batch(machine, {"batch_size": batch})
    config = configs.override_all(recipes.base(), {"batch_size": str(batch)})
    command = recipe.train_command(machine, "mine.py", config)
    assert ("JAX_NUM_CPU_DEVICES=2" in command) == (machine is CPU and devices == 2)
