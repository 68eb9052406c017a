"""MixTraining in JAX: two-stage object detectors trained beside an EMA teacher.

    import mixtrain_jax

    detector = mixtrain_jax.train("quickstart", "runs/mine", data="FOLDER")
    detector = mixtrain_jax.load("runs/mine")
    found = detector.predict("image.jpg")

What is offered here is in api.py, which is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mixtrain_jax.errors import UserError

if TYPE_CHECKING:
    from mixtrain_jax.api import Detector, Found, load, train

__version__ = "0.2.0"
__all__ = ["Detector", "Found", "UserError", "load", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # the command's module, which can be called like the function
        return importlib.import_module("mixtrain_jax.train")
    if name in __all__:
        return getattr(importlib.import_module("mixtrain_jax.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
