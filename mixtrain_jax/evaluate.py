"""Evaluates a trained detector on the val split.

python -m mixtrain_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

Prints COCO's twelve numbers and a table of the classes, and writes them as metrics.json beside the
detections in COCO's results format (--output, default detections.json in the workdir).
"""

import argparse
from typing import Any

from absl import logging
from etils import epath

from mixtrain_jax import cli
from mixtrain_jax.data import records, sources
from mixtrain_jax.evaluation import coco, detect
from mixtrain_jax.runtime import checkpoint, files, parallel
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

    parallel.start()
    parallel.check_batch_size("eval.batch_size", config.eval.batch_size)
    dataset = sources.load(config.data, "val")
    params, meta = checkpoint.load_weights(source, which)
    check_categories(source, meta, dataset)
    config.model.num_classes = len(dataset.categories)
    check_parameters(source, params, config)

    print(dataset.report, flush=True)
    metrics, results = detect.evaluate(
        detect.predictor(config), parallel.place(params), dataset, config
    )
    print(coco.table(metrics))
    if parallel.host()[0] == 0:
        files.write_json(output, results)
        files.write_json(output.with_name("metrics.json"), metrics)
        print(f"wrote {output} and {output.with_name('metrics.json')}")


def check_categories(source: str, meta: dict, dataset: records.Dataset) -> None:
    """Raises UserError unless the checkpoint was trained on the data set's categories."""
    trained = meta.get("categories")
    if trained is not None and trained != dataset.categories:
        strange = next(
            (pair for pair in zip(trained, dataset.categories, strict=False) if pair[0] != pair[1]),
            (f"{len(trained)} categories", f"{len(dataset.categories)}"),
        )
        raise UserError(
            f"{source} was trained on other categories than {dataset.name} has: "
            f"{strange[0]} there, {strange[1]} here"
        )


def check_parameters(source: str, params: Any, config: Any) -> None:
    """Raises UserError, naming the first array that differs, unless parameters fit the model."""
    expected = detect.parameter_shapes(config)
    checkpoint.check_same_arrays(source, expected, params)


def _output(flags: argparse.Namespace) -> epath.Path:
    if flags.output:
        return epath.Path(flags.output)
    return epath.Path(flags.workdir or ".") / "detections.json"


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", help="a run's directory: its newest checkpoint is evaluated")
    parser.add_argument("--checkpoint", help="a checkpoint's path instead")
    parser.add_argument(
        "--output", help="file for the detections; metrics.json is written beside it"
    )
    return parser


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    cli.run(main, parse())
