"""Evaluates a trained detector on the val or test split.

python -m mixtrain_jax.evaluate --workdir=runs/quickstart

Prints COCO's twelve numbers and a table of the classes, and writes them as metrics.json beside the
detections in COCO's results format (--output, default detections.json in the workdir, or in the
current directory where only --checkpoint is given). --split=test writes metrics_test.json and
detections_test.json. --page writes errors.html (errors_test.html) beside them: what kinds of errors
cost how much, the best threshold of each class, and the worst images. The config is the run's own,
or --config; --data=FOLDER takes other data, and writes to on_PARENT_FOLDER in the workdir.
"""

import argparse

from mixtrain_jax import cli
from mixtrain_jax.errors import UserError, memory_in_one_line


def main(flags: argparse.Namespace) -> None:
    """Evaluates what the flags name."""
    source = flags.checkpoint or flags.workdir
    if source is None:
        raise UserError(
            "say what to evaluate: --workdir=DIR (its newest checkpoint) or --checkpoint=PATH"
        )

    from etils import epath

    from mixtrain_jax import process
    from mixtrain_jax.evaluation import detect, error_page
    from mixtrain_jax.evaluation.evaluate import evaluate, refuse_foreign, suffix
    from mixtrain_jax.runtime import processes, storage

    process.prepare(flags.config, alone=flags.coordinator is None)
    processes.start(flags.coordinator, flags.processes, flags.process)
    folder = epath.Path(flags.workdir or ".")
    if flags.data:  # the figures of the run's own data stay
        place = epath.Path(flags.data).absolute()
        folder /= f"on_{place.parent.name}_{place.stem if storage.is_file(place) else place.name}"
    output = epath.Path(flags.output or folder / f"detections{suffix(flags.split)}.json")
    with processes.abort_all_on_error(), memory_in_one_line(detect.LESS_MEMORY):
        if not (flags.workdir or flags.output):  # the current directory is no run's
            refuse_foreign(output, flags.split, flags.page)
        if flags.page:
            error_page.require()
        weights = detect.read_weights(source, detect.which_weights(None, flags.config))
        evaluate(flags.config, weights, output, flags.split, flags.page)


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
        "in the workdir, without --workdir in the current directory, with --data in "
        "on_PARENT_FOLDER there",
    )
    parser.add_argument(
        "--split", default="val", choices=("val", "test"), help="which split (default val)"
    )
    parser.add_argument(
        "--page", action="store_true", help="write errors.html too: where average precision is lost"
    )
    cli.add_data(parser)
    cli.add_processes(parser)
    return parser


def command() -> None:
    """The command, as a console script runs it."""
    cli.run(main, parse())


if __name__ == "__main__":
    command()
