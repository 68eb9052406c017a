"""A recipe for GPUs and TPUs: the large detectors, at the scale and batch that fit the memory."""

import math
from collections.abc import Sequence

from mixtrain_jax.config import load, recipes
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.inspection import memory_estimate, plans
from mixtrain_jax.inspection.facts import Facts
from mixtrain_jax.inspection.weights import PretrainedWeights
from mixtrain_jax.runtime.machine import Machine

ROOM = 0.8  # of the memory that is there may be planned for
SEEN = 40_000  # images that training from pretrained weights sees at least
EPOCHS = 24.0  # and this often each
FROM_RANDOM = 3.0  # times as long without weights (He et al., Rethinking ImageNet Pre-training)


def choose(
    facts: Facts, machine: Machine, weights: PretrainedWeights | None, asked: plans.Asked
) -> plans.Plan:
    """Chooses the largest scale and batch that fit, and remat where nothing else does.

    See `recipe.choose`.
    """
    batch = asked.get("batch_size")
    each = [halves * plans.least_batch(asked) for halves in (4, 2, 1)]
    sizes = [images * machine.devices for images in each]
    batches = [batch] if batch else [size for size in sizes[:-1] if size <= 32] + sizes[-1:]
    told, plan = _fits(machine, batch, each), None
    for share in (1.0,) if "data.train.scale" in asked else (1.0, 0.8, 0.6, 0.4):
        anchors = _anchors(facts, weights, _scale(share, asked)[::2], asked)
        found = [*anchors, *plans.room(facts, recipes.base().model, asked)]
        for size, remat in [*((size, False) for size in batches), (batches[-1], True)]:
            plan = _big(facts, machine, weights, share, size, remat, told, found, asked)
            if machine.memory is None:
                return plan
            if _takes(plan.with_asked(asked), facts, machine) <= ROOM * machine.memory:
                return plan
    assert plan is not None
    return plan


def _takes(plan: plans.Plan, facts: Facts, machine: Machine) -> int:
    """Bytes of one device for a step in the largest bucket of a plan."""
    config = plan.config()
    long, _, short = config.data.train.scale
    bucket = plans.up(short), plans.up(long)
    resolved = resolve(load.override_all(config, {"steps": "1000"}), classes=len(facts.classes))
    return memory_estimate.of_training(resolved, bucket, machine.devices, machine.platform).total


def _scale(share: float, asked: plans.Asked) -> tuple[int, int, int]:
    """Longest long side, least and largest short side in training, as asked or usual."""
    usual = round(1333 * share), round(480 * share), round(800 * share)
    long, low, short = asked.get("data.train.scale", usual)
    return long, low, short


def _fits(machine: Machine, asked: int | None, each: Sequence[int]) -> str:
    """Why a batch is as it is."""
    if asked:
        return "as asked"
    if machine.memory is None:
        return "memory of this device is not known: lower it if it is too much"
    return (
        f"the most of {each[0]}, {each[1]} and {each[2]} (32 in all) that fits "
        f"{machine.memory / 2**30:.0f} GiB per device at this scale"
    )


