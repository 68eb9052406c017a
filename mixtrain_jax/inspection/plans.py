"""What a recipe decides, line by line, and the lines that all recipes share."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mixtrain_jax.config import recipes
from mixtrain_jax.config.resolve import parts_a_device
from mixtrain_jax.inspection import boxes
from mixtrain_jax.inspection.facts import Facts
from mixtrain_jax.models.rpn import STRIDES
from mixtrain_jax.runtime.machine import Machine

Asked = Mapping[str, Any]  # fields set by flags: their dotted names and values
GAIN = 0.01  # other anchors than usual are for so much more of the objects


class Line(NamedTuple):
    """A field of the config: its dotted name, its value, and why; or a call that sets several."""

    name: str
    value: Any
    reason: str

    def code(self) -> str:
        """The line as Python, without its reason."""
        if self.name.startswith("recipes."):
            return f"{self.name}(config.{self.value})"
        return f"config.{self.name} = {_literal(self.value)}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a recipe decides before it is written: groups of lines by their titles."""

    groups: dict[str, list[Line]]

    def lines(self) -> Iterator[Line]:
        """All lines in order."""
        for group in self.groups.values():
            yield from group

    def with_asked(self, asked: Asked) -> "Plan":
        """The same with the fields that were set by flags, which win; those it has are not told."""
        chosen = {line.name: line.value for line in self.lines()}
        lines = [
            Line(name, value, "")
            for name, value in sorted(asked.items())
            if name not in chosen or chosen[name] != value
        ]
        return Plan(self.groups | {"As asked": lines}) if lines else self

    def config(self) -> ConfigDict:
        """The config that the recipe's text makes."""
        config = recipes.base()
        for line in self.lines():
            if line.name.startswith("recipes."):
                getattr(recipes, line.name.removeprefix("recipes."))(config[line.value])
            else:
                *groups, leaf = line.name.split(".")
                place = config
                for group in groups:
                    place = place[group]
                place[leaf] = line.value
        return config


def least_batch(asked: Asked) -> int:
    """The fewest images that a device can have, by what is asked for."""
    return parts_a_device(asked.get("mixtraining.enabled", True), asked.get("accumulate", 1))


def length(asked: Asked, usual: float, batch: int, images: int) -> tuple[int, float]:
    """Steps and epochs of training: as asked, or the usual ones.

    Args:
      asked: fields that were set by flags.
      usual: epochs where none are asked for.
      batch: images per step.
      images: to train on.
    """
    if asked.get("steps"):
        return asked["steps"], epochs(asked["steps"], batch, images)
    count = asked.get("epochs") or usual
    return round(count * images / batch), count


def cpu_devices(machine: Machine, batch: int | None = None, least: int = 2) -> int:
    """As many devices as a CPU is to be: one for each of its cores, four at most.

    Args:
      machine: with a CPU.
      batch: images per step, which devices share in equal parts; None: it follows them.
      least: images of a device, of which it has this many or a multiple.
    """
    most = min(4, machine.cores)
    if batch is None:
        return most
    return max(count for count in range(1, most + 1) if count == 1 or batch % (least * count) == 0)


def where_it_is(facts: Facts) -> list[Line]:
    """The fields that say where the data is, those that differ from the base."""
    base = recipes.base().data
    lines = []
    by_split = facts.fields["source"].startswith(("yolo", "tfds"))
    for name, value in facts.fields.items():
        if name.endswith(".split") and not by_split:
            continue
        default = base
        for part in name.split("."):
            default = default[part]
        if value != default:
            lines.append(Line(f"data.{name}", value, _about(name)))
    return lines


def _about(name: str) -> str:
    reasons = {
        "white": "in images of more than 8 bits",
        "train.leave_out": "images that are not trained on",
        "augment.flip": "how often an image is mirrored",
        "source": "found out from the folder",
        "classes": "in label order",
        "val_share": "there is no val split: images are set apart by their names",
    }
    return reasons.get(name, "")


def max_boxes(facts: Facts) -> Line:
    """Room for the boxes of the fullest image, or of nearly all where few are very full."""
    most = int(facts.boxes_an_image.max(initial=1))
    usual = math.ceil(float(np.quantile(facts.boxes_an_image, 0.995))) if facts.images else 1
    wanted = most if most <= 200 else max(200, usual)
    chosen = 10 * math.ceil(wanted / 10)
    cut = int((facts.boxes_an_image > chosen).sum())
    more = f"; {cut} images have more, which are cut" if cut else ""
    return Line("data.max_boxes", chosen, f"the fullest image has {most}{more}")


def room(facts: Facts, model: ConfigDict, asked: Asked) -> list[Line]:
    """Room to find as many objects as an image may have boxes, where a model has less.

    Args:
      facts: of the data set.
      model: `config.model` before.
      asked: fields that were set by flags.
    """
    most = asked.get("data.max_boxes", max_boxes(facts).value)
    wanted = (
        ("rpn", "test_candidates", 2 * most, "of a level; twice as many as the most boxes"),
        ("rpn", "test_proposals", 2 * most, "twice as many as the most boxes of an image"),
        ("roi_head", "nms_candidates", 3 * most, "three times as many as the most boxes"),
        ("roi_head", "detections", most, "an image may have so many boxes"),
    )
    return [
        Line(f"model.{group}.{name}", count, reason)
        for group, name, count, reason in wanted
        if count > model[group][name]
    ]


