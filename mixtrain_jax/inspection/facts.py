"""What a recipe has to know of a data set: a few numbers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixtrain_jax.config import recipes
from mixtrain_jax.inspection import boxes
from mixtrain_jax.inspection.decode import Split


@dataclasses.dataclass(frozen=True)
class Facts:
    """The numbers of a data set that decide about a recipe.

    Attributes:
      fields: where the data is and how it is read, as fields of `config.data` ("source",
        "train.annotations", ...).
      images: to train on.
      val_images: to evaluate on; 0: there is no val split.
      classes: their names.
      sizes: [N, 2] height and width of the images to train on.
      boxes_an_image: [N] how many boxes each has.
      rows: [M] the image of each box.
      sides: [M, 2] width and height of the boxes in pixels of their image.
    """

    fields: dict[str, Any]
    images: int
    val_images: int
    classes: tuple[str, ...]
    sizes: np.ndarray
    boxes_an_image: np.ndarray
    rows: np.ndarray
    sides: np.ndarray


def gather(splits: Sequence[Split], data: Any) -> Facts:
    """Gathers the facts of a data set that was looked at.

    Args:
      splits: of which one is called "train", with all boxes of each image.
      data: `config.data`.
    """
    by_name = {split.name: split.dataset for split in splits}
    train = by_name["train"]
    found = boxes.table(train)
    return Facts(
        fields=where(data) | how(data),
        images=len(train),
        val_images=len(by_name["val"]) if "val" in by_name else 0,
        classes=tuple(str(category["name"]) for category in train.categories),
        sizes=train.sizes,
        boxes_an_image=np.bincount(found.rows, minlength=len(train)),
        rows=found.rows,
        sides=found.boxes[:, 2:] - found.boxes[:, :2],
    )


def where(data: Any) -> dict[str, Any]:
    """Those fields of `config.data` that are set and say where the data is."""
    fields: dict[str, Any] = {"source": data.source}
    if data.classes:
        fields["classes"] = tuple(data.classes)
    if data.val_share:
        fields["val_share"] = data.val_share
    if data.exif != "auto":
        fields["exif"] = data.exif
    for split in ("train", "val", "test"):
        for name in ("annotations", "images", "list", "split"):
            fields[f"{split}.{name}"] = data[split][name]
    return fields


def how(data: Any) -> dict[str, Any]:
    """The fields of `config.data` that say how the data is taken, where they are not as usual."""
    usual = recipes.base().data
    fields = {
        "white": (data.white, usual.white),
        "train.leave_out": (tuple(data.train.leave_out), tuple(usual.train.leave_out)),
        "augment.flip": (data.augment.flip, usual.augment.flip),  # of writing there is no mirror
    }
    return {name: now for name, (now, before) in fields.items() if now != before}
