"""The label files of experiments: noisy ones to train on, clean ones beside, noisy ones held out.

Held-out labels are as noisy as those that train and of other images than the clean ones that judge:
thresholds are chosen on them, and not on clean labels.
"""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from mixtrain_jax.data.sources import headers, text_files, voc, yolo
from mixtrain_jax.data.sources.annotations import Annotations
from mixtrain_jax.data.sources.dataset import coco_format
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage
from tools import make_shapes
from tools.plant_errors import plant

PLANTED = 0.1  # of the boxes each are dropped, of another class, shifted, spawned
CELLS = ("WBC", "RBC", "Platelets")
HELD_OUT = 59  # of COCO's training images one in so many, 2,005 of 118,287


class Files(NamedTuple):
    """COCO files of an experiment, with the folder of each one's images.

    Attributes:
      noisy, clean: labels of the training images; clean may lack images.
      held_out: noisy labels of further images.
      val: clean labels of still others.
      images: folder of the training and the held-out images.
      val_images: folder of the val images.
      unseen: clean labels of images on which nothing was ever chosen; None: there are none left.
      unseen_images: folder of these.
    """

    noisy: pathlib.Path
    clean: pathlib.Path
    held_out: pathlib.Path
    val: pathlib.Path
    images: pathlib.Path
    val_images: pathlib.Path
    unseen: pathlib.Path | None = None
    unseen_images: pathlib.Path | None = None


def cells(source: pathlib.Path | None, output: pathlib.Path, seed: int) -> Files:
    """The 147 cell images that have both sets of labels; 143 others are held out.

    Args:
      source: a folder with `bccd` (Pascal VOC), `txl` (YOLO text files), train.txt and val.txt.
      output: folder for the files.
      seed: not used: every seed sees the same images.
    """
    del seed
    return _cells(source, output, every=False)


def all_cells(source: pathlib.Path | None, output: pathlib.Path, seed: int) -> Files:
    """All 290 training images; thresholds are then chosen on noisy labels of the val images."""
    del seed
    return _cells(source, output, every=True)


def damaged_cells(source: pathlib.Path | None, output: pathlib.Path, seed: int) -> Files:
    """The 147 images with their better labels, into which errors of four kinds are planted.

    The held-out labels are those of `cells`: a threshold chosen there says nothing here.
    """
    files = _cells(source, output, every=False, noisy="people")
    damaged, said = plant(json.loads(files.clean.read_text()), "errors", PLANTED, seed)
    noisy = output / "noisy.json"
    print(f"{noisy}: {said}", flush=True)
    _save(noisy, damaged)
    return files._replace(noisy=noisy)


def _cells(
    source: pathlib.Path | None, output: pathlib.Path, every: bool, noisy: str = "noisy"
) -> Files:
    if source is None:
        raise UserError("--source: name the folder with bccd, txl, train.txt and val.txt")
    output.mkdir(parents=True, exist_ok=True)
    images = source / "bccd" / "JPEGImages"
    people = voc.read(str(source / "bccd" / "Annotations"), str(images), CELLS)
    better = yolo.read(str(source / "txl"), str(images), "train", CELLS)
    people, better = (headers.complete(table, "auto", "cells")[0] for table in (people, better))
    train, val = (str(source / f"{split}.txt") for split in ("train", "val"))
    of_train = people.listed(train)
    both = better.listed(train)
    both = both.take(np.unique(both.rows))  # the others have no label file
    known = np.isin(of_train.files, both.files)
    held_out = people.listed(val) if every else of_train.take(np.flatnonzero(~known))
    return Files(
        noisy=_write(of_train if every else of_train.take(np.flatnonzero(known)), output / noisy),
        clean=_write(both, output / "clean"),
        held_out=_write(held_out, output / "held_out"),
        val=_write(better.listed(val), output / "val"),
        images=images,
        val_images=images,
    )


