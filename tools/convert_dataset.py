"""Converts a data set among COCO, Pascal VOC and YOLO.

python tools/convert_dataset.py FOLDER --to=yolo --output=DIR

FOLDER is anything that --data takes; every split that is found is written. Image files are copied,
or linked with --images=link, or left alone with --images=none. What cannot be read, and what the
new format cannot hold, is counted.
"""

import argparse
import pathlib
import sys

import numpy as np
from etils import epath

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from mixtrain_jax import cli
from mixtrain_jax.config import load, recipes
from mixtrain_jax.data.sources import headers, layout, writers
from mixtrain_jax.data.sources.annotations import Annotations
from mixtrain_jax.data.sources.image_files import Exif
from mixtrain_jax.data.sources.load import read_annotations, same_categories
from mixtrain_jax.data.sources.report import LEFT_OUT, WARNING
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage


def convert(
    folder: str, to: str, output: epath.Path, images: writers.Images, exif: Exif = "auto"
) -> list[str]:
    """Writes each split of a data set in another format; returns what is to be told, in lines.

    Args:
      folder: of the data set.
      to: "coco", "voc" or "yolo".
      output: folder of the new one.
      images: "copy", "link" or "none".
      exif: whether boxes are of the images as EXIF turns them: `config.data.exif`.

    Raises:
      UserError: the data set cannot be read, its splits have other classes, or `output` is not
        empty.
    """
    if storage.is_directory(output) and storage.list_folder(output):
        raise UserError(f"--output={output} is not empty; choose another folder")
    for place in (folder, output) if images == "link" else ():
        if not storage.is_local(place):
            raise UserError(f"{place}: a bucket knows no links; --images=copy copies")
    found = layout.find(folder)
    data = load.override_all(recipes.base(), found.overrides | {"data.val_share": "0"}).data
    tables: dict[str, Annotations] = {}
    for split in found.parts:
        part = split if data[split].annotations or data[split].images else "train"
        table = read_annotations(data, part)
        table, reading = headers.complete(table, exif, split, data.white)
        table = table if images == "none" else _with_images(table)
        if to == "yolo" and found.source != "yolo":
            table = _of_known_size(table, reading.exif)
        if to == "yolo" and reading.exif == "stored" and headers.any_turned(table):
            table.findings.add(
                WARNING,
                [split],
                "split of images that are not turned as EXIF asks, which YOLO cannot say: train on "
                "it with --config.data.exif=stored",
                of="",
            )
        tables[split] = table
    same_categories({split: table.categories for split, table in tables.items()})
    told = []
    for split, table in tables.items():
        lost = writers.WRITERS[to](table, output, split, images)
        told.append(f"{split}: {len(table)} images, {len(table.ids)} boxes from {table.source}")
        told += [f"  {finding}" for finding in (*table.findings, *lost)]
    if found.source == "coco":
        told.append("masks, key points, licences and further fields of the COCO files are left out")
    return told


def _with_images(table: Annotations) -> Annotations:
    """The images whose files are there; the others are counted."""
    missing = [row for row, path in enumerate(table.paths) if not storage.exists(path)]
    if not missing:
        return table
    lost = [table.files[row] for row in missing]
    table.findings.add(LEFT_OUT, lost, "images whose files are not there", of="")
    return table.take(np.setdiff1d(np.arange(len(table)), missing))


def _of_known_size(table: Annotations, exif: Exif) -> Annotations:
    """The images whose files are as large as declared, as YOLO declares no sizes."""
    sizes = headers.sizes(table, exif)
    other = [row for row, size in sizes.items() if size != tuple(table.sizes[row].tolist())]
    if not other:
        return table
    table.findings.add(
        LEFT_OUT, [table.files[row] for row in other], "images of another size than declared", of=""
    )
    return table.take(np.setdiff1d(np.arange(len(table)), other))


def main(flags: argparse.Namespace) -> None:
    """Converts what the flags name."""
    told = convert(flags.folder, flags.to, epath.Path(flags.output), flags.images, flags.exif)
    print("\n".join([*told, f"wrote {flags.output}"]))


def parse() -> argparse.ArgumentParser:
    """Returns the program's flags."""
    parser = cli.parser(__doc__, takes_config=False)
    parser.add_argument("folder", metavar="FOLDER", help="the data set, its data.yaml or its JSON")
    parser.add_argument("--to", required=True, choices=tuple(writers.WRITERS), help="the format")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the new data set")
    parser.add_argument("--images", default="copy", choices=("copy", "link", "none"))
    parser.add_argument(
        "--exif", default="auto", choices=("auto", "upright", "stored"),
        help="whether boxes are of the images as EXIF turns them, or as they are stored",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
