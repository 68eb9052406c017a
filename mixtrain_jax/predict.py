"""Detects objects in image files.

python -m mixtrain_jax.predict --workdir=runs/quickstart --output=DIR IMAGE [IMAGE ...]

An IMAGE is a file, a folder, which is looked through to the bottom, or a pattern. Writes each image
as a picture with boxes, names and scores (--save_as), and detections.json: for each image its
detections, best first, as class name, category id, box (x1 y1 x2 y2 in pixels of the image) and
score. --format=coco adds detections_coco.json, --format=yolo labels/NAME.txt and classes.txt.
Images that cannot be used are named at the end, when all others are written. The config is the
run's own, or --config.
"""

import argparse

from mixtrain_jax import cli
from mixtrain_jax.errors import UserError, memory_in_one_line


def main(flags: argparse.Namespace) -> None:
    """Detects in the images the flags name."""
    source = flags.checkpoint or flags.workdir
    if source is None:
        raise UserError(
            "say what to detect with: --workdir=DIR (its newest checkpoint) or --checkpoint=PATH"
        )
    from etils import epath

    from mixtrain_jax import process
    from mixtrain_jax.evaluation import detect
    from mixtrain_jax.evaluation.predict import predict
    from mixtrain_jax.runtime import parallel, processes

    process.prepare()
    processes.start()
    if (count := parallel.host()[1]) > 1:
        raise UserError(f"prediction runs in one process, and {count} take part; start it alone")
    with memory_in_one_line(detect.LESS_MEMORY):
        predict(
            flags.config,
            source,
            detect.which_weights(flags.weights, flags.config),
            flags.images,
            epath.Path(flags.output),
            flags.threshold,
            save_as=flags.save_as,
            form=flags.format,
        )


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", help="a run's directory: its newest checkpoint detects")
    parser.add_argument(
        "--checkpoint", help="a checkpoint's path instead, or WORKDIR:best for a run's best by AP"
    )
    parser.add_argument(
        "--weights",
        choices=("student", "teacher"),
        help="default: config.eval.weights, the student where that is both",
    )
    parser.add_argument("--output", required=True, help="directory for pictures and reports")
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="detections score above it (default 0.3)"
    )
    parser.add_argument(
        "--save_as", default="png", choices=("jpg", "png", "none"), help="pictures (default png)"
    )
    parser.add_argument(
        "--format",
        default="json",
        choices=("json", "coco", "yolo"),
        help="a report besides detections.json (default json: none)",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    return parser


def command() -> None:
    """The command, as a console script runs it."""
    cli.run(main, parse())


if __name__ == "__main__":
    command()
