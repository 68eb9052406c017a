"""TensorFlow, imported in this one place: without its greetings, and without a GPU."""

import contextlib
import os
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Sends standard error nowhere: the libraries write to it below Python, before any setting."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


with _silence():
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # accelerators belong to JAX

__all__ = ["tf"]
