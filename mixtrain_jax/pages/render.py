"""Turns plain data into self-contained HTML files by the templates beside this file.

A page needs no network and no server: its style, script, charts and data are in the file, and its
images are files in a folder next to it. Templates escape what they are handed.
"""

import functools
import json
import os
import pathlib
from typing import Any

import jinja2
from markupsafe import Markup

from mixtrain_jax.pages import charts


def write(template: str, path: str | os.PathLike[str], **values: Any) -> pathlib.Path:
    """Renders a template into a file, all at once, so that a reader never sees half of it.

    Args:
      template: name of a file in `templates`.
      path: the file to write; its folder must be there.
      values: what the template is handed.
    """
    text = environment().get_template(template).render(**values)
    path = pathlib.Path(path)
    half = path.with_name(path.name + ".part")
    half.write_text(text, encoding="utf-8", errors="backslashreplace")  # of odd file names
    half.replace(path)
    return path


@functools.cache
def environment() -> jinja2.Environment:
    """Returns the templates, with the filters and charts that they use."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("mixtrain_jax.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"data": data, "size": size, "fixed": fixed}
    made.globals["charts"] = charts
    return made


def data(value: Any) -> Markup:
    """Returns JSON that is safe inside a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def size(count: float) -> str:
    """Returns a number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def fixed(value: float | None, digits: int = 3) -> str:
    """Returns a number with so many digits after the point; a dash where there is none."""
    return "-" if value is None or value != value else f"{value:,.{digits}f}"
