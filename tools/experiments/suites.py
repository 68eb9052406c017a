"""Which arms an experiment compares: a recipe, data, and arms that differ in a few fields.

An arm with `after` is the same run as that arm until mixing starts, so it begins from a copy of its
checkpoint there. Every arm of a suite sees the same number of student images.
"""

import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from mixtrain_jax.evaluation import audit
from tools.experiments import labels
from tools.experiments.labels import Files

METHOD = "mixtraining"
# The package's calibration has seen labels of these cells, this one generated images alone.
GENERATED = pathlib.Path(__file__).with_name("calibration_generated.json")
OWN = f"{audit.OWN},{GENERATED}"
NONE: Mapping[str, str] = MappingProxyType({})
OFF = {"auto_agreement": "0", "must_agree": "false", "mend_normal": "false"}
ADD = {"gt_score_threshold": "0", "replace_boxes": "false", "add_missing": "true"}
ALL = {"gt_score_threshold": "0.05", "replace_boxes": "true", "add_missing": "true"}
AUTO = {"auto_agreement": "0.9", "must_agree": "true"}
ABLATION_ROWS = ("mixed_augmentation", "replace_only", "missing_only", "hard_background")


class Arm(NamedTuple):
    """One row of a table.

    Attributes:
      name: what the table calls it.
      words: the recipe's argument, such as "plain".
      flags: fields of `config.mixtraining` that differ.
      labels: what it is trained on: "noisy", "clean", or "repaired", which are the noisy ones as
        the audit corrects them.
      after: the arm whose checkpoint at `start_step` it begins with.
    """

    name: str
    words: str = ""
    flags: Mapping[str, str] = NONE
    labels: str = "noisy"
    after: str = ""


class Suite(NamedTuple):
    """An experiment.

    Attributes:
      recipe: name of the recipe.
      make: a function of (source folder, output folder, seed) that writes the label files.
      arms: in the order in which they are run.
      settings: fields of the config, dotted, for every arm.
      start_step: when mixing starts, where arms part.
      auditor: the arm as which the audit's detectors are trained, for labels that are repaired.
      first: how many images of `labels.objects` train the detector from whose weights all arms
        start; 0: from random ones.
      first_steps: how long that one is trained.
      weights: the name that ImageNet weights have in the source folder, with which all arms start
        where `first` trains no others; "": random ones.
      calibration: by which labels are repaired, as in `audit --calibration`. The package's has seen
        errors planted into labels of these cells.
    """

    recipe: str
    make: Callable[[pathlib.Path | None, pathlib.Path, int], Files]
    arms: tuple[Arm, ...]
    settings: Mapping[str, str] = NONE
    start_step: int = 400
    auditor: Arm = Arm("plain", "plain")
    first: int = 0
    first_steps: int = 2400
    weights: str = ""
    calibration: str = ""

    def recipe_of(self, arm: Arm) -> str:
        """The recipe of an arm, with its argument."""
        return f"{self.recipe}:{arm.words}" if arm.words else self.recipe


PLAIN = Arm("plain", "plain")
MENDED = Arm("mended", flags={**ADD, **AUTO, "mend_normal": "true"}, after="plain")
MISSING_ONLY = Arm("missing_only", flags={**OFF, **ADD}, after="plain")
FULL = Arm("full", flags={**OFF, **ALL}, after="plain")
FULL_AUTO = Arm("full_auto", flags={**OFF, **ALL, **AUTO}, after="plain")
FULL_MENDED = Arm(
    "full_mended",
    flags={
        **ALL,
        **AUTO,
        "mend_normal": "true",
        "normal_gt_score_threshold": "0.05",
        "soften_normal": "true",
    },
    after="plain",
)
# Where most labels are wrong, and the teacher learns from them.
SOFT = {
    "soften_normal": "true",
    "mend_normal": "true",
    "rate_given_object": "true",
    "balance_classes": "true",
    "gt_score_threshold": "0.25",
    "normal_gt_score_threshold": "0.25",
    "replace_score_threshold": "0.25",
    "auto_count": "0.3",
}
FULL_SOFT = Arm("full_soft", flags={**OFF, **ALL, **SOFT, "label_share": "0.3"}, after="plain")
FULL_SOFT_AUTO = Arm(
    "full_soft_auto", flags={**OFF, **ALL, **SOFT, "auto_share": "true"}, after="plain"
)
REPAIRED = Arm("plain_repaired_labels", "plain", labels="repaired")
CEILING = Arm("plain_clean_labels", "plain", labels="clean")
STRONG = (Arm("plain_strong", "strong"), Arm("plain_random", "random"))
ABLATION = tuple(
    Arm(row, row, flags={**OFF, "gt_score_threshold": "0.05"}, after="plain")
    for row in ABLATION_ROWS
)

