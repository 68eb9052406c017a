"""Small files written whole or not at all, with one line when that fails."""

import json
from typing import Any

from etils import epath

from mixtrain_jax.runtime.errors import UserError


def write(path: epath.Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it; makes its directory.

    Raises:
      UserError: the file cannot be written.
    """
    draft = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: epath.Path, value: Any, indent: int | None = None) -> None:
    """Writes a value as JSON; raises as `write` does."""
    write(path, (json.dumps(value, indent=indent) + "\n").encode())
