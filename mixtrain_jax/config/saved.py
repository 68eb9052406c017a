"""config.json in a workdir: what was asked for, and what became of it.

A run keeps both: `asked`, the recipe with the command line's changes, and `resolved`, the same with
everything filled in that depends on the data and the machine. Later commands on the workdir start
from `asked` and resolve it anew; a run that is started again is compared with what it was before.
"""

import dataclasses
import json
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from mixtrain_jax.config import schema
from mixtrain_jax.config.load import tuples
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

NAME = "config.json"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a config came from: the file with its argument, and the fields set by flags."""

    file: str = ""
    flags: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Saved:
    """What config.json holds.

    Attributes:
      asked: the config before it was resolved; locked.
      resolved: the config that was used.
      origin: the file and flags that `asked` came from.
      labels: what it was trained on, in words with a digest; "" where that was not kept.
    """

    asked: ConfigDict
    resolved: FrozenConfigDict
    origin: Origin
    labels: str = ""


def save(
    workdir: epath.PathLike,
    asked: ConfigDict,
    resolved: FrozenConfigDict,
    origin: Origin,
    labels: str = "",
) -> None:
    """Writes config.json; the file is whole or not there.

    Raises:
      UserError: the file cannot be written.
    """
    content = {
        "asked": {"file": origin.file, "flags": origin.flags, "fields": asked.to_dict()},
        "resolved": resolved.to_dict(),
        "labels": labels,
    }
    storage.write_json(epath.Path(workdir) / NAME, content, indent=2)


def read(workdir: epath.PathLike) -> Saved:
    """Reads back what `save` wrote; fields that are newer than the run have their defaults.

    Raises:
      UserError: the file is missing, damaged, or not of this kind.
    """
    path = epath.Path(workdir) / NAME
    try:
        content = json.loads(storage.read(path))
        asked = content["asked"]
        return Saved(
            config_from(_completed(asked["fields"])),
            FrozenConfigDict(tuples(_completed(content["resolved"]))),
            Origin(asked["file"], asked["flags"]),
            str(content.get("labels", "")),
        )
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: {storage.reason(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the config of a run: {error!r}") from error


def workdir_of(source: epath.PathLike) -> epath.Path | None:
    """The workdir that a workdir, RUN:best or a path in a run's checkpoints belongs to.

    None where config.json is in none of the places that it could be.
    """
    path = epath.Path(os.fspath(source).removesuffix(":best"))
    for place in (path, path.parent, path.parent.parent):
        if storage.exists(place / NAME):
            return place
    return None


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """The values with defaults in place of fields that the schema has and they have not."""

    def merged(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        both = {
            name: merged(value, given[name])
            for name, value in default.items()
            if isinstance(value, dict) and isinstance(given.get(name), dict)
        }
        return default | given | both

    return merged(schema.default().to_dict(), values)


def config_from(values: dict[str, Any]) -> ConfigDict:
    """Makes a locked ConfigDict of what JSON holds; fields that are not set keep their type."""
    config = ConfigDict(tuples(values))
    for name, field in schema.fields():
        *groups, leaf = name.split(".")
        place: Any = config
        for group in groups:
            place = place.get(group, {})
        if field.unset and leaf in place:
            value = place[leaf]
            del place[leaf]
            place[leaf] = placeholder(field.unset)
            if value is not None:
                place[leaf] = value
    return config.lock()
