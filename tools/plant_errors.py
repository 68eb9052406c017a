"""Plants errors into the labels of a COCO file, for anyone who measures what finds or mends them.

python tools/plant_errors.py train.json --noise=errors:0.05 --seed=0 --output=damaged.json

Kinds of noise, with their level: errors (the share of dropped, of flipped, of shifted and of
spawned boxes each), una (the ratio of universal noise) and oamil (how far every box moves); see
mixtrain_jax/auditing/noise.py. Prints what was done. The file that was read stays as it is; in the
other one `source` of each annotation is the id of the one it came from, null for a spawned one.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from mixtrain_jax import cli
from mixtrain_jax.auditing import noise
from mixtrain_jax.auditing.corrections import to_bbox
from mixtrain_jax.auditing.labels import Ints, Labels, from_coco
from mixtrain_jax.data.sources import text_files
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

# Functions of (clean labels, sizes of the images, classes, level, seed).
KINDS: dict[str, Callable[[Labels, Ints, int, float, int], noise.Planted]] = {
    "errors": noise.plant,
    "una": noise.una,
    "oamil": lambda clean, sizes, classes, level, seed: noise.box_noise(clean, sizes, level, seed),
}


def plant(truth: dict[str, Any], kind: str, level: float, seed: int) -> tuple[dict[str, Any], str]:
    """Plants errors into a COCO file's content.

    Args:
      truth: the content; crowds are no labels here and are left out.
      kind: of `KINDS`.
      level: of the noise.
      seed: the same seed plants the same errors.

    Returns:
      The damaged content, and a line on what was done.

    Raises:
      UserError: there is no such kind, it cannot have this level, or an image has no size.
    """
    if kind not in KINDS:
        raise UserError(f"noise '{kind}': choose from {', '.join(KINDS)}")
    table, places, categories = from_coco(truth, "the clean labels")
    if not truth["images"]:
        raise UserError("the clean labels: there are no images")
    for image in truth["images"]:
        if not (image.get("height") and image.get("width")):
            name = image.get("file_name", image["id"])
            raise UserError(f"the clean labels: image {name} has no height and width")
    sizes = np.array([[image["height"], image["width"]] for image in truth["images"]], np.int32)
    try:
        done = KINDS[kind](table, sizes, len(categories), level, seed)
    except ValueError as problem:
        raise UserError(f"noise {kind}:{level}: {problem}") from problem
    damaged = done.labels
    rows = zip(damaged.image.tolist(), damaged.boxes, damaged.labels.tolist(), done.source.tolist())
    entries = [
        {
            "id": number,
            "image_id": truth["images"][image]["id"],
            "category_id": categories[label],
            "bbox": to_bbox(box),
            "area": float(np.prod(box[2:] - box[:2])),
            "iscrowd": 0,
            "source": None if source < 0 else id_at(truth, places[source]),
        }
        for number, (image, box, label, source) in enumerate(rows, 1)
    ]
    said = (
        f"{len(table)} boxes: {len(done.dropped(table))} dropped, {done.flipped(table).sum()} of "
        f"another class, {done.moved(table).sum()} moved, {done.spawned().sum()} spawned"
    )
    if others := len(truth["annotations"]) - len(table):
        said += f"; {others} more that are crowds, or no box, are left out"
    return truth | {"annotations": entries}, said


def id_at(truth: dict[str, Any], place: int) -> Any:
    """The id of an annotation of a COCO file; its place in the list where it has none."""
    return truth["annotations"][place].get("id", int(place))


def main(flags: argparse.Namespace) -> None:
    """Plants what the flags name."""
    kind, _, level = flags.noise.partition(":")
    try:
        share = float(level)
    except ValueError:
        raise UserError(f"--noise={flags.noise}: write KIND:LEVEL, such as una:0.3") from None
    source, target = storage.absolute(flags.annotations), storage.absolute(flags.output)
    if os.path.realpath(source) == os.path.realpath(target):
        raise UserError(f"--output={flags.output} is the file that is read; choose another")
    if storage.exists(target):
        raise UserError(f"{flags.output} exists; remove it or choose another --output")
    content, said = plant(text_files.read_json(source), kind, share, flags.seed)
    storage.write_json(target, content)
    print(f"wrote {flags.output}: {said}")


def parse() -> argparse.ArgumentParser:
    """Returns the program's flags."""
    parser = cli.parser(__doc__, takes_config=False)
    parser.add_argument("annotations", metavar="COCO.json", help="good labels")
    parser.add_argument("--noise", required=True, help=f"KIND:LEVEL, of {', '.join(KINDS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, metavar="FILE.json")
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
