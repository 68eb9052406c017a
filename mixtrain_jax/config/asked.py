"""The config that a call asks for: of a recipe or of a run, on its own data or on a folder's.

What the commands and the Python API share: a source of fields, changes to them, and where they came
from, for config.json.
"""

from collections.abc import Mapping

from etils import epath
from ml_collections import ConfigDict

from mixtrain_jax.config import load, own_data, saved
from mixtrain_jax.config.saved import Origin


def of_file(
    name: str, changes: Mapping[str, str], folder: str | None = None
) -> tuple[ConfigDict, Origin]:
    """Reads a recipe, with changes, and on the data of a folder if one is named.

    Args:
      name: a config file, or a recipe's name, with its argument: "cascade:plain".
      changes: text of fields to change.
      folder: a data set, as `--data` names it; fields in `changes` win.

    Raises:
      UserError: there is no such file, field or data set.
    """
    changes = dict(changes)
    if folder:
        changes = own_data.of_folder(folder, changes)
    config = load.load(name, changes)
    more = own_data.without_val(config, changes) | own_data.with_val(config, changes)
    if more:
        config, changes = load.override_all(config, more), changes | more
    return config, Origin(name, changes)


def of_run(
    workdir: epath.PathLike, changes: Mapping[str, str], folder: str | None = None
) -> tuple[ConfigDict, Origin]:
    """Reads what a run was asked for, with changes, and on other data if a folder is named.

    Deep images are scaled as those that it was trained on.

    Args:
      workdir: of the run.
      changes: text of fields to change.
      folder: a data set, as `--data` names it; fields in `changes` win, classes stay the run's.

    Raises:
      UserError: the workdir has no config, or there is no such field or data set.
    """
    found, changes = saved.read(workdir), dict(changes)
    asked = found.asked
    if asked.data.white is None and found.resolved.data.white is not None:
        asked = load.override_all(asked, {"data.white": str(found.resolved.data.white)})
    if folder:
        changes = own_data.of_folder(folder, changes, asked.data)
    changes |= own_data.with_val(asked, changes)
    config = load.override_all(asked, changes)
    return config, Origin(found.origin.file, found.origin.flags | changes)
