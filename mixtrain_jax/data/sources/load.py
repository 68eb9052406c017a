"""Where a data set comes from, as the config says: a new source is one file and one line here."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mixtrain_jax.data.sources import coco, headers, image_files
from mixtrain_jax.data.sources.annotations import Annotations, original
from mixtrain_jax.data.sources.dataset import Dataset, assemble
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage


def _coco(part: Any, name: str, classes: tuple[str, ...]) -> Annotations:
    del name, classes
    return coco.read(part.annotations, part.images)


def _voc(part: Any, name: str, classes: tuple[str, ...]) -> Annotations:
    from mixtrain_jax.data.sources import voc

    del name
    return voc.read(part.annotations, part.images, classes)


def _yolo(part: Any, name: str, classes: tuple[str, ...]) -> Annotations:
    from mixtrain_jax.data.sources import yolo

    del name
    return yolo.read(part.annotations, part.images, part.split, classes)


def _tfds(part: Any, name: str, classes: tuple[str, ...]) -> Annotations:
    from mixtrain_jax.data.sources import tfds  # slow to import, and rarely wanted

    del classes
    return tfds.read(name, part.split)


# By the first word of `config.data.source`: functions of the split's part of `config.data`, what
# follows the word's colon, and `config.data.classes`.
Reader = Callable[[Any, str, tuple[str, ...]], Annotations]
SOURCES: dict[str, Reader] = {"coco": _coco, "voc": _voc, "yolo": _yolo, "tfds": _tfds}


def load_dataset(config: Any, split: str) -> Dataset:
    """Reads and checks the split, 'train', 'val' or 'test', that `config.data` describes.

    Raises:
      UserError: there is no such source or split, or it refuses what the config says.
    """
    if not has_split(config, split):
        raise UserError(
            f"there is no {split} split: set config.data.{split}.annotations, or give --data"
        )
    table = read_annotations(config, split)
    return complete(table, split, config.max_boxes, config.exif, config.white)


def complete(
    table: Annotations,
    name: str,
    max_boxes: int,
    exif: image_files.Exif = "auto",
    white: float | None = None,
) -> Dataset:
    """The data set of what a reader found, once its image files are looked at.

    Args:
      table: what a reader found.
      name: of the split.
      max_boxes: an image's further boxes are cut.
      exif: `config.data.exif`.
      white: `config.data.white`.

    Raises:
      UserError: see `headers.complete` and `dataset.assemble`.
    """
    return assemble(*headers.complete(table, exif, name, white), name, max_boxes)


def as_train_reads(data: Any, train: Dataset) -> Any:
    """`config.data` with the white of deep images that was found in train, for all other images.

    Images of one camera that are scaled by what each set happens to hold are not alike.
    """
    result = ConfigDict(data.to_dict())
    if data.white is None:
        result.white = train.reading.one_white
    return result


def read_annotations(config: Any, split: str) -> Annotations:
    """The annotations of a split that `config.data` describes, before images are looked at."""
    source, _, name = config.source.partition(":")
    if source not in SOURCES:
        raise UserError(
            f"config.data.source is '{config.source}'; it must begin with {' or '.join(SOURCES)}, "
            "such as 'coco' or 'tfds:NAME'"
        )
    shared = config.val_share > 0 and split in ("train", "val")
    read = "train" if shared else split
    where = ConfigDict(config[read].to_dict())
    where.split = where.split or read
    table = SOURCES[source](where, name, tuple(config.classes))
    if where.list:
        table = table.listed(where.list)
    if shared:
        table = table.part(config.val_share, apart=split == "val")
    if split == "train":
        table = table.merged()
        part, count = config.train.leave_out
        if count > 1:
            table = table.take(np.flatnonzero(parts(table.image_ids, count, table.files) != part))
    return table


def share_images(first: Any, second: Any) -> bool:
    """Whether the train splits of two `config.data` have image files in common, or links to them.

    Raises:
      UserError: the labels of one cannot be read.
    """
    files = [
        {os.path.realpath(path) for path in read_annotations(config, "train").paths}
        for config in (first, second)
        if not config.source.startswith("tfds:")
    ]
    return len(files) == 2 and not files[0].isdisjoint(files[1])


def has_split(config: Any, split: str) -> bool:
    """Whether `config.data` describes a split."""
    part = config[split]
    if split == "val" and config.val_share > 0:
        return True
    if config.source.startswith("tfds:"):
        return bool(part.split)
    return bool(part.annotations or (part.images and config.source != "coco"))


def parts(image_ids: np.ndarray, count: int, files: Sequence[str] = ()) -> np.ndarray:
    """Deals images into parts of nearly equal size.

    A pure function of the ids: the same image is in the same part whatever order a file lists.
    Roboflow's copies of one image (NAME.rf.HASH.jpg) are all in one part.

    Args:
      image_ids: [N] int64.
      count: how many parts.
      files: the images' file names, where there may be copies.

    Returns:
      [N] int64 part of each image, in 0..count-1.
    """
    if files:
        _, group = np.unique([original(file) for file in files], return_inverse=True)
        firsts = np.full(group.max() + 1, np.iinfo(np.int64).max)
        np.minimum.at(firsts, group, image_ids)
        return parts(firsts, count)[group]
    order = np.random.default_rng(0).permutation(len(image_ids))
    ranks = np.empty(len(image_ids), np.int64)
    ranks[np.argsort(image_ids, kind="stable")[order]] = np.arange(len(image_ids))
    return ranks % count


def val_categories(config: Any) -> list[dict[str, Any]]:
    """The classes that the val annotations of `config.data` list, in label order.

    Empty where there are no such annotations; raises UserError where they list no categories.
    """
    annotations = config.val.annotations
    if config.source != "coco" or not annotations or not storage.exists(annotations):
        return []
    return coco.categories(annotations)


def check_same_categories(train: Dataset, val: Dataset) -> None:
    """Raises UserError unless both splits have the same category ids and names."""
    same_categories({train.name: train.categories, val.name: val.categories})


def same_categories(categories: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Raises UserError unless all splits, by name, have the first one's category ids and names."""
    (first, listed), *others = categories.items()
    ours = {c["id"]: c["name"] for c in listed}
    for other, of_other in others:
        theirs = {c["id"]: c["name"] for c in of_other}
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                raise UserError(
                    f"the categories of {first} and {other} differ: id {key} is "
                    f"{_quoted(ours.get(key))} in {first} and {_quoted(theirs.get(key))} in "
                    f"{other}; make 'categories' the same in both annotation files, or name the "
                    "classes of voc and yolo sources in config.data.classes"
                )


def _quoted(name: str | None) -> str:
    return "absent" if name is None else f"'{name}'"
