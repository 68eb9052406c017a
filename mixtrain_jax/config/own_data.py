"""--data=FOLDER and what it means for a config: fields of `data`, filled in from what is there."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mixtrain_jax.config import load, recipes
from mixtrain_jax.data.sources import layout
from mixtrain_jax.data.sources.load import share_images
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

_VAL = ("data.val.annotations", "data.val.images", "data.val.list", "data.val.split")


def of_folder(folder: str, explicit: Mapping[str, str], run: Any = None) -> dict[str, str]:
    """The overrides that a data set's folder stands for, and those given one by one, which win.

    Args:
      folder: what --data names.
      explicit: fields set by flags of their own.
      run: `config.data` of a run that is to look at the folder. Its classes are kept where the
        folder shows some of them, and of a folder with one split, none of whose images the run was
        trained on, every split is the whole: nothing is set apart.

    Raises:
      UserError: no data set is found there.
    """
    there = layout.find(folder)
    found = there.overrides
    if run is not None:
        if _shows_some(there, run.classes):
            found["data.classes"] = repr(tuple(run.classes))
        if len(there.parts) == 1 and not _trained_on(run, found):
            found["data.val_share"] = "0"
            whole = {name: found[name] for name in found if name.startswith("data.train.")}
            for split in ("val", "test"):
                found |= {name.replace("train", split, 1): each for name, each in whole.items()}
    if _names_val(explicit):
        found["data.val_share"] = "0"
    return found | dict(explicit)


def _names_val(overrides: Mapping[str, str]) -> bool:
    """Whether flags say what val is, so that nothing of train is to be set apart."""
    return any(name in overrides for name in _VAL) and "data.val_share" not in overrides


def _shows_some(there: layout.Layout, classes: Sequence[str]) -> bool:
    """Whether a folder's classes are some of those given, so that its labels are theirs.

    VOC's labels are names. YOLO's are numbers, so the folder's names must be the first.
    """
    shown = tuple(there.classes)
    if there.source == "yolo":
        return bool(shown) and shown == tuple(classes[: len(shown)])
    return bool(shown) and set(shown) <= set(classes)


def _trained_on(run: Any, found: Mapping[str, str]) -> bool:
    """Whether a run was trained on images of a folder, be it with other labels.

    Where the labels that it was trained on are gone, the paths tell.
    """
    data = load.override_all(recipes.base(), {**found, "data.val_share": "0"}).data
    try:
        return share_images(run, data)
    except UserError:
        fields = ("annotations", "images")
        return all(_same(data.train[field], run.train[field]) for field in fields)


def _same(first: str, second: str) -> bool:
    if not first or not second:
        return first == second
    return os.path.realpath(first) == os.path.realpath(second)


def with_val(config: ConfigDict, overrides: Mapping[str, str]) -> dict[str, str]:
    """Overrides that let a val count which flags name, where a part of train was val before."""
    shared = config.data.get("val_share") and _names_val(overrides)
    return {"data.val_share": "0"} if shared else {}


def without_val(config: ConfigDict, overrides: Mapping[str, str]) -> dict[str, str]:
    """Overrides that take val away where only train was named and the recipe's val is not there.

    Args:
      config: the recipe with its overrides.
      overrides: fields set by flags.

    Returns:
      the further overrides; none where val is there, or was named, or train was not.
    """
    named = "data.train.annotations" in overrides or "data.train.images" in overrides
    if not named or any(name in overrides for name in _VAL) or config.data.get("val_share"):
        return {}
    path = config.data.val.get("annotations")
    if not path or storage.exists(path):
        return {}
    return {"data.val.annotations": "", "data.val.images": ""}
