"""Dumps what a run's detectors see of labels with planted errors, for tools/benchmark_audit.py.

python tools/audit_planted.py --workdir=runs/mine --truth=clean.json --levels=0.05 --seeds=0,1,2
  --output=planted

The run's labels are those of the same images, such as damaged ones from tools/plant_errors.py. Two
detectors, each trained without half of the images (the folds of `mixtrain_jax.audit`; resumed where
they are there), look at the half they have not seen. For every level and seed errors are planted
into the clean labels anew, so the detectors know none of them, and OUTPUT/LEVEL-SEED.npz is
written, with the truth in it.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from etils import epath

from mixtrain_jax import cli, process
from mixtrain_jax.auditing import dump
from mixtrain_jax.auditing.dump import Dump
from mixtrain_jax.auditing.labels import from_coco
from mixtrain_jax.config import load
from mixtrain_jax.data.sources import text_files
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.errors import STOPPED, UserError
from mixtrain_jax.evaluation.audit import audit
from mixtrain_jax.runtime import processes, storage
from mixtrain_jax.training.folds import judges
from mixtrain_jax.training.run import stoppable
from tools.plant_errors import id_at, plant

FOLDS = 2
T = TypeVar("T")


def main(flags: argparse.Namespace) -> int:
    """Trains the detectors, then writes a dump for every level and seed; returns the exit code."""
    process.prepare(flags.config, training=True)
    processes.start()
    workdir, output = flags.workdir, storage.local(flags.output, "--output")
    if flags.config.data.source != "coco":
        raise UserError(
            f"the run's labels are {flags.config.data.source}: errors are planted into COCO files "
            "alone; convert them with tools/convert_dataset.py, and train on these"
        )
    truth = text_files.read_json(flags.truth)
    damages = {
        f"{level}-{seed}": plant(truth, "errors", level, seed)
        for level in _numbers("levels", flags.levels, float)
        for seed in _numbers("seeds", flags.seeds, int)
    }
    dataset = load_dataset(flags.config.data, "train")
    if dataset.image_ids.tolist() != [image["id"] for image in truth["images"]]:
        raise UserError(f"{flags.truth}: its images are not those of the run, in their order")
    storage.make_directory(output)
    with stoppable() as stop:
        found = judges(flags.config, dataset, workdir, epath.Path(workdir), "train", FOLDS, stop)
    if found is None:
        return STOPPED
    for name, (damaged, said) in damages.items():
        path = output / f"{name}.json"
        storage.write_json(path, damaged)
        # What it holds is train already, also where the run's train is a part of a file.
        changes = {"data.train.annotations": str(path), "data.val_share": "0"}
        config = load.override_all(flags.config, changes)
        planted = load_dataset(config.data, "train")
        folder = epath.Path(output / name)
        audit(config, planted, found, folder, split="train", seen="out of fold", dump=True)
        seen = with_truth(dump.read(folder / "looks.npz"), truth, damaged, flags.truth)
        note = f"{said}; {seen.note}"
        dump.write(output / f"{name}.npz", dataclasses.replace(seen, note=note))
        print(f"wrote {output / name}.npz: {said}", flush=True)
    return 0


def _numbers(flag: str, text: str, kind: Callable[[str], T]) -> list[T]:
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--{flag}={text}: write numbers with commas between them") from None


def with_truth(seen: Dump, truth: dict[str, Any], damaged: dict[str, Any], where: str) -> Dump:
    """Returns a dump with the clean labels, and for each human box the one it came from.

    Args:
      seen: what detectors see of the damaged labels.
      truth, damaged: contents of COCO files, the second one made by `plant`.
      where: the first one's name, for messages.

    Raises:
      UserError: the dump's images or boxes are not the damaged file's, in its order.
    """
    human, _, _ = from_coco(damaged, where)
    ids = [image["id"] for image in truth["images"]]
    if seen.image_ids.tolist() != ids or not np.array_equal(seen.human.boxes, human.boxes):
        raise UserError(f"{where}: sort its images by id, and leave out boxes that lie outside")
    clean, places, _ = from_coco(truth, where)
    rows = {id_at(truth, place): row for row, place in enumerate(places)}
    came = [entry["source"] for entry in damaged["annotations"]]
    source = np.array([-1 if one is None else rows[one] for one in came], np.int32)
    known = np.ones(len(ids), bool)
    return dataclasses.replace(seen, truth=clean, truth_known=known, source=source)


def parse() -> argparse.ArgumentParser:
    """Returns the program's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="a run's directory; its folds are in it")
    parser.add_argument("--truth", required=True, metavar="FILE", help="clean labels, COCO")
    parser.add_argument("--levels", default="0.05", help="shares of each error, with commas")
    parser.add_argument("--seeds", default="0", help="of the planted errors, with commas")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the dumps")
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
