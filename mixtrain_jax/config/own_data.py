"""--data=FOLDER and what it means for a config: fields of `data`, filled in from what is there."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from mixtrain_jax.data.sources import layout
from mixtrain_jax.runtime import storage

_VAL = ("data.val.annotations", "data.val.images", "data.val.list", "data.val.split")


def of_folder(
    folder: str, explicit: Mapping[str, str], classes: Sequence[str] = ()
) -> dict[str, str]:
    """The overrides that a data set's folder stands for, and those given one by one, which win.

    Args:
      folder: what --data names.
      explicit: fields set by flags of their own.
      classes: those of a run that is to look at the folder: they are kept where the folder shows
        only some of them.

    Raises:
      UserError: no data set is found there.
    """
    there = layout.find(folder)
    found = there.overrides
    if set(there.classes) < set(classes):
        found["data.classes"] = repr(tuple(classes))
    if any(name in explicit for name in _VAL):
        found["data.val_share"] = "0"  # val is given: nothing of train is set apart
    return found | dict(explicit)


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
