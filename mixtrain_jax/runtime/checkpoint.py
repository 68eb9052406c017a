"""Checkpoints: a train state into a directory and back, by way of orbax, used nowhere else.

A checkpoint is a directory with one part for each of `student`, `teacher` and `optimizer`, numpy
arrays under the names of the tree they came from, and JSON (`meta`) that says what model they
belong to. Orbax writes it under a temporary name and renames it, so a save that was killed leaves
no checkpoint; what is read is numpy again, so the number of devices may change between runs.
"""

import asyncio.log
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util

from mixtrain_jax.runtime import files
from mixtrain_jax.runtime.errors import UserError
from mixtrain_jax.types import Params, TrainState

Flat = dict[str, Any]  # arrays, or things with a shape and a dtype, by "student/backbone/..."

PARTS = ("student", "teacher", "optimizer")
NOT_WRITABLE = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Permission denied",
    "RESOURCE_EXHAUSTED",
)

# Orbax logs each failure several times with a traceback, and raises it too; the latter is enough.
logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
asyncio.log.logger.addFilter(lambda record: "/orbax/" not in record.getMessage())


def _without_closed_loops(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Hides "Event loop is closed", which orbax's other threads print when one of them failed."""
    return lambda stray: "Event loop is closed" in str(stray.exc_value) or hook(stray)


sys.unraisablehook = _without_closed_loops(sys.unraisablehook)


class Checkpoints:
    """The checkpoints of one run, in `workdir`/checkpoints/STEP.

    The newest `keep` are kept, and the best by AP. In a run of several processes each process calls
    every method at the same step.
    """

    def __init__(self, workdir: epath.PathLike, keep: int = 2):
        """Makes the directory, and clears what killed saves left there.

        Raises:
          UserError: the directory cannot be written.
        """
        self.directory = epath.Path(workdir).absolute() / "checkpoints"
        self.keep = keep
        options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
        with _explained(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._scores = _read_scores(self.directory)

    def save(self, step: int, state: TrainState, meta: dict, metrics: dict | None = None) -> None:
        """Starts to save a state; training may go on at once, as the arrays are copied first.

        A step that is saved already is left as it is, and only the metrics are recorded. What goes
        wrong in the background is raised by the next `save` or `wait`.

        Args:
          step: number of steps taken.
          state: its arrays are on this host as a whole (replicated).
          meta: JSON that describes the model; `restore_latest` compares it.
          metrics: as `record` takes them.

        Raises:
          UserError: this or an earlier checkpoint could not be written.
        """
        with _explained(self.directory):
            self._manager.wait_until_finished()
            self._prune()
            if step not in self._manager.all_steps():
                self._manager.save(step, args=_composite(_parts(state), {**meta, "step": step}))
        if metrics is not None:
            self.record(step, metrics)

    def record(self, step: int, metrics: dict) -> None:
        """Notes what evaluation found at a saved step; the one with the highest "AP" is kept.

        Raises:
          UserError: the note cannot be written.
        """
        self._scores[step] = float(metrics["AP"])
        if jax.process_index() == 0:
            files.write_json(self.directory / "scores.json", self._scores)

    def scores(self) -> dict[int, float]:
        """AP by step, of the checkpoints that were evaluated."""
        return dict(self._scores)

    def wait(self) -> None:
        """Returns when all saves are on disk.

        Raises:
          UserError: one of them could not be written.
        """
        with _explained(self.directory):
            self._manager.wait_until_finished()
            self._prune()

    def close(self) -> None:
        """Waits, and ends orbax's threads."""
        self.wait()
        self._manager.close()

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes of a run are to stop after this step, as one was asked to.

        The same answer in all of them; each has to ask after every step.
        """
        return self._manager.reached_preemption(step)

    def restore_latest(
        self, target: TrainState, meta: dict | None = None
    ) -> tuple[TrainState, int, dict] | None:
        """Reads the newest checkpoint, or the one before when the newest is damaged.

        A damaged one is renamed to `damaged-STEP`, with a warning, so that its step can be saved
        again.

        Args:
          target: a state of the shapes and dtypes expected (`jax.eval_shape` gives one).
          meta: fields that must be the same in the checkpoint's meta, at any depth.

        Returns:
          The state as numpy arrays, its step, and its meta; None when there is no checkpoint.

        Raises:
          UserError: the checkpoint is of another model, or none of several can be read.
        """
        found = _newest(self.directory, PARTS)
        if found is None:
            return None
        path, arrays, saved, damaged = found
        self._set_aside(damaged)
        _check_meta(path, json.loads(json.dumps(meta or {})), saved)
        expected = {name: leaf for part in _parts(target).values() for name, leaf in part.items()}
        _check_arrays(path, expected, arrays)
        step = saved["step"]
        state: dict[str, Any] = {
            part: jax.tree.unflatten(
                jax.tree.structure(getattr(target, part)), [arrays[name] for name in names]
            )
            for part, names in _parts(target).items()
        }
        state["step"] = np.array(step, np.int32)
        return TrainState(**state), step, saved

    def _prune(self) -> None:
        """Deletes all finished checkpoints but the newest ones and the best."""
        steps = sorted(self._manager.all_steps())
        best = max(
            (s for s in steps if s in self._scores), key=self._scores.__getitem__, default=-1
        )
        for step in steps[: -self.keep]:
            if step != best:
                self._manager.delete(step)

    def _set_aside(self, damaged: list[epath.Path]) -> None:
        if damaged:
            if jax.process_index() == 0:
                with _explained(self.directory):
                    for path in damaged:
                        path.rename(path.with_name(f"damaged-{path.name}"))
            ocp.utils.sync_global_processes("mixtrain_jax:damaged checkpoints set aside")
            self._manager.reload()


def save_weights(
    path: epath.PathLike, student: Params, teacher: Params | None = None, meta: dict | None = None
) -> None:
    """Writes parameters alone, as a checkpoint that `load_weights` reads.

    Raises:
      UserError: the path exists, or cannot be written.
    """
    path = epath.Path(path).absolute()
    if path.exists():
        raise UserError(f"{path} exists; remove it or choose another path for the weights")
    trees = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    parts = {part: _named(part, tree) for part, tree in trees.items()}
    with _explained(path), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=_composite(parts, meta or {}))


def load_weights(
    path: epath.PathLike, which: str = "student", step: int | str | None = None
) -> tuple[Params, dict]:
    """Reads the parameters of a model, and nothing else.

    Args:
      path: a workdir, one of its checkpoints (`workdir`/checkpoints/STEP), or what `save_weights`
        wrote.
      which: "student" or "teacher".
      step: of a workdir, the step to read, or "best" for the one with the highest AP. None reads
        the newest, or the one before, with a warning, when that is damaged.

    Returns:
      The parameters as nested dictionaries of numpy arrays, and the checkpoint's meta.

    Raises:
      UserError: there is no checkpoint at the path, it cannot be read, or lacks these weights.
    """
    path = epath.Path(path).absolute()
    directory = path if path.name == "checkpoints" else path / "checkpoints"
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if directory.is_dir() and step is None:
        found = _newest(directory, (which,))
        if found is None:
            raise UserError(f"{directory} holds no checkpoint")
        path, arrays, meta, _ = found
    else:
        if directory.is_dir():
            path = directory / str(_choose(directory, step))
        try:
            arrays, meta = _read(path, (which,))
        except Exception as error:
            raise UserError(f"{path} is no checkpoint, or is damaged: {_line(error)}") from error
    if not arrays:
        raise UserError(f"checkpoint {path} has no {which} weights")
    return traverse_util.unflatten_dict(arrays, sep="/")[which], meta


def check_same_arrays(path: epath.PathLike, expected: Params, params: Params) -> None:
    """Checks that parameters read from `path` are those of a model.

    Args:
      path: named in the message.
      expected: the model's parameters, or their shapes.
      params: as `load_weights` returns them.

    Raises:
      UserError: an array is missing, unknown, or of another shape; the first such is named.
    """
    _check_arrays(epath.Path(path), _named("params", expected), _named("params", params))


def _choose(directory: epath.Path, step: int | str | None) -> int:
    """The step that was asked for by number or as the best."""
    steps = _steps(directory)
    if step == "best":
        scores = {s: ap for s, ap in _read_scores(directory).items() if s in steps}
        if not scores:
            raise UserError(f"{directory} holds no evaluated checkpoint, so none is the best")
        return max(scores, key=scores.__getitem__)
    if step not in steps:
        raise UserError(f"{directory} holds no step {step}; there are {steps}")
    return int(step)


def _newest(
    directory: epath.Path, parts: tuple[str, ...]
) -> tuple[epath.Path, Flat, dict, list[epath.Path]] | None:
    """Path, arrays and meta of the newest readable checkpoint, and the damaged newer ones."""
    damaged: list[epath.Path] = []
    for step in reversed(_steps(directory)):
        path = directory / str(step)
        try:
            arrays, meta = _read(path, parts)
        except Exception as error:  # whatever orbax, tensorstore or the file system say of damage
            logging.warning(
                "Checkpoint %s cannot be read, trying the one before: %s", path, _line(error)
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


def _steps(directory: epath.Path) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdecimal() and ocp.utils.is_checkpoint_finalized(path)
    )


def _read(path: epath.Path, parts: tuple[str, ...]) -> tuple[Flat, dict]:
    """Reads those of the parts that were saved, and the meta; any exception means damage."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        meta = checkpointer.restore(path, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]
        saved = [part for part in meta.pop("parts") if part in parts]
        trees: dict[str, Any] = {}
        if saved:
            restore = {part: ocp.args.PyTreeRestore() for part in saved}
            trees = dict(checkpointer.restore(path, args=ocp.args.Composite(**restore)).items())
    return traverse_util.flatten_dict(trees, sep="/"), meta


def _composite(parts: dict[str, Flat], meta: dict) -> ocp.args.Composite:
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


def _parts(state: TrainState) -> dict[str, Flat]:
    return {part: _named(part, getattr(state, part)) for part in PARTS}


def _named(part: str, tree: Any) -> Flat:
    """The leaves of a tree by name, in the tree's order."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        f"{part}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
        for path, leaf in leaves
    }


def _check_meta(path: epath.Path, expected: Any, saved: Any, field: str = "") -> None:
    """Refuses a checkpoint whose meta differs in a field that is expected, and names the field."""
    if isinstance(expected, dict) and isinstance(saved, dict):
        for key, value in expected.items():
            _check_meta(path, value, saved.get(key), f"{field}.{key}" if field else key)
    elif expected != saved:
        raise UserError(
            f"{path} was trained with {field} = {saved}, and this run has {field} = {expected}; "
            "choose another workdir"
        )


def _check_arrays(path: epath.Path, expected: Flat, saved: Flat) -> None:
    """Refuses a checkpoint with other arrays than the model's, and names the first that differs."""
    for name in [*expected, *saved]:
        ours, theirs = (
            f"{flat[name].dtype}{list(flat[name].shape)}" if name in flat else "missing"
            for flat in (expected, saved)
        )
        if ours != theirs:
            raise UserError(
                f"{path} is of another model: {name} is {theirs} there and {ours} here; "
                "use the config it was trained with, or choose another workdir"
            )


def _read_scores(directory: epath.Path) -> dict[int, float]:
    path = directory / "scores.json"
    try:
        return {int(step): ap for step, ap in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        logging.warning(
            "%s cannot be read, so the best checkpoint is unknown: %s", path, _line(error)
        )
        return {}


def _line(error: Exception) -> str:
    """An exception as one line of bearable length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


@contextlib.contextmanager
def _explained(path: epath.Path) -> Iterator[None]:
    """Turns a full disk, a read-only directory and the like into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    except (ValueError, RuntimeError) as error:  # what tensorstore makes of the same
        reason = next((reason for reason in NOT_WRITABLE if reason in str(error)), None)
        if reason is None:
            raise
        raise UserError(f"cannot write {path}: {reason}") from error