# The generated images, few enough to be learned by heart.
OVERFIT = {
    "data.augment.cutout_ratios": "(0.05,0.1,0.15,0.2)",  # larger ones hide whole objects here
    "steps": "3600",
    "data.train.scale": "(160,128,160)",
    "data.train.buckets": "((160,160),)",
    "data.val.scale": "(160,160)",
    "data.val.buckets": "((160,160),)",
    "checkpoint.every": "600",
    "checkpoint.keep": "7",
}
NOISY_ARMS = (
    PLAIN, *STRONG, MISSING_ONLY, FULL_AUTO, FULL_MENDED, FULL_SOFT, FULL_SOFT_AUTO
)  # fmt: skip


def _noise(kind: str, level: float) -> Suite:
    def make(source: pathlib.Path | None, output: pathlib.Path, seed: int) -> Files:
        return labels.shapes(source, output, kind, level, seed, train=300, held_out=100, val=200)

    better = (CEILING, REPAIRED) if level else ()
    return Suite("cells", make, (*NOISY_ARMS, *better), OVERFIT, start_step=1200, first=1500)


def _tiny(source: pathlib.Path | None, output: pathlib.Path, seed: int) -> Files:
    return labels.shapes(source, output, "una", 0.3, seed, train=8, held_out=4, val=4, size=64)


TINY = {
    "steps": "4",
    "batch_size": "4",
    "data.train.scale": "(64,48,64)",
    "data.train.buckets": "((64,64),)",
    "data.val.scale": "(64,64)",
    "data.val.buckets": "((64,64),)",
    "model.backbone.base_channels": "8",
    "model.fpn.channels": "16",
    "model.rpn.channels": "16",
    "model.roi_head.fc_channels": "16",
    "checkpoint.every": "2",
    "log.every": "1",
}

# The paper's table as the paper has it, each row as long as the method: for whoever has the GPUs.
COCO = Suite(
    "faster_r50",
    labels.coco,
    (PLAIN, *STRONG, *(Arm(row, row) for row in ABLATION_ROWS), Arm("mixtraining")),
    {"checkpoint.every": "7330", "checkpoint.keep": "12"},
    start_step=0,
    weights="resnet50",
)

SUITES: dict[str, Suite] = {
    "cells": Suite(
        "cells",
        labels.cells,
        (PLAIN, MENDED, CEILING, REPAIRED, MISSING_ONLY, FULL_AUTO, FULL, *STRONG),
        auditor=MENDED,
        calibration=OWN,
    ),
    "cells_errors": Suite(
        "cells", labels.damaged_cells, (PLAIN, REPAIRED, CEILING), calibration=OWN
    ),
    "cells_all": Suite("cells", labels.all_cells, (PLAIN, MENDED)),
    "una0": _noise("una", 0.0),
    "una30": _noise("una", 0.3),
    "oamil20": _noise("oamil", 0.2),
    "ablation": _noise("una", 0.3)._replace(arms=(PLAIN, FULL, *ABLATION)),
    "coco": COCO,
    "quick": Suite("cells", _tiny, (PLAIN, MISSING_ONLY), TINY, start_step=2),
}
