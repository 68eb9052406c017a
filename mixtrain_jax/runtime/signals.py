"""Being asked to stop: the first SIGTERM or SIGINT ends training after the step at hand, saved.

A second one ends the process at once; what is on disk stays whole, as checkpoints are written under
a temporary name. In a run of several processes JAX listens to SIGTERM too, to make all of them stop
after the same step; it is told of either signal.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator

STOPPED = 75  # the exit code of a run that was asked to stop and saved: start it again to go on


class Stop:
    """Whether a signal has asked this process to stop."""

    requested: bool = False


@contextlib.contextmanager
def catch() -> Iterator[Stop]:
    """Catches SIGTERM and SIGINT while inside; what it yields tells whether one came."""
    stop = Stop()
    tell = _native_handler(signal.SIGTERM)

    def ask(number: int, frame: object) -> None:
        del number, frame
        if stop.requested:
            os._exit(STOPPED)
        stop.requested = True
        if tell is not None:
            tell(signal.SIGTERM)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _native_handler(number: signal.Signals) -> Callable[[int], None] | None:
    """The handler of a signal that was not installed from Python; None if there is no such."""
    get = ctypes.pythonapi.PyOS_getsig
    get.restype = ctypes.c_void_p
    address = get(int(number))
    standard = (None, int(signal.SIG_DFL), int(signal.SIG_IGN))
    if address in standard or callable(signal.getsignal(number)):
        return None
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
