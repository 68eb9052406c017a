"""A run of training in this process: its workdir held, signals caught, its end told."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

from etils import epath
from ml_collections import ConfigDict

from mixtrain_jax.config import saved
from mixtrain_jax.errors import memory_in_one_line
from mixtrain_jax.runtime import processes, signals
from mixtrain_jax.runtime.lock import hold
from mixtrain_jax.training import loop
from mixtrain_jax.training.announce import LESS_MEMORY


def stoppable(in_program: bool = False) -> AbstractContextManager[signals.Stop]:
    """`signals.catch`; in a thread that signals do not reach, something that never asks to stop."""
    if threading.current_thread() is threading.main_thread():
        return signals.catch(in_program)
    return contextlib.nullcontext(signals.Stop())


def run(
    asked: ConfigDict,
    workdir: epath.Path,
    origin: saved.Origin | None = None,
    allow_changes: bool = False,
    from_scratch: bool = False,
    in_program: bool = False,
) -> int:
    """Trains as `loop.train` does; arguments and exit code are the same.

    With `in_program` no signal ends the process, whose owner is the caller's program.

    Raises:
      UserError: bad input, another run in the workdir, or too little memory.
    """
    with (
        processes.abort_all_on_error(),
        stoppable(in_program) as stop,  # before the workdir is held, which may take minutes
        _held(workdir, stop),
        memory_in_one_line(f"{LESS_MEMORY}; in an evaluation config.eval.batch_size"),
    ):
        return loop.train(asked, workdir, stop, origin, allow_changes, from_scratch)


@contextlib.contextmanager
def _held(workdir: epath.Path, stop: signals.Stop) -> Iterator[None]:
    """`lock.hold`; a signal while it waits for another run ends the process at once."""
    with contextlib.ExitStack() as stack:
        with stop.ends_at_once("asked to stop while waiting for the workdir: ended at once"):
            stack.enter_context(hold(workdir))
        yield
