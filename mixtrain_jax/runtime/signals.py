"""Being asked to stop: the first SIGTERM or SIGINT ends training after the step at hand, saved.

A second one ends the process at once, and so does the first while something long is going on that
cannot be interrupted, such as a compilation; what is on disk stays whole, as checkpoints are
written under a temporary name. In a program that is not ours, such as a notebook, none ends the
process: the second raises KeyboardInterrupt. In a run of several processes JAX listens to SIGTERM
too, to make all of them stop after the same step; it is told of either signal.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from mixtrain_jax.errors import STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DONE = 0  # what ends the watching thread; no signal has this number


class Stop:
    """Whether a signal has asked this process to stop.

    Attributes:
      requested: whether one has.
    """

    requested: bool = False
    in_program: bool = False  # of somebody else: no signal ends it
    _came: bool = False  # requested by a signal
    _last_words: str | None = None  # while a signal ends the process at once

    @contextlib.contextmanager
    def ends_at_once(self, last_words: str) -> Iterator[None]:
        """While inside, a signal ends the process at once with a line on standard error.

        Python's own handlers wait until a call into a library returns, for minutes where it
        compiles; a thread that the signal wakes does not.

        Args:
          last_words: the line.
        """
        self._last_words = None if self.in_program else last_words
        if self._came:
            self._end()
        try:
            yield
        finally:
            self._last_words = None

    def _end(self) -> None:
        if self._last_words is not None:
            sys.stdout.flush()
            print(self._last_words, file=sys.stderr, flush=True)
            os._exit(STOPPED)


@contextlib.contextmanager
def catch(in_program: bool = False) -> Iterator[Stop]:
    """Catches SIGTERM and SIGINT while inside; what it yields tells whether one came.

    Args:
      in_program: the process is of somebody else's program and is not to be ended.
    """
    stop = Stop()
    stop.in_program = in_program
    tell = _native_handler(signal.SIGTERM)

    def ask(number: int, frame: object) -> None:
        del number, frame
        if stop._came and in_program:
            raise KeyboardInterrupt
        if stop._came:
            os._exit(STOPPED)
        stop.requested = stop._came = True
        if tell is not None:
            tell(signal.SIGTERM)

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        with _watched(stop):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _watched(stop: Stop) -> Iterator[None]:
    """A thread that a signal wakes, whatever the main thread is doing."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        while (number := os.read(reading, 1)[0]) != _DONE:
            if number in SIGNALS:
                stop._end()

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writing, bytes([_DONE]))
        thread.join()
        os.close(reading)
        os.close(writing)


def _native_handler(number: signal.Signals) -> Callable[[int], None] | None:
    """The handler of a signal that was not installed from Python; None if there is no such."""
    get = ctypes.pythonapi.PyOS_getsig
    get.restype = ctypes.c_void_p
    address = get(int(number))
    standard = (None, int(signal.SIG_DFL), int(signal.SIG_IGN))
    if address in standard or callable(signal.getsignal(number)):
        return None
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
