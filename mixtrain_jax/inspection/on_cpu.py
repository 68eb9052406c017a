"""A recipe for a CPU: the small detector on small views, as long as a person waits."""

import math

import numpy as np

from mixtrain_jax.config import recipes
from mixtrain_jax.inspection import plans
from mixtrain_jax.inspection.facts import Facts
from mixtrain_jax.inspection.weights import PretrainedWeights
from mixtrain_jax.runtime.machine import Machine

# The small detector on a CPU: views of so many pixels, and how long training may take there. Two
# cores compute 25 images of 160x160 a second (README.md), slow ones 14: these count.
CPU_PIXELS = 160 * 224
CPU_SECONDS = 480.0
CPU_PIXELS_A_SECOND = 7 * 160 * 160  # of one core
CPU_READING = 0.03  # core-seconds per megapixel of an image: decoding, colours, the view
CPU_STEPS = (600, 4000)


def choose(
    facts: Facts, machine: Machine, weights: PretrainedWeights | None, asked: plans.Asked
) -> plans.Plan:
    """Chooses a batch of about 8 images, and steps for some minutes; see `recipe.choose`.

    Weights are not taken, which the recipe says.
    """
    least = plans.least_batch(asked)
    cores = plans.cpu_devices(machine, asked.get("batch_size"), least)
    if "batch_size" not in asked:
        cores = max(1, min(cores, 8 // least))
    plural = "s" if cores > 1 else ""
    unit = least * cores
    told = "as asked; " if "batch_size" in asked else ""
    batch = asked.get("batch_size", unit * max(1, 8 // unit))
    short, long = _cpu_scale(facts)
    long, low, short = asked.get("data.train.scale", (long, short * 4 // 5, short))
    buckets = _cpu_buckets(facts, short, long)
    pixels = buckets[0][0] * buckets[0][1]
    affordable = CPU_SECONDS * CPU_PIXELS_A_SECOND * cores / pixels / batch
    enough = plans.epochs(int(np.clip(affordable, *CPU_STEPS)) // 50 * 50, batch, facts.images)
    steps, epochs = plans.length(asked, enough, batch, facts.images)
    rate = 1e-3 * math.sqrt(batch / 8)
    megapixels = float(facts.sizes.prod(axis=1).mean()) / 1e6
    seconds = pixels / CPU_PIXELS_A_SECOND + megapixels * CPU_READING
    minutes = steps * batch * seconds / cores / 60
    unused = ["--weights are left out: the small network takes none"] if weights else []
    model = recipes.base().model
    recipes.small_detector(model)
    sides = plans.seen(facts, (long, short), asked)
    smallest = float(np.quantile(np.sqrt(sides.prod(axis=1)), 0.05)) if len(sides) else 32.0
    usual = 4.0 if smallest < 40 else 8.0
    anchors, other = plans.anchor_scale(sides, model.rpn, usual, asked)
    plan = {
        "Where the data is": plans.where_it_is(facts),
        "What the network sees": [
            plans.Line(
                "data.train.scale",
                (long, low, short),
                f"small views, for a CPU: short side {low} to {short}, long side at most {long}",
            ),
            plans.Line("data.val.scale", (long, short), "the largest of the training scales"),
            plans.Line(
                "data.train.buckets",
                buckets,
                "one size to compile" if len(buckets) == 1 else "lying and standing images",
            ),
            plans.max_boxes(facts),
            plans.Line(
                "data.augment.cutout_ratios",
                (0.05, 0.1, 0.15, 0.2),
                "larger holes hide whole objects in small views",
            ),
        ],
        "The detector": [
            plans.Line(
                "recipes.small_detector",
                "model",
                "; ".join(["ResNet-18, narrow, group norm: learns from random weights", *unused]),
            ),
            plans.Line(
                "model.rpn.anchor_scale",
                anchors,
                other or f"one object in twenty is below {smallest:.0f} pixels at this scale",
            ),
            *plans.room(facts, model, asked),
        ],
        "Training": [
            plans.Line(
                "batch_size",
                batch,
                f"{told}{cores} CPU device{plural}, half of each device's images are mixed",
            ),
            plans.Line(
                "epochs",
                epochs,
                f"{steps} steps: about {minutes:.0f} minutes on {cores} idle core{plural}, "
                "and compiling and evaluation",
            ),
            plans.Line(
                "optimizer.learning_rate",
                float(f"{rate:.2g}"),
                "AdamW on a small network: 1e-3 at batch 8, with the root of the batch",
            ),
            plans.Line("optimizer.schedule", "cosine", "falls to 0 at the end"),
            plans.Line("optimizer.warmup_steps", min(150, steps // 8), "group norm needs few"),
        ],
        "MixTraining": plans.mixing(
            0.8,
            "a teacher from random weights must learn first",
            steps,
            short_run=True,
        ),
        "On the way": plans.on_the_way(facts, steps, 4, 8 // cores * cores or cores, 20),
    }
    return plans.Plan({title: lines for title, lines in plan.items() if lines})


def _cpu_scale(facts: Facts) -> tuple[int, int]:
    """Short side and longest long side of views of about CPU_PIXELS."""
    aspect = plans.aspect(facts)
    best, most = (32, plans.up(CPU_PIXELS // 32)), 0.0  # of panoramas that are wider still
    for short in range(32, 257, 8):
        long = round(short * aspect)
        padded = plans.up(short) * plans.up(long)
        if padded <= CPU_PIXELS and short * long > most:
            best, most = (short, plans.up(long)), short * long
    return best


def _cpu_buckets(facts: Facts, short: int, long: int) -> tuple[tuple[int, int], ...]:
    lying, standing = (plans.up(short), plans.up(long)), (plans.up(long), plans.up(short))
    heights, widths = facts.sizes[:, 0], facts.sizes[:, 1]
    if lying == standing or (heights <= widths).all():
        return (lying,)
    return (standing,) if (heights >= widths).all() else (lying, standing)
