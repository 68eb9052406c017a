"""Mistakes a user can make, told in one line, and the exit codes of all commands.

Code that meets bad input raises `UserError` with a sentence that says what is wrong, in which file
or field, and what to do. The programs turn it into that one line on standard error and exit code 2,
so a traceback always means a bug of ours. A run that lost another process, that was stuck, or that
was asked to stop can be started again as it is; after any other end somebody has to look first.
"""

import contextlib
from collections.abc import Iterator

BUG = 1  # a traceback was printed
BAD_INPUT = 2  # also numbers that went bad and full disks: the same start ends the same way
LOST = 70  # another process of the run is gone
STALLED = 71  # a process of the run was stuck
STOPPED = 75  # asked to stop, and saved
INTERRUPTED = 130  # Ctrl-C where nothing is to be saved
ABORTED = 134  # JAX's own way to end a process whose peers are gone (SIGABRT)

RESTARTABLE = (LOST, STALLED, STOPPED, ABORTED)


class UserError(Exception):
    """Bad input: the message is one line, complete and meant for the person at the terminal."""


class LostPeer(Exception):
    """Another process of the run is gone or stuck; the message names it.

    Attributes:
      code: what this process ends with.
    """

    def __init__(self, message: str, code: int = LOST):
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def memory_in_one_line(advice: str) -> Iterator[None]:
    """Turns running out of memory, on the host or on a device, into a UserError.

    Args:
      advice: what to change.

    Raises:
      UserError: in place of MemoryError, or of XLA's error RESOURCE_EXHAUSTED.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        exhausted = "RESOURCE_EXHAUSTED" in text and ("emory" in text or "alloc" in text)
        if not exhausted and not isinstance(error, MemoryError):
            raise
        first = text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
        raise UserError(f"out of memory: {advice} ({first})") from error
