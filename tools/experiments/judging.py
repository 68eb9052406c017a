"""What is measured of one arm: scores, working points, and what its teacher made of the labels.

Average precision ranks, so missing labels hurt it little; what they hurt is where people cut. So a
threshold is chosen on held-out noisy labels, as a user would, and judged on clean ones.
"""

import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mixtrain_jax.config import load
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.evaluation import coco, detect
from mixtrain_jax.evaluation import working_point as points
from mixtrain_jax.evaluation.working_point import Matches
from mixtrain_jax.runtime import checkpoint, parallel
from tools.experiments.labels import Files

LOWEST = 0.01  # least score of a detection; AP is of those above the model's own threshold
RECALL = 0.95  # of held-out human boxes, where another threshold is chosen
PRECISION = 0.95


class Judge:
    """Scores checkpoints of one model on one experiment's labels."""

    def __init__(self, asked: ConfigDict, files: Files):
        self._least = asked.model.roi_head.score_threshold
        self._sets = {
            "val": _dataset(asked, files.val, files.val_images),
            "held_out": _dataset(asked, files.held_out, files.images),
        }
        if files.unseen is not None and files.unseen_images is not None:
            self._sets["unseen"] = _dataset(asked, files.unseen, files.unseen_images)
        asked = load.override_all(asked, {"model.roi_head.score_threshold": str(LOWEST)})
        self._config = resolve(asked, val=self._sets["val"], devices=parallel.device_count())
        asked = self._config
        self._predict = detect.predictor(asked.model, asked.data, asked.eval.dtype)

    def score(self, workdir: pathlib.Path, which: str, step: int) -> dict[str, Any]:
        """Returns the figures of one set of weights; thresholds are chosen on held-out labels."""
        params = self._weights(workdir, which, step)
        found = {name: self._detect(params, name) for name in ("val", "held_out")}
        clean, noisy = (
            points.match(self._sets[name].ground_truth, found[name]) for name in ("val", "held_out")
        )
        return {**self._average_precision("val", found["val"]), **working_points(clean, noisy)}

    def precision(
        self, workdir: pathlib.Path, which: str, step: int, name: str
    ) -> dict[str, float]:
        """Average precision alone, on "val" or on "unseen" images; {}: there are none."""
        if name not in self._sets:
            return {}
        found = self._detect(self._weights(workdir, which, step), name)
        return self._average_precision(name, found)

    def _weights(self, workdir: pathlib.Path, which: str, step: int) -> Any:
        params, _ = checkpoint.load_weights(str(workdir), which, step)
        return parallel.replicate(params)

    def _average_precision(self, name: str, found: list[dict[str, Any]]) -> dict[str, float]:
        above = [entry for entry in found if entry["score"] > self._least]
        metrics = coco.score(self._sets[name].ground_truth, above)
        return {key: metrics[key] for key in ("AP", "AP50", "AP75")}

    def _detect(self, params: Any, name: str) -> list[dict[str, Any]]:
        config, dataset = self._config, self._sets[name]
        return detect.evaluate(self._predict, params, dataset, config.data, config.eval)[1]


def working_points(clean: Matches, noisy: Matches) -> dict[str, Any]:
    """Figures of detections at thresholds; `noisy` chooses, `clean` judges.

    The correction for unlabelled objects divides scores by the mean score of held-out human boxes
    that are found. It moves no threshold that is chosen by the data, so it only has figures of its
    own at the score 0.5.
    """
    chosen = points.best_f1(noisy).threshold
    by_recall = points.at_recall(noisy, RECALL).threshold
    mean = float(noisy.scores[noisy.right].mean()) if noisy.right.any() else 1.0
    corrected = Matches(np.minimum(clean.scores / mean, 1), clean.right, clean.objects)
    best, half, at = points.best_f1(clean), points.at(clean, 0.5), points.at(clean, chosen)
    return {
        "F1 chosen": at.f1,
        "precision chosen": at.precision,
        "recall chosen": at.recall,
        "threshold chosen": chosen,
        "F1 by recall": points.at(clean, by_recall).f1,
        "threshold by recall": by_recall,
        "recall at precision .95": points.at_precision(clean, PRECISION).recall,
        "F1 best": best.f1,
        "threshold best": best.threshold,
        "F1 at .5": half.f1,
        "precision at .5": half.precision,
        "recall at .5": half.recall,
        "F1 at .5 corrected": points.at(corrected, 0.5).f1,
        "calibration error": points.calibration_error(clean, least=0.05),
        "calibration error corrected": points.calibration_error(corrected, least=0.05),
    }


def steps_of(workdir: pathlib.Path) -> list[int]:
    """Steps of the checkpoints that a run kept, ascending."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))


def speed(workdir: pathlib.Path) -> dict[str, float]:
    """Median images a second of plain and of mixed steps, as the run logged them."""
    kinds: dict[str, list[float]] = {"plain": [], "mixed": []}
    for line in _lines(workdir):
        if "images_per_second" in line:
            mixed = "boxes/missing" in line
            kinds["mixed" if mixed else "plain"].append(line["images_per_second"])
    return {name: float(np.median(values)) for name, values in kinds.items() if values}


def teacher_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """What the teacher did over training: its part of the lines of metrics.jsonl."""
    wanted = ("step", "boxes/", "teacher/")
    return [
        {name: value for name, value in line.items() if name.startswith(wanted)}
        for line in _lines(workdir)
        if "boxes/missing" in line
    ]


def _lines(workdir: pathlib.Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _dataset(asked: ConfigDict, annotations: pathlib.Path, images: pathlib.Path) -> Dataset:
    places = {"data.val.annotations": str(annotations), "data.val.images": str(images)}
    return load_dataset(load.override_all(asked, {"data.source": "coco", **places}).data, "val")
