"""Looks at a data set before any training, and writes a recipe for it.

python -m mixtrain_jax.check --data=FOLDER --write=configs/mine.py
python -m mixtrain_jax.train --config=configs/mine.py --workdir=runs/mine

Reads every image once. What is there and what is odd about it (damaged files, duplicates, objects
too small, near-certain mistakes) goes to the terminal, and with the places of all problems to
report.json and check.html in --output. The recipe is chosen from the data and this machine. Exit
code 0 says that training can start on this data, 1 that it cannot.
"""

import argparse
import sys
from typing import Any

from mixtrain_jax import cli
from mixtrain_jax.errors import UserError

CANNOT_START = 1  # exit code


def main(flags: argparse.Namespace) -> int:
    """Checks the data that the flags name; returns the exit code."""
    from etils import epath

    _refuse(flags)

    from mixtrain_jax import process

    process.prepare()

    from mixtrain_jax.inspection import facts, recipe, report, splits, weights
    from mixtrain_jax.runtime import machine, processes

    processes.start(devices=bool(flags.write))
    output = epath.Path(flags.output)
    begin_with = weights.read(flags.weights)
    if flags.write:
        here = machine.this_machine()
        asked = _asked(flags)
        recipe.check_batch(here, asked)
    looked = _look(flags.config)
    config, plan = flags.config, None
    if flags.write:  # what is odd depends on how the images are seen
        found = facts.gather(looked, flags.config.data)
        plan = recipe.choose(found, here, begin_with, asked)
        config = plan.config()
    problems = splits.check(looked, config)
    print(report.text(looked, problems))
    written = [str(report.write_json(output, looked, problems))]
    page = report.write_page(output, flags.data or flags.origin.file, looked, problems)
    if page is None:
        print("no HTML page: pip install jinja2")
    else:
        written.append(str(page))
    print(f"wrote {' and '.join(written)}")
    if plan is not None:
        _write(flags, recipe.text(plan, found, here, flags.write))
        print(f"train with:\n  {recipe.train_command(here, flags.write, config)}")
    return 0 if report.can_start(problems) else CANNOT_START


def _refuse(flags: argparse.Namespace) -> None:
    """Raises UserError for flags that can have no result, before anything is read."""
    from etils import epath

    if flags.config is None:
        raise UserError("say what to look at: --data=FOLDER or --config=FILE")
    if flags.weights and not flags.write:
        raise UserError("--weights is what a recipe starts from: add --write=FILE.py")
    if flags.write and "://" in flags.write:
        raise UserError(f"--write={flags.write}: a recipe is a file of this machine")
    if flags.write and not flags.write.endswith(".py"):
        raise UserError(f"--write={flags.write}: a recipe is a Python file; its name ends in .py")
    if flags.write and epath.Path(flags.write).exists() and not flags.overwrite:
        raise UserError(f"{flags.write} is there already; choose another file, or add --overwrite")


def _look(config: Any) -> list[Any]:
    """Reads the splits that the config names with all their boxes, and every image of them."""
    from mixtrain_jax.config.load import override_all
    from mixtrain_jax.data.sources import load
    from mixtrain_jax.inspection.decode import decode_all

    if not load.has_split(config.data, "train"):
        raise UserError(
            "there is no train split: set config.data.train.annotations, or give --data"
        )
    whole = override_all(config, {"data.max_boxes": str(sys.maxsize)}).data
    train = load.load_dataset(whole, "train")
    data = load.as_train_reads(whole, train)
    datasets = [train]
    datasets += [load.load_dataset(data, s) for s in ("val", "test") if load.has_split(data, s)]
    for other in datasets[1:]:
        load.check_same_categories(train, other)
    return [decode_all(dataset, config.data.workers) for dataset in datasets]


def _asked(flags: argparse.Namespace) -> dict[str, Any]:
    """The fields set by flags that a recipe takes over: all but those that say where data is."""
    from mixtrain_jax.config import load
    from mixtrain_jax.inspection import facts

    where = facts.where(flags.config.data)
    folder = {f"data.{name}" for name in (*where, "classes", "val_share")}
    asked = {name: load.get(flags.config, name) for name in flags.origin.flags.keys() - folder}
    if "data.train.scale" in asked:  # which the buckets of a plan were not made for
        asked.setdefault("data.train.buckets", ())
    return asked


def _write(flags: argparse.Namespace, text: str) -> None:
    """Writes the recipe, and says what it left out."""
    from etils import epath

    from mixtrain_jax.config import load
    from mixtrain_jax.runtime import storage

    path = epath.Path(flags.write)
    storage.write(path, text.encode())
    made = load.load(str(path))  # it is a config that train takes
    if flags.weights and not made.init_from:
        print(f"--weights={flags.weights} is left out: a CPU's small network takes none")
    print(f"wrote {path}")


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__, config_required=False)
    cli.add_data(parser)
    parser.add_argument(
        "--output",
        default="runs/check",
        help="directory for report.json and check.html (default runs/check)",
    )
    parser.add_argument("--write", metavar="FILE.py", help="write a recipe for this data to a file")
    parser.add_argument(
        "--weights",
        default="",
        metavar="CHECKPOINT",
        help="pretrained weights that the recipe starts from; see docs/weights.md",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --write")
    return parser


def command() -> None:
    """The command, as a console script runs it."""
    cli.run(main, parse())


if __name__ == "__main__":
    command()
