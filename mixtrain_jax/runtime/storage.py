"""Every path of a run, in local folders and object stores (gs://), and their errors in one line.

Object stores are reached by fsspec (for gs:// its gcsfs), here and in orbax's metadata alike, which
goes through `epath`. What the libraries raise becomes one class, `StorageError`; after transient
errors (a 503, a reset connection, a timeout) it is tried again first. An object store has no
folders and no renaming in one go, but an object is there as a whole or not at all.
"""

import contextlib
import errno
import io
import json
import os
import pathlib
import random
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from mixtrain_jax.errors import UserError

PATIENCE = 300.0  # seconds for which an operation is tried again after transient errors
LONGEST_PAUSE = 30.0  # seconds between two tries

_TRANSIENT_NUMBERS = {
    errno.EAGAIN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH,
    errno.EINTR, errno.ENETDOWN, errno.ENETUNREACH, errno.EPIPE, errno.ESTALE,
    errno.ETIMEDOUT,
}  # fmt: skip
_TRANSIENT_CODES = {408, 429, 500, 502, 503, 504}
# Classes of gcsfs, aiohttp, requests and google.auth, which are not imported for their names.
_TRANSIENT_CLASSES = {"ChecksumError", "ClientError", "FSTimeoutError", "RefreshError",
                      "RequestException", "TransportError"}  # fmt: skip
# What tensorstore, whose errors have no class of their own, writes of the same.
_TRANSIENT_WORDS = (
    "ABORTED:", "CURL error", "Connection reset", "DEADLINE_EXCEEDED", "HTTP 429", "HTTP 5",
    "Input/output error", "UNAVAILABLE", "timed out",
)  # fmt: skip

T = TypeVar("T")


class StorageError(UserError, OSError):
    """A path that could not be read or written; the message names it and says why.

    Attributes:
      transient: whether what was wrong may be gone when it is tried later.
    """

    transient: bool = False


def is_local(path: epath.PathLike) -> bool:
    """Whether a path is one of this machine's file system."""
    return "://" not in os.fspath(path)


