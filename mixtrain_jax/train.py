"""Trains a detector.

python -m mixtrain_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

Started again with the same workdir, training resumes where it stopped; a finished run says so and
ends. The workdir gets the config as it was asked for and as it was used, checkpoints, metrics
(TensorBoard and metrics.jsonl) and pictures.
"""

import argparse
import sys
import types
from typing import Any

from mixtrain_jax import cli


class _Function(types.ModuleType):
    """This module as `mixtrain_jax.train`: the command, and the function of the Python API."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Trains; see `mixtrain_jax.api.train`."""
        from mixtrain_jax import api

        return api.train(*arguments, **options)


sys.modules[__name__].__class__ = _Function


def main(flags: argparse.Namespace) -> int:
    """Trains what the flags name; returns the exit code."""
    from etils import epath

    from mixtrain_jax import process
    from mixtrain_jax.runtime import parallel, processes
    from mixtrain_jax.training.run import run

    process.prepare(flags.config, training=True, alone=flags.coordinator is None)
    processes.start(flags.coordinator, flags.processes, flags.process)
    parallel.say(parallel.describe())
    return run(
        flags.config,
        epath.Path(flags.workdir),
        flags.origin,
        flags.allow_changes,
        flags.from_scratch,
    )


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="directory of this run")
    cli.add_data(parser)
    parser.add_argument(
        "--allow_changes",
        action="store_true",
        help="resume a run although fields differ that make it another run (data, model, ...)",
    )
    parser.add_argument(
        "--from_scratch",
        action="store_true",
        help="train a backbone from random weights that is made for pretrained ones",
    )
    cli.add_processes(parser)
    return parser


def command() -> None:
    """The command, as a console script runs it."""
    cli.run(main, parse())


if __name__ == "__main__":
    command()
