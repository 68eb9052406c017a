"""Being asked to stop: the first SIGTERM or SIGINT ends training after the step at hand, saved.

A second one ends the process at once; what is on disk stays whole, as checkpoints are written under
a temporary name.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

STOPPED = 75  # the exit code of a run that was asked to stop and saved: start it again to go on


class Stop:
    """Whether a signal has asked this process to stop."""

    requested: bool = False


@contextlib.contextmanager
def catch() -> Iterator[Stop]:
    """Catches SIGTERM and SIGINT while inside; what it yields tells whether one came."""
    stop = Stop()

    def ask(number: int, frame: object) -> None:
        del number, frame
        if stop.requested:
            os._exit(STOPPED)
        stop.requested = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