def local(path: epath.PathLike, flag: str) -> pathlib.Path:
    """A path of this machine's file system; raises UserError, with the flag's name, for others."""
    if not is_local(path):
        raise UserError(f"{flag}={path}: it is written to this machine alone; name a local path")
    return pathlib.Path(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """A path that does not depend on the working directory; those of object stores never do."""
    found = epath.Path(path)
    return epath.Path(found.absolute()) if is_local(path) else found


def exists(path: epath.PathLike) -> bool:
    """Whether there is a file or folder; raises StorageError where that cannot be told."""
    return _kind(path) is not None


def is_directory(path: epath.PathLike) -> bool:
    """Whether there is a folder; raises StorageError where that cannot be told."""
    return _kind(path) == "directory"


def is_file(path: epath.PathLike) -> bool:
    """Whether there is a file; raises StorageError where that cannot be told."""
    return _kind(path) not in (None, "directory")


def _kind(path: epath.PathLike) -> str | None:
    """What is at a path: "directory", "file" or the like; None where nothing is.

    The libraries' own tests answer no where a server or a disk gives no answer at all.
    """

    def look() -> str | None:
        try:
            if is_local(path):
                return "directory" if stat.S_ISDIR(os.stat(path).st_mode) else "file"
            return str(_object_store(path).info(os.fspath(path))["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # no file can be there
                return None
            raise

    return None if "\0" in os.fspath(path) else retry("read", path, look)


def list_folder(path: epath.PathLike) -> list[str]:
    """What a folder holds, sorted; nothing where there is no such folder.

    Raises:
      StorageError: the folder cannot be read.
    """
    try:
        return retry("list", path, lambda: sorted(each.name for each in epath.Path(path).iterdir()))
    except FileNotFoundError:
        return []


def files_below(path: epath.PathLike) -> list[str]:
    """The paths below a folder of a bucket of all files in it, sorted, with forward slashes.

    Raises:
      StorageError: the folder cannot be read.
    """
    store = _object_store(path)
    root = store._strip_protocol(os.fspath(path)).rstrip("/") + "/"
    found = retry("list", path, lambda: store.find(root))
    return sorted(key[len(root) :] for key in found if not key.endswith("/"))


def read(path: epath.PathLike) -> bytes:
    """The content of a file.

    Raises:
      FileNotFoundError: there is none.
      StorageError: it cannot be read.
    """
    if is_local(path):
        return retry("read", path, epath.Path(path).read_bytes)
    # One request; to open the file would ask for its size first.
    return retry("read", path, lambda: _object_store(path).cat_file(os.fspath(path)))


def write(path: epath.PathLike, content: bytes) -> None:
    """Writes a file so that it is whole or as it was before; makes its directory.

    Raises:
      StorageError: the file cannot be written.
    """
    if not is_local(path):
        retry("write", path, lambda: _object_store(path).pipe_file(os.fspath(path), content))
        return
    place = epath.Path(path)
    draft = place.with_name(place.name + ".tmp")

    def replace() -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        draft.replace(place)

    retry("write", path, replace)


def write_json(path: epath.PathLike, value: Any, indent: int | None = None) -> None:
    """Writes a value as JSON; raises as `write` does."""
    write(path, (json.dumps(value, indent=indent) + "\n").encode())


def make_directory(path: epath.PathLike) -> None:
    """Makes a folder and those above it; raises StorageError where that cannot be."""
    retry("write", path, lambda: epath.Path(path).mkdir(parents=True, exist_ok=True))


def rename(path: epath.PathLike, name: str) -> None:
    """Gives a file or folder another name in its folder; raises StorageError if it cannot."""
    place = epath.Path(path)
    retry("rename", path, lambda: place.rename(place.with_name(name)))


def delete(path: epath.PathLike) -> None:
    """Deletes a file; one that is gone already is no error. Raises StorageError if it cannot."""
    with contextlib.suppress(FileNotFoundError):
        retry("delete", path, epath.Path(path).unlink)


def delete_directory(path: epath.PathLike) -> None:
    """Deletes a folder and what is in it, if there is one; raises StorageError if it cannot."""
    with contextlib.suppress(FileNotFoundError):
        retry("delete", path, epath.Path(path).rmtree)


def retry(verb: str, path: epath.PathLike, what: Callable[[], T]) -> T:
    """Calls a function that works on a path, again and again while its errors are transient ones.

    Args:
      verb: what the function does, for the message: "read", "write".
      path: for the message.
      what: it can be called again when it has failed.

    Raises:
      FileNotFoundError: as it came, of what is read, listed or deleted.
      StorageError: the function failed in any other way, for good or for `PATIENCE` seconds.
    """
    end, pause = time.monotonic() + PATIENCE, 0.5
    while True:
        try:
            return what()
        except FileNotFoundError as error:
            if verb in ("write", "rename"):
                raise StorageError(f"cannot {verb} {path}: no such bucket or folder") from error
            raise
        except StorageError:
            raise
        except ImportError as error:
            raise StorageError(f"cannot {verb} {path}: {error}; pip install gcsfs") from error
        except Exception as error:
            failed = StorageError(f"cannot {verb} {path}: {reason(error)}")
            failed.transient = is_transient(error)
            if not failed.transient or time.monotonic() + pause > end:
                raise failed from error
            logging.info("%s; trying again in %.1f s", failed, pause)
        time.sleep(pause * random.uniform(0.7, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)


def is_transient(error: BaseException) -> bool:
    """Whether an error speaks of a network or a server that may answer a moment later."""
    if isinstance(error, StorageError):
        return error.transient
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_NUMBERS:
        return True
    code = str(getattr(error, "code", ""))
    if code.isdecimal() and int(code) in _TRANSIENT_CODES:
        return True
    if any(kind.__name__ in _TRANSIENT_CLASSES for kind in type(error).__mro__):
        return True
    return isinstance(error, ValueError | RuntimeError) and any(
        words in str(error) for words in _TRANSIENT_WORDS
    )


def reason(error: BaseException) -> str:
    """What went wrong, as one line of bearable length."""
    if isinstance(error, StorageError):
        said = str(error)
    elif isinstance(error, FileNotFoundError):
        said = "No such file or directory"  # gcsfs says the object's name alone
    else:
        said = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return " ".join(str(said).split())[:160]


@contextlib.contextmanager
def folder(path: epath.PathLike) -> Iterator[pathlib.Path]:
    """A local folder to write files into; afterwards they are at `path`, copied if need be.

    Raises:
      UserError: a file cannot be copied.
    """
    if is_local(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as name:
        local = pathlib.Path(name)
        yield local
        for file in sorted(each for each in local.rglob("*") if each.is_file()):
            write(epath.Path(path) / file.relative_to(local).as_posix(), file.read_bytes())


def png(pixels: np.ndarray) -> bytes:
    """A picture, [H, W, 3] uint8, as the bytes of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def jpg(pixels: np.ndarray) -> bytes:
    """A picture, [H, W, 3] uint8, as the bytes of a JPEG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    return content.getvalue()


def _object_store(path: epath.PathLike) -> Any:
    import fsspec  # slow to import, and no local path needs it

    return fsspec.core.url_to_fs(os.fspath(path))[0]