def _big(
    facts: Facts,
    machine: Machine,
    weights: PretrainedWeights | None,
    share: float,
    batch: int,
    remat: bool,
    fits: str,
    found: list[plans.Line],
    asked: plans.Asked,
) -> plans.Plan:
    long, low, short = _scale(share, asked)
    seen = max(SEEN, EPOCHS * facts.images) * (1.0 if weights else FROM_RANDOM)
    enough = max(1.0, float(round(seen / facts.images)))
    steps, epochs = plans.length(asked, enough, batch, facts.images)
    plan = {
        "Where the data is": plans.where_it_is(facts),
        "What the network sees": [
            plans.Line(
                "data.train.scale",
                (long, low, short),
                "the usual scales" + ("" if share == 1 else f", times {share:g} to fit the memory"),
            ),
            plans.Line("data.val.scale", (long, short), "the largest of the training scales"),
            plans.Line("data.train.buckets", (), "sizes to pad to are chosen for these images"),
            plans.max_boxes(facts),
        ],
        "The detector": [*_big_detector(weights, remat), *_dtype(machine), *found],
        "Training": [
            plans.Line("batch_size", batch, f"{batch / machine.devices:g} a device; {fits}"),
            plans.Line("epochs", epochs, f"{steps} steps" + _price(weights)),
            *_optimizer(weights, batch, steps),
        ],
        "MixTraining": plans.mixing(
            0.33 if weights else 0.67,
            "the teacher must learn these classes first"
            if weights
            else "a teacher from random weights must learn first",
            steps,
            short_run=False,
        ),
        "On the way": plans.on_the_way(
            facts, steps, 8, machine.devices * max(1, 8 // machine.devices)
        ),
    }
    return plans.Plan({title: lines for title, lines in plan.items() if lines})


def _dtype(machine: Machine) -> list[plans.Line]:
    if machine.bfloat16:
        return []
    return [plans.Line("model.dtype", "float32", "these GPUs have no units for bfloat16")]


def _price(weights: PretrainedWeights | None) -> str:
    if weights is not None:
        return ""
    return (
        f"; {FROM_RANDOM:g} times as long as from pretrained weights, and on few images still "
        "worse: get weights (docs/weights.md) and add --weights"
    )


def _big_detector(weights: PretrainedWeights | None, remat: bool) -> list[plans.Line]:
    lines = []
    if weights is None:
        lines += [
            plans.Line("model.backbone.name", "resnet", "ResNet-50"),
            plans.Line("model.backbone.style", "pytorch", "the stride in the 3x3 convolution"),
            plans.Line(
                "model.backbone.norm", "group", "frozen batch norm is for pretrained weights"
            ),
            plans.Line(
                "model.backbone.frozen_stages", -1, "from random weights every layer learns"
            ),
        ]
    else:
        lines.append(plans.Line("init_from", weights.source, "given by --weights"))
        for name, value in weights.backbone.items():
            if value != recipes.base().model.backbone[name]:
                lines.append(plans.Line(f"model.backbone.{name}", value, "as the weights are"))
        own = recipes.base().data
        lines += [
            plans.Line(f"data.{name}", value, "the pixels that the weights have seen")
            for name, value in weights.pixels.items()
            if value != own[name]
        ]
        if not weights.pixels and weights.frozen:
            lines += [
                plans.Line(
                    "data.channels", "bgr", "weights in caffe style; torchvision's: see below"
                ),
                plans.Line("data.mean", (103.53, 116.28, 123.675), "of these weights"),
                plans.Line(
                    "data.std", (1.0, 1.0, 1.0), "torchvision's: style pytorch, rgb, base's mean"
                ),
            ]
    if remat:
        lines.append(plans.Line("model.remat", True, "less memory: activations are computed twice"))
    return lines


def _anchors(
    facts: Facts, weights: PretrainedWeights | None, scale: tuple[int, int], asked: plans.Asked
) -> list[plans.Line]:
    """Those that the weights have seen, or others where these reach clearly more objects."""
    rpn = recipes.base().model.rpn
    own = weights.anchors if weights else {}
    reason = "as the weights are"
    lines = []
    if own.get("anchor_ratios", rpn.anchor_ratios) != rpn.anchor_ratios:
        rpn.anchor_ratios = own["anchor_ratios"]
        lines.append(plans.Line("model.rpn.anchor_ratios", rpn.anchor_ratios, reason))
    usual = own.get("anchor_scale", rpn.anchor_scale)
    chosen, other = plans.anchor_scale(plans.seen(facts, scale, asked), rpn, usual, asked)
    if chosen != rpn.anchor_scale:
        lines.append(plans.Line("model.rpn.anchor_scale", chosen, other or reason))
    return lines


def _optimizer(weights: PretrainedWeights | None, batch: int, steps: int) -> list[plans.Line]:
    if weights is not None and weights.frozen:
        return [
            plans.Line("optimizer.name", "sgd", "as the paper trains ResNet"),
            plans.Line(
                "optimizer.learning_rate", float(f"{0.01 * batch / 32:.2g}"), "0.01 at batch 32"
            ),
            plans.Line("optimizer.weight_decay", 1e-4, "of SGD"),
            plans.Line("optimizer.warmup_steps", min(500, steps // 10), "at most a tenth"),
        ]
    rate = 1e-4 * math.sqrt(batch / 16)
    return [
        plans.Line(
            "optimizer.learning_rate",
            float(f"{rate:.2g}"),
            "AdamW: 1e-4 at batch 16, with the root of the batch",
        ),
        plans.Line("optimizer.warmup_steps", min(500, steps // 10), "at most a tenth of the steps"),
    ]