def seen(facts: Facts, scale: tuple[int, int], asked: Asked) -> np.ndarray:
    """[M, 2] width and height of the objects in pixels of val's views.

    Args:
      facts: of the data set.
      scale: longest long side and short side of val's views, unless another is asked for.
      asked: fields that were set by flags.
    """
    scale = asked.get("data.val.scale", scale)
    return boxes.seen(facts.sides, facts.rows, facts.sizes, scale)


def anchor_scale(
    sides: np.ndarray, rpn: ConfigDict, usual: float, asked: Asked
) -> tuple[float, str]:
    """The size of the anchors: the usual, unless others clearly reach more objects.

    Args:
      sides: [M, 2] of the objects, as `seen` returns them.
      rpn: `config.model.rpn`; its ratios, unless others are asked for, and its limit are used.
      usual: `config.model.rpn.anchor_scale` where it suits.
      asked: fields that were set by flags.

    Returns:
      it, and why it is not the usual; "" where it is.
    """
    ratios = asked.get("model.rpn.anchor_ratios", rpn.anchor_ratios)
    sides = sides[sides.max(axis=1) >= STRIDES[0]]  # smaller ones are hardly learned in any case
    reached = {}
    for size in (usual, usual / 2, usual / 4, usual * 2):
        ious = boxes.best_ious(sides, size, ratios)
        reached[size] = float((ious >= rpn.negative_iou).mean()) if len(sides) else 1.0
    best = max(reached, key=reached.__getitem__)
    if reached[best] - reached[usual] < GAIN:
        return usual, ""
    share, before = reached[best], reached[usual]
    return best, f"an anchor fits {share:.0%} of the objects, with {usual:g} {before:.0%}"


def mixing(start: float, reason: str, steps: int, short_run: bool) -> list[Line]:
    """The method's fields.

    Args:
      start: the share of training that is plain, and the `reason` for it.
      reason: a few words.
      steps: length of training.
      short_run: a small detector in minutes, as in configs/quickstart.py.
    """
    over = min(1000, max(100, round(steps * (1 - start) / 10)))
    lines = [
        Line("mixtraining.start_share", start, reason),
        Line(
            "mixtraining.ema_momentum",
            float(f"{1 - 1 / over:.4f}"),
            f"the teacher is the mean of the last {over} steps or so",
        ),
    ]
    if short_run:
        lines += [
            Line("mixtraining.gt_score_threshold", 0.05, "an unsure teacher leaves out few boxes"),
            Line("mixtraining.pseudo_score_threshold", 0.9, "only what it is sure of is added"),
            Line("mixtraining.mixed_loss_weight", 0.5, "a mild share of the mixed half"),
        ]
    else:
        lines += [
            Line(
                "mixtraining.gt_score_threshold",
                0.05,
                "on few images an unsure teacher would leave out most boxes; the paper: 0.9",
            ),
            Line("mixtraining.pseudo_score_threshold", 0.9, "as in the paper"),
        ]
    return lines


def epochs(steps: int, batch: int, images: int) -> float:
    """So many steps of a batch in epochs, with as few decimals as give just these steps again."""
    exact = steps * batch / images
    shorter = (round(exact, decimals) for decimals in range(1, 9))
    return next((e for e in shorter if round(e * images / batch) == steps), exact)


def on_the_way(
    facts: Facts, steps: int, times: int, batch: int, log: int | None = None
) -> list[Line]:
    """Evaluation, checkpoints, lines and pictures.

    Args:
      facts: of the data set.
      steps: length of training.
      times: how often to evaluate and to save.
      batch: of an evaluation.
      log: steps between lines; None: the base's.
    """
    every = max(50, math.ceil(steps / times / 50) * 50)
    lines = [Line("checkpoint.every", every, "what an interruption costs at most")]
    if facts.val_images:
        lines += [
            Line("eval.every", every, f"{-(-steps // every)} times; the best is kept"),
            Line("eval.batch_size", batch, "images at once"),
        ]
    if log:
        lines.append(Line("log.every", log, "a line every few seconds"))
    lines.append(Line("log.pictures_every", every, "look at them: runs/*/pictures"))
    return lines


def aspect(facts: Facts) -> float:
    """Long side over short side that nine of ten images do not exceed.

    Not above twice the usual: a few panoramas among photographs are seen smaller instead of all.
    """
    sides = np.sort(facts.sizes, axis=1)
    usual, most = np.quantile(sides[:, 1] / sides[:, 0], (0.5, 0.9))
    return float(min(most, 2 * usual))


def up(side: float) -> int:
    """The next multiple of 32."""
    return 32 * math.ceil(side / 32)


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        inner = ", ".join(map(_literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)
