"""What orbax reads and writes: named arrays and JSON in a directory, and what it says of trouble.

Used by `checkpoint` alone, which knows what a run and a train state are.
"""

import asyncio.log
import contextlib
import logging as logging_module
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util

from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import hosts, storage

_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a folder that orbax has not finished

Flat = dict[str, Any]  # arrays, or things with a shape and a dtype, by "student/backbone/..."

NOT_WRITABLE = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Permission denied",
    "RESOURCE_EXHAUSTED",
)


# Tensorstore's words for what is no damage.
_NOT_READ = ("PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "Too many open files")


def quiet_orbax() -> None:
    """Keeps orbax from telling each failure several times, with tracebacks; it raises it too."""
    logging.get_absl_logger().addFilter(_not_of_orbax)
    asyncio.log.logger.addFilter(_not_of_orbax)
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)


def _not_of_orbax(record: logging_module.LogRecord) -> bool:
    return "/orbax/" not in record.pathname and "/orbax/" not in record.getMessage()


class _WithoutClosedLoops:
    """Hides "Event loop is closed", which orbax's other threads print when one of them failed."""

    def __init__(self, hook: Callable[[Any], Any]):
        self.hook = hook

    def __call__(self, stray: Any) -> None:
        if "Event loop is closed" not in str(stray.exc_value):
            self.hook(stray)


def newest(
    directory: epath.Path, parts: tuple[str, ...]
) -> tuple[epath.Path, Flat, dict[str, Any], list[epath.Path]] | None:
    """Path, arrays and meta of the newest readable checkpoint, and the damaged newer ones."""
    damaged: list[epath.Path] = []
    for step in reversed(finished_steps(directory)):
        path = directory / str(step)
        try:
            arrays, meta = read(path, parts)
        except storage.StorageError:  # it was not read, so nobody knows what it holds
            raise
        except Exception as error:  # whatever orbax and tensorstore say of damage
            logging.warning(
                "Checkpoint %s cannot be read, trying the one before: %s", path, one_line(error)
            )
            damaged.append(path)
        else:
            return path, arrays, meta, damaged
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise UserError(
            f"no checkpoint in {directory} can be read (tried {names}); "
            "restore one from a copy, or choose another workdir to start anew"
        )
    return None


def finished_steps(directory: epath.Path) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    return sorted(
        int(name)
        for name in storage.list_folder(directory)
        if name.isdecimal() and _is_finished(directory / name)
    )


def _is_finished(path: epath.Path) -> bool:
    """Whether a folder is a checkpoint as a whole: by orbax's mark, or by its name alone.

    Asked itself, orbax says no where a server or a disk gives no answer.
    """
    if os.fspath(path).startswith("gs://"):
        return storage.exists(path / "commit_success.txt")
    return storage.is_directory(path)  # elsewhere it has its name when it is whole


@contextlib.contextmanager
def cleared(directory: epath.Path) -> Iterator[None]:
    """First deletes the checkpoints that killed saves left unfinished.

    Orbax does so too, but beside the first look at what there is, and in an object store a folder
    is gone with its last file: whoever was listing it, on this host or another, then failed.
    """
    for name in storage.list_folder(directory):
        path = directory / name
        if _TEMPORARY in name or (name.isdecimal() and not _is_finished(path)):
            storage.delete_directory(path)
    yield


def read(path: epath.Path, parts: tuple[str, ...]) -> tuple[Flat, dict[str, Any]]:
    """Reads those of the parts that were saved, and the meta.

    Raises:
      StorageError: the files could not be read, whatever they hold.
      Exception: what was read is no checkpoint, or is damaged.
    """

    def once() -> tuple[Flat, dict[str, Any]] | Exception:
        try:
            return _read(path, parts)
        except Exception as error:
            if storage.is_transient(error) or _refused(error):
                raise
            return error

    found = storage.retry("read", path, once)
    if isinstance(found, Exception):
        raise found
    return found


def _refused(error: Exception) -> bool:
    """Whether reading failed for reasons outside the files, which a second try will not change."""
    if isinstance(error, OSError):
        missing = FileNotFoundError | NotADirectoryError | IsADirectoryError
        return error.errno is not None and not isinstance(error, missing)
    if isinstance(error, MemoryError):
        return True
    return any(words in str(error) for words in _NOT_READ)


def _read(path: epath.Path, parts: tuple[str, ...]) -> tuple[Flat, dict[str, Any]]:
    me = hosts.index()
    # By default orbax has every process wait, after reading, until all have read.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host {me} alone"
    )
    handler = ocp.CompositeCheckpointHandler()
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        meta = checkpointer.restore(path, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]
        saved = [part for part in meta.pop("parts") if part in parts]
        trees: dict[str, Any] = {}
        if saved:
            restore = {part: ocp.args.PyTreeRestore() for part in saved}
            trees = dict(checkpointer.restore(path, args=ocp.args.Composite(**restore)).items())
    return traverse_util.flatten_dict(trees, sep="/"), meta


def composite(parts: dict[str, Flat], meta: dict[str, Any]) -> ocp.args.Composite:
    """What orbax saves: copies of the arrays, as the next step may overwrite the originals."""
    parts = {part: flat for part, flat in parts.items() if flat}
    arrays = {
        part: ocp.args.PyTreeSave(
            traverse_util.unflatten_dict(
                {name.removeprefix(f"{part}/"): np.array(leaf) for name, leaf in flat.items()},
                sep="/",
            )
        )
        for part, flat in jax.device_get(parts).items()
    }
    return ocp.args.Composite(meta=ocp.args.JsonSave({**meta, "parts": list(parts)}), **arrays)


def named_arrays(part: str, tree: Any) -> Flat:
    """The leaves of a tree by name, in the tree's order."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        f"{part}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
        for path, leaf in leaves
    }


def one_line(error: Exception) -> str:
    """An exception as one line of bearable length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


@contextlib.contextmanager
def explained(path: epath.Path) -> Iterator[None]:
    """Turns a full disk, a read-only directory and the like into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if hosts.tells_of_loss(error):  # the arrays to be saved are of a step that failed
            raise
        # tensorstore has no classes for it, only words
        told = next((words for words in NOT_WRITABLE if words in str(error)), None)
        if told is None and not isinstance(error, OSError) and not storage.is_transient(error):
            raise
        raise storage.StorageError(
            f"cannot write {path}: {told or storage.reason(error)}"
        ) from error
