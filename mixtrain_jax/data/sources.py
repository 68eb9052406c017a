"""Where a data set comes from: COCO files or TensorFlow Datasets, as the config says."""

from typing import Any

from etils import epath
from ml_collections import ConfigDict

from mixtrain_jax.data import coco
from mixtrain_jax.data.records import Dataset
from mixtrain_jax.runtime.errors import UserError


def load(config: ConfigDict, split: str) -> Dataset:
    """Reads and checks the split, 'train' or 'val', of a config's `data` part."""
    part = config[split]
    if config.source == "coco":
        return coco.load(part.annotations, part.images, config.max_boxes, name=split)
    if config.source.startswith("tfds:"):
        from mixtrain_jax.data import tfds  # slow to import, and rarely wanted

        return tfds.load(
            config.source.removeprefix("tfds:"), part.split, config.max_boxes, name=split
        )
    raise UserError(f"config.data.source is '{config.source}'; it must be 'coco' or 'tfds:NAME'")


def val_categories(config: ConfigDict) -> list[dict[str, Any]]:
    """The classes that the val annotations of a config's `data` part list, in label order.

    Empty where there are no such annotations; raises UserError where they list no categories.
    """
    annotations = config.val.annotations
    if config.source != "coco" or not epath.Path(annotations).is_file():
        return []
    return coco.categories(annotations)


def check_same_categories(train: Dataset, val: Dataset) -> None:
    """Raises UserError unless both splits have the same category ids and names."""
    ours = {c["id"]: c["name"] for c in train.categories}
    theirs = {c["id"]: c["name"] for c in val.categories}
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"the categories of {train.name} and {val.name} differ: id {key} is "
                f"{_quoted(ours.get(key))} in {train.name} and {_quoted(theirs.get(key))} in "
                f"{val.name}; make 'categories' the same in both annotation files"
            )


def _quoted(name: str | None) -> str:
    return "absent" if name is None else f"'{name}'"
