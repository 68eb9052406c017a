"""The page of an experiment: a table of arms, their curves, and the commands that repeat them."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from mixtrain_jax.pages import render
from mixtrain_jax.pages.charts import Series


def write(
    path: str | os.PathLike[str],
    *,
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    curves: Mapping[str, Series],
    commands: Sequence[tuple[str, str]],
) -> pathlib.Path:
    """Writes the page of an experiment; safe to call again after each run.

    Args:
      path: the page's file.
      title: the experiment's name.
      columns: what is measured.
      rows: of each arm its name and a cell for each column.
      curves: lines over steps, one per arm, by what they show.
      commands: of each run its name and the command that trained it.

    Returns:
      The page's path.
    """
    return render.write(
        "experiment.html",
        path,
        title=title,
        columns=columns,
        rows=rows,
        curves=curves,
        commands=commands,
    )
