"""TensorFlow, imported in this one place, and without its greetings."""

import contextlib
import os
from collections.abc import Iterator


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


def keep_off_accelerators() -> None:
    """Hides GPUs from TensorFlow in this process: they belong to JAX."""
    with _silence():
        tf.config.set_visible_devices([], "GPU")


__all__ = ["keep_off_accelerators", "tf"]
