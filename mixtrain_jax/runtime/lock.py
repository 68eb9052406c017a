"""One run in a workdir at a time: a file there names the host and the process that hold it.

A lock is stale, and taken over, when its process is gone (on the same host), or when it has not
been renewed for minutes (another host, taken away perhaps). The holder renews it from a thread, and
ends where it finds that it slept too long and another run has taken the workdir over.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from mixtrain_jax.errors import BAD_INPUT, UserError
from mixtrain_jax.runtime import hosts, storage, watch

RENEW = 30.0  # seconds
STALE = 300.0
FORGOTTEN = 86400.0  # clocks of two hosts do not differ by so much
LOOK = 5.0
SHARED = 20.0  # until what one host has written is seen by all
SETTLE = 1.0  # until a second writer of the same instant has written too


@contextlib.contextmanager
def hold(workdir: epath.PathLike) -> Iterator[None]:
    """Holds a workdir for a run of any number of processes: the first locks it, all must see that.

    Raises:
      UserError: the first cannot lock it, or it is another directory on another host; all raise it.
    """
    with hosts.on_first(lock(workdir)):
        key = hosts.from_first("lock", _key(workdir))
        seen = hosts.from_all("lock seen", _sees(workdir, key))
        if not all(seen):
            raise UserError(
                f"{workdir} is not shared: host {seen.index(False)} does not see there what host 0 "
                "has written; give --workdir a path of a shared file system or of a bucket"
            )
        yield


def _sees(workdir: epath.PathLike, key: str | None) -> bool:
    """Whether this host finds the first host's lock; network file systems may need a while."""
    end = time.monotonic() + SHARED
    while _key(workdir) != key:
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def _key(workdir: epath.PathLike) -> str | None:
    """The key that a workdir's lock holds now."""
    try:
        return json.loads(storage.read(storage.absolute(workdir) / "lock"))["key"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def lock(workdir: epath.PathLike) -> Iterator[None]:
    """Holds `workdir`/lock, making the directory if it is not there.

    In a run of several processes only the first should take it; see `hold`.

    Raises:
      UserError: another run holds the lock, or the directory cannot be written.
    """
    path = storage.absolute(workdir) / "lock"
    pid = os.getpid()
    holder = {"host": socket.gethostname(), "pid": pid, "started": _started(pid)}
    holder["key"] = secrets.token_hex(8)
    storage.make_directory(path.parent)
    _take(path, holder)
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, holder, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(RENEW)  # one that is waiting for a server need not be waited for
        with contextlib.suppress(OSError):
            if _key(workdir) in (holder["key"], None):
                storage.delete(path)


def _take(path: epath.Path, holder: dict[str, Any]) -> None:
    """Writes the lock if it is free or stale; of several that try at the same instant one can.

    A file system that locks directories sees to that; on object stores the later writer wins, and
    the earlier one finds out when it looks again.
    """
    with contextlib.ExitStack() as stack:
        if storage.is_local(path):
            directory = os.open(path.parent, os.O_RDONLY)
            stack.callback(os.close, directory)  # which gives the directory free, as death does
            with contextlib.suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_EX)
        _refuse_second(path, holder)
        _write(path, holder)
    if not storage.is_local(path):
        time.sleep(SETTLE)
        _refuse_second(path, holder)


def _write(path: epath.Path, holder: dict[str, Any]) -> None:
    storage.write_json(path, holder | {"renewed": time.time()})


def _refuse_second(path: epath.Path, ours: dict[str, Any]) -> None:
    """Raises a UserError when a living run other than ours holds the lock."""
    try:
        holder = json.loads(storage.read(path))
        host, pid, started = holder["host"], holder["pid"], holder["started"]
        float(holder["renewed"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    if holder.get("key") == ours["key"]:
        return
    if host == socket.gethostname():
        living = _started(pid) == started
    else:
        living = _renewed_while_waited(path, holder)
    if living:
        raise UserError(
            f"another run (process {pid} on {host}) uses {path.parent}; "
            "wait for its end, stop it, or choose another workdir"
        )


def _renewed_while_waited(path: epath.Path, holder: dict[str, Any]) -> bool:
    """Whether a run on another host renews its lock; False when it was not for `STALE` seconds.

    So a run that is started again right after its hosts were taken away waits and goes on. As two
    hosts' clocks may differ, it waits for two renewals in any case.
    """
    age = time.time() - holder["renewed"]
    if age > FORGOTTEN:
        return False
    end = time.monotonic() + max(STALE - max(age, 0), 2 * RENEW + LOOK)
    print(
        f"{path} was renewed {age:.0f} s ago by process "
        f"{holder['pid']} on {holder['host']}; waiting to see whether it is alive",
        flush=True,
    )
    while time.monotonic() < end:
        time.sleep(LOOK)
        try:
            if json.loads(storage.read(path))["renewed"] != holder["renewed"]:
                return True
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False
    return False


def _renew(path: epath.Path, holder: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(RENEW):
        try:
            if _key(path.parent) not in (holder["key"], None):
                line = f"{path.parent}: this run slept for so long that another one goes on there"
                watch.fail(BAD_INPUT, line)
                return
            _write(path, holder)
        except Exception as error:  # the thread has to live as long as the run
            logging.info("%s is not renewed: %s", path, error)


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
