"""Whether a checkpoint is of the model it is read for: its meta and its arrays, compared."""

from typing import Any

from etils import epath

from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime.orbax_files import Flat, named_arrays
from mixtrain_jax.types import Params


def check_meta(path: epath.Path, expected: Any, saved: Any, field: str = "") -> None:
    """Refuses a checkpoint whose meta differs in a field that is expected, and names the field."""
    if isinstance(expected, dict) and isinstance(saved, dict):
        for key, value in expected.items():
            check_meta(path, value, saved.get(key), f"{field}.{key}" if field else key)
    elif expected != saved:
        raise UserError(
            f"{path} was trained with {field} = {saved}, and this run has {field} = {expected}; "
            "choose another workdir"
        )


def check_params(path: epath.PathLike, expected: Params, params: Params) -> None:
    """Checks that parameters read from `path` are those of a model.

    Args:
      path: named in the message.
      expected: the model's parameters, or their shapes.
      params: as `checkpoint.load_weights` returns them.

    Raises:
      UserError: an array is missing, unknown, or of another shape; the first such is named.
    """
    check_arrays(epath.Path(path), named_arrays("params", expected), named_arrays("params", params))


def check_arrays(path: epath.Path, expected: Flat, saved: Flat) -> None:
    """Refuses a checkpoint with other arrays than the model's, and names the first that differs."""
    for name in [*expected, *saved]:
        ours, theirs = (
            f"{flat[name].dtype}{list(flat[name].shape)}" if name in flat else "missing"
            for flat in (expected, saved)
        )
        if ours != theirs:
            raise UserError(
                f"{path} is of another model: {name} is {theirs} there and {ours} here; "
                "use the config it was trained with, or choose another workdir"
            )