def shapes(
    source: pathlib.Path | None,
    output: pathlib.Path,
    kind: str,
    level: float,
    seed: int,
    *,
    train: int,
    held_out: int,
    val: int,
    size: int = 256,
) -> Files:
    """Generated images with planted noise; another seed plants other noise into the same images.

    Args:
      source: not used.
      output: folder for the images, which seeds share, and for the files.
      kind: of noise, see `plant_errors.KINDS`.
      level: of the noise.
      seed: of the noise.
      train, held_out, val: numbers of images; as many as of val are for the end alone.
      size: their height and width in pixels.
    """
    del source
    pictures = output.parent / "images"
    if not (pictures / "annotations" / "val.json").exists():
        make_shapes.make(
            str(pictures),
            train=train + held_out,
            val=val,
            size=size,
            seed=0,
            drop=0,
            shift=0,
            swap=0,
        )
    unseen = output.parent / "unseen"
    if not (unseen / "annotations" / "val.json").exists():
        make_shapes.make(str(unseen), train=0, val=val, size=size, seed=2)
    output.mkdir(parents=True, exist_ok=True)
    truth = json.loads((pictures / "annotations" / "train.json").read_text())
    if len(truth["images"]) != train + held_out:
        raise UserError(
            f"{pictures} has {len(truth['images'])} training images, and this suite takes "
            f"{train + held_out}: choose another --output"
        )
    parts = {
        "clean": _of_images(truth, lambda place: place < train),
        "held_out": _of_images(truth, lambda place: place >= train),
    }
    parts["noisy"], _ = plant(parts["clean"], kind, level, seed)
    parts["held_out"], _ = plant(parts["held_out"], kind, level, seed)
    for name, content in parts.items():
        _save(output / f"{name}.json", content)
    return Files(
        noisy=output / "noisy.json",
        clean=output / "clean.json",
        held_out=output / "held_out.json",
        val=pictures / "annotations" / "val.json",
        images=pictures / "train",
        val_images=pictures / "val",
        unseen=unseen / "annotations" / "val.json",
        unseen_images=unseen / "val",
    )


def coco(source: pathlib.Path | None, output: pathlib.Path, seed: int) -> Files:
    """COCO's own labels; of the training images one in `HELD_OUT` is held out.

    The labels that train are their own clean ones: what the diagnosis calls right is what people
    drew.

    Args:
      source: a folder with `annotations`, `train2017` and `val2017`, as COCO is unpacked.
      output: the files are written beside it, for all seeds alike.
      seed: not used.
    """
    del seed
    if source is None:
        raise UserError("--source: name the folder with annotations, train2017 and val2017")
    truth = text_files.read_json(str(source / "annotations" / "instances_train2017.json"))
    folder = output.parent / "labels"
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in (
        ("train", lambda place: place % HELD_OUT != 0),
        ("held_out", lambda place: place % HELD_OUT == 0),
    ):
        _save(folder / f"{name}.json", _of_images(truth, chosen))
    return Files(
        noisy=folder / "train.json",
        clean=folder / "train.json",
        held_out=folder / "held_out.json",
        val=source / "annotations" / "instances_val2017.json",
        images=source / "train2017",
        val_images=source / "val2017",
    )


def objects(output: pathlib.Path, *, train: int, size: int = 256) -> None:
    """Other generated images without noise, whose objects are all of one class.

    A detector of them knows objects when it sees them and no class of `shapes`.

    Args:
      output: folder for the images, in `train`, and for the COCO file, objects.json.
      train: number of images.
      size: their height and width in pixels.
    """
    truth = output / "annotations" / "train.json"
    if not truth.exists():
        make_shapes.make(str(output), train=train, val=0, size=size, seed=1)
    content = json.loads(truth.read_text())
    content["categories"] = [{"id": 1, "name": "object"}]
    for entry in content["annotations"]:
        entry["category_id"] = 1
    _save(output / "objects.json", content)


def _of_images(truth: dict[str, Any], chosen: Any) -> dict[str, Any]:
    images = [image for place, image in enumerate(truth["images"]) if chosen(place)]
    ids = {image["id"] for image in images}
    boxes = [entry for entry in truth["annotations"] if entry["image_id"] in ids]
    return truth | {"images": images, "annotations": boxes}


def _write(table: Annotations, path: pathlib.Path) -> pathlib.Path:
    # Ids by name, so that an image, or a class, has one id in all files.
    content = coco_format(
        dataclasses.replace(
            table, categories=[{"id": i, "name": name} for i, name in enumerate(CELLS, 1)]
        )
    )
    ids = {image["id"]: _number(image["file_name"]) for image in content["images"]}
    for image in content["images"]:
        image["id"] = ids[image["id"]]
    for number, entry in enumerate(content["annotations"], 1):
        entry.update(id=number, image_id=ids[entry["image_id"]])
    file = path.with_suffix(".json")
    _save(file, content)
    return file


def _save(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a file whole, and not again where it holds the same: a run may be reading it."""
    text = json.dumps(content)
    if not path.exists() or path.read_text() != text:
        storage.write(storage.absolute(str(path)), text.encode())


def _number(name: str) -> int:
    return int("".join(character for character in pathlib.Path(name).stem if character.isdigit()))
