"""Evaluates a trained detector on the val split.

python -m mixtrain_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

Prints COCO's twelve numbers and a table of the classes, and writes them as metrics.json beside the
detections in COCO's results format (--output, default detections.json in the workdir, or in the
current directory where only --checkpoint is given).
"""

import argparse
import itertools
from typing import Any

from absl import logging
from etils import epath

from mixtrain_jax import cli
from mixtrain_jax.data import records, sources
from mixtrain_jax.evaluation import coco, detect
from mixtrain_jax.runtime import files, parallel
from mixtrain_jax.runtime.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Evaluates what the flags name."""
    source = flags.checkpoint or flags.workdir
    if source is None:
        raise UserError(
            "say what to evaluate: --workdir=DIR (its newest checkpoint) or --checkpoint=PATH"
        )
    config = flags.config
    which = config.eval.weights
    if which not in ("student", "teacher"):
        raise UserError(f"config.eval.weights is {which!r}: choose 'student' or 'teacher' here")
    output = _output(flags)

    parallel.start(flags.coordinator, flags.processes, flags.process)
    with parallel.together():
        evaluate(config, source, which, output)


def evaluate(config: Any, source: str, which: str, output: epath.Path) -> None:
    """Evaluates one of a checkpoint's sets of weights on the val split, and writes what it finds.

    Args:
      config: the whole config.
      source: a workdir or checkpoint, as `detect.load_weights` takes it.
      which: "student" or "teacher".
      output: where the detections go; metrics.json is written beside it.
    """
    parallel.check_batch_size("eval.batch_size", config.eval.batch_size)
    dataset = sources.load(config.data, "val")
    params, meta = detect.load_weights(source, which)
    check_categories(source, meta, dataset)
    config.model.num_classes = len(dataset.categories)
    detect.check_parameters(source, params, config)

    parallel.say(dataset.report)
    metrics, results = detect.evaluate(
        detect.predictor(config), parallel.place(params), dataset, config
    )
    parallel.say(coco.table(metrics))
    if parallel.host()[0] == 0:
        files.write_json(output, results)
        files.write_json(output.with_name("metrics.json"), metrics)
        parallel.say(f"wrote {output} and {output.with_name('metrics.json')}")


def check_categories(source: str, meta: dict, dataset: records.Dataset) -> None:
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


def _output(flags: argparse.Namespace) -> epath.Path:
    if flags.output:
        return epath.Path(flags.output)
    return epath.Path(flags.workdir or ".") / "detections.json"


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", help="a run's directory: its newest checkpoint is evaluated")
    parser.add_argument(
        "--checkpoint", help="a checkpoint's path instead, or WORKDIR:best for a run's best by AP"
    )
    parser.add_argument(
        "--output",
        help="file for the detections, metrics.json is written beside it; default detections.json "
        "in the workdir, without --workdir in the current directory",
    )
    cli.add_processes(parser)
    return parser


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    cli.run(main, parse())
