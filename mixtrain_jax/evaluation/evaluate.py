"""A checkpoint scored on a split, and what is written of it."""

import itertools
import json
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mixtrain_jax.config import agreement
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import coco, detect, error_page
from mixtrain_jax.evaluation.detect import Weights
from mixtrain_jax.runtime import parallel, storage


def evaluate(
    asked: ConfigDict,
    weights: Weights,
    output: epath.Path | None,
    split: str = "val",
    page: bool = False,
) -> dict[str, Any]:
    """Evaluates weights on a split, says what it finds, and writes it down if it is told where.

    Args:
      asked: the whole config.
      weights: of the detector.
      output: where the detections go; metrics.json (metrics_test.json) is written beside it.
      split: "val" or "test"; either is seen at the scale and in the buckets of val.
      page: whether to write errors.html beside the detections too.

    Returns:
      Metrics as `coco.score` gives them; the same on all hosts.

    Raises:
      UserError: the weights are of another model or other classes than the split has.
    """
    if output is not None and output.name == _scores_name(split):
        raise UserError(f"{output}: the scores are written there; choose another file")
    asked = detect.as_trained(asked, weights)
    dataset = load_dataset(asked.data, split)
    config = resolve(asked, val=dataset, devices=parallel.device_count())
    check_categories(weights.source, weights.meta, dataset)
    detect.check_parameters(weights.source, weights.params, config.model)
    step = weights.meta.get("step")
    agreement.check(config, [dataset], step, weights.params)

    parallel.say(dataset.report.text)
    about = detect.describe(weights, config.data.val.scale)
    parallel.say(about)
    metrics, results = detect.evaluate(
        detect.predictor(config.model, config.data, config.eval.dtype),
        parallel.replicate(weights.params),
        dataset,
        config.data,
        config.eval,
    )
    parallel.say(coco.table(metrics))
    if output is not None and parallel.host()[0] == 0:
        scores = output.with_name(_scores_name(split))
        of = {
            "checkpoint": weights.source,
            "weights": weights.which,
            "step": step,
            "data": dataset.annotations.source,
            "images": min(config.eval.images or len(dataset), len(dataset)),
        }
        storage.write_json(scores, {**metrics, "of": of})
        storage.write_json(output, coco.with_original_ids(results, dataset))
        parallel.say(f"wrote {output} and {scores}")
        if page:
            scored = dataset.take(np.arange(config.eval.images or len(dataset))[: len(dataset)])
            written = error_page.write(scored, results, output.parent, about, suffix(split))
            parallel.say(f"wrote {written}")
    return metrics


def refuse_foreign(output: epath.Path, split: str, page: bool) -> None:
    """Raises UserError where files stand in the way that no evaluation wrote.

    Args:
      output: where the detections are to go.
      split: "val" or "test".
      page: errors.html is to be written, too.
    """
    scores = output.with_name(_scores_name(split))
    others = [output, output.with_name(f"errors{suffix(split)}.html")][: 1 + page]
    try:
        found = json.loads(storage.read(scores))
        ours = isinstance(found, dict) and ("of" in found or found.keys() >= set(coco.KEYS))
    except FileNotFoundError:
        ours = not any(map(storage.exists, others))
    except ValueError:
        ours = False
    if not ours:
        raise UserError(
            f"{' or '.join(path.name for path in (scores, *others))} is here, and no evaluation "
            "wrote it; choose another place with --output"
        )


def suffix(split: str) -> str:
    """What the names of files end with that are of a split: nothing for val."""
    return "" if split == "val" else f"_{split}"


def _scores_name(split: str) -> str:
    return f"metrics{suffix(split)}.json"


def check_categories(source: str, meta: dict[str, Any], dataset: Dataset) -> None:
    """Raises UserError if the checkpoint names its classes, and otherwise than the data set does.

    Their ids may differ, as between COCO's files and TensorFlow Datasets: results have the data
    set's own.
    """
    trained, ours = (
        [category["name"] for category in categories]
        for categories in (meta.get("categories", dataset.categories), dataset.categories)
    )
    for label, (there, here) in enumerate(itertools.zip_longest(trained, ours, fillvalue="absent")):
        if there != here:
            raise UserError(
                f"{source} was trained on other categories than {dataset.name} has: "
                f"label {label} is {there} there, {here} here"
            )
