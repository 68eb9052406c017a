"""A run of training in this process: its workdir held, signals caught, its end told."""

import contextlib
import threading
from contextlib import AbstractContextManager

from etils import epath
from ml_collections import ConfigDict

from mixtrain_jax.config import saved
from mixtrain_jax.errors import memory_in_one_line
from mixtrain_jax.runtime import parallel, signals
from mixtrain_jax.runtime.lock import hold
from mixtrain_jax.training import loop
from mixtrain_jax.training.announce import LESS_MEMORY


def stoppable() -> AbstractContextManager[signals.Stop]:
    """`signals.catch`; in a thread that signals do not reach, something that never asks to stop."""
    if threading.current_thread() is threading.main_thread():
        return signals.catch()
    return contextlib.nullcontext(signals.Stop())


def run(
    asked: ConfigDict,
    workdir: epath.Path,
    origin: saved.Origin | None = None,
    allow_changes: bool = False,
    from_scratch: bool = False,
) -> int:
    """Trains as `loop.train` does; arguments and exit code are the same.

    Raises:
      UserError: bad input, another run in the workdir, or too little memory.
    """
    with (
        parallel.abort_all_on_error(),
        hold(workdir),
        stoppable() as stop,
        memory_in_one_line(f"{LESS_MEMORY}; in an evaluation config.eval.batch_size"),
    ):
        return loop.train(asked, workdir, stop, origin, allow_changes, from_scratch)
