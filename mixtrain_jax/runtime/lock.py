"""One run in a workdir at a time: a file there names the host and the process that hold it.

A lock is stale, and taken over, when its process is gone (on the same host), or when it has not
been renewed for minutes (another host, taken away perhaps). The holder renews it from a thread.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

from etils import epath

from mixtrain_jax.runtime import files
from mixtrain_jax.runtime.errors import UserError

RENEW = 30.0  # seconds
STALE = 300.0


@contextlib.contextmanager
def lock(workdir: epath.PathLike) -> Iterator[None]:
    """Holds `workdir`/lock, making the directory if it is not there.

    In a run of several processes only the first should take it.

    Raises:
      UserError: another run holds the lock, or the directory cannot be written.
    """
    path = epath.Path(workdir) / "lock"
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _take(path, holder)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, holder, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(OSError):
            path.unlink()


def _take(path: epath.Path, holder: dict) -> None:
    """Writes the lock if it is free or stale; of several that try at the same instant one can.

    That needs a file system that locks directories; on object stores the later writer wins.
    """
    with contextlib.ExitStack() as stack:
        if "://" not in os.fspath(path):
            directory = os.open(path.parent, os.O_RDONLY)
            stack.callback(os.close, directory)  # which gives the directory free, as death does
            with contextlib.suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_EX)
        _refuse_second(path)
        _write(path, holder)


def _write(path: epath.Path, holder: dict) -> None:
    files.write_json(path, holder | {"renewed": time.time()})


def _refuse_second(path: epath.Path) -> None:
    """Raises a UserError when a living run holds the lock."""
    try:
        holder = json.loads(path.read_text())
        host, pid, started = holder["host"], holder["pid"], holder["started"]
        renewed = holder["renewed"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    if host == socket.gethostname():
        living = _started(pid) == started
    else:
        living = time.time() - renewed < STALE
    if living:
        raise UserError(
            f"another run (process {pid} on {host}) uses {path.parent}; "
            "wait for its end, stop it, or choose another workdir"
        )


def _renew(path: epath.Path, holder: dict, done: threading.Event) -> None:
    while not done.wait(RENEW):
        with contextlib.suppress(UserError):  # a full disk is told where something is lost by it
            _write(path, holder)


def _started(pid: int) -> str | None:
    """When a process of this host was started, to tell it from a later one of the same number.

    None when there is no such process; "" where the system does not say.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
