"""Checkpoints: a train state into a directory and back, by way of orbax.

A checkpoint is a directory with one part for each of `student`, `teacher` and `optimizer`, numpy
arrays under the names of the tree they came from, and JSON (`meta`) that says what model they
belong to. Orbax writes it under a temporary name and renames it, so a save that was killed leaves
no checkpoint; what is read is numpy again, so the number of devices may change between runs.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util

from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import hosts, same_model, storage
from mixtrain_jax.runtime.orbax_files import (
    Flat,
    cleared,
    composite,
    explained,
    finished_steps,
    named_arrays,
    newest,
    one_line,
    read,
)
from mixtrain_jax.types import Params, TrainState

PARTS = ("student", "teacher", "optimizer")
PROVEN = "proven.json"


class Checkpoints:
    """The checkpoints of one run, in `workdir`/checkpoints/STEP.

    The newest `keep` good ones are kept, the best by AP, and all whose worth is not known yet. In a
    run of several processes each process calls every method at the same step; the first alone
    decides what is read and renamed.

    Attributes:
      directory: where they are.
      keep: how many good ones are kept.
      proven: checkpoints of steps before this one are good, as a later step gave finite numbers.
      scored: what scores are on, in words; "" where nobody said.
    """

    def __init__(self, workdir: epath.PathLike, keep: int = 2):
        """Makes the directory, and clears what killed saves left there.

        Raises:
          UserError: the directory cannot be written.
        """
        self.directory = storage.absolute(workdir) / "checkpoints"
        self.keep = keep
        self.proven = 0
        options = ocp.CheckpointManagerOptions(preservation_policy=self)
        with explained(self.directory):
            storage.make_directory(self.directory)
            with hosts.on_first(cleared(self.directory)):
                self._manager = ocp.CheckpointManager(self.directory, options=options)
        scores, self.scored = hosts.from_first("scores", _read_scores(self.directory))
        self._scores = {int(step): ap for step, ap in scores.items()}

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts to save a state; training may continue at once, as the arrays are copied first.

        A step that is saved already is left as it is. What goes wrong in the background is raised
        by the next `save` or `wait`.

        Args:
          step: number of steps taken.
          state: its arrays are on this host as a whole (replicated).
          meta: JSON that describes the model; `restore_latest` compares it.

        Raises:
          UserError: this or an earlier checkpoint could not be written.
        """
        with explained(self.directory):
            self._manager.wait_until_finished()
            if step not in self._manager.all_steps():
                told = {**meta, "step": step, "proven": self.proven}
                self._manager.save(step, args=composite(_parts(state), told))

    def record(self, step: int, metrics: dict[str, Any], scored: str = "") -> int:
        """Notes what evaluation found at a saved step; the one with the highest "AP" is kept.

        Args:
          step: of the checkpoint.
          metrics: what was found, "AP" among it.
          scored: on what, in words. Scores on something else are forgotten: the two cannot be
            compared.

        Returns:
          How many were forgotten.

        Raises:
          UserError: the note cannot be written.
        """
        kept = self.scores(scored)
        forgotten = len(self._scores) - len(kept)
        self._scores, self.scored = kept | {step: float(metrics["AP"])}, scored
        self._write_scores()
        return forgotten

    def _write_scores(self) -> None:
        if hosts.index() == 0:
            content = {"scored": self.scored, "AP": self._scores}
            storage.write_json(self.directory / "scores.json", content)

    def _forget_after(self, step: int) -> None:
        """Drops what was noted of later steps, which the run will come to anew."""
        if any(scored > step for scored in self._scores):
            self._scores = {s: ap for s, ap in self._scores.items() if s <= step}
            self._write_scores()
        if hosts.index() == 0 and _noted_as_proven(self.directory) > step:
            storage.delete(self.directory / PROVEN)

    def note_all_proven(self, step: int) -> None:
        """Notes that the weights after `step`, the last, gave finite numbers once more.

        Raises:
          UserError: the note cannot be written.
        """
        if hosts.index() == 0:
            storage.write_json(self.directory / PROVEN, step)

    def all_proven(self, step: int) -> bool:
        """Whether that was noted of this step; the same answer on all hosts."""
        return bool(hosts.from_first("all proven", _noted_as_proven(self.directory) == step))

    def scores(self, scored: str = "") -> dict[int, float]:
        """AP by step, of the checkpoints that were evaluated.

        Args:
          scored: only scores on this; "": whatever they are on.
        """
        same = not (scored and self.scored) or scored == self.scored
        return dict(self._scores) if same else {}

    def newest_step(self) -> int | None:
        """The step of the newest finished checkpoint; None where there is none."""
        return max(finished_steps(self.directory), default=None)

    def wait(self) -> None:
        """Returns when all saves are on disk.

        Raises:
          UserError: one of them could not be written.
        """
        with explained(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends orbax's threads."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        """Closes; after an error only where no other process has to be waited for."""
        if kind is None:
            self.close()
        elif hosts.count() == 1:
            with contextlib.suppress(UserError):  # the first error is the one to be told
                self.close()

    def set_suspects_aside(self) -> str:
        """Renames the checkpoints that no later finite step has proven to `suspect-STEP`.

        Returns:
          One sentence on what was renamed and which checkpoint is the newest good one.

        Raises:
          UserError: they cannot be renamed.
        """
        self.wait()
        steps = hosts.from_first("suspects", finished_steps(self.directory))
        suspects = [step for step in steps if step >= self.proven]
        if hosts.index() == 0:
            for step in suspects:
                storage.rename(self.directory / str(step), _free_name(self.directory, step))
        hosts.from_first("suspects aside", True)  # whoever ends before ends the first host too
        told = ", ".join(map(str, suspects))
        good = [step for step in steps if step < self.proven]
        newest_good = f"the newest good checkpoint is {max(good)}" if good else "none is left"
        if not suspects:
            return newest_good
        return f"checkpoints {told} may hold wrecked weights and are renamed; {newest_good}"

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes of a run are to stop after this step, as one was asked to.

        The same answer in all of them; each has to ask after every step.
        """
        return self._manager.reached_preemption(step)

    def restore_latest(
        self, target: TrainState, meta: dict[str, Any] | None = None
    ) -> TrainState | None:
        """Reads the newest checkpoint, or the one before when the newest is damaged.

        A damaged one is renamed to `damaged-STEP`, with a warning, so that its step can be saved
        again. Scores of later steps are forgotten: they were another way's.

        Args:
          target: a state of the shapes and dtypes expected (`jax.eval_shape` gives one).
          meta: fields that must be the same in the checkpoint's meta, at any depth.

        Returns:
          The state as numpy arrays; None when there is no checkpoint.

        Raises:
          UserError: the checkpoint is of another model, or none of several can be read.
        """
        found = self._read_newest()
        if found is None:
            self._forget_after(0)
            return None
        path, arrays, saved = found
        self.proven = saved.pop("proven", 0)  # what the run knew of the ones before when it saved
        same_model.check_meta(path, json.loads(json.dumps(meta or {})), saved)
        expected = {name: leaf for part in _parts(target).values() for name, leaf in part.items()}
        same_model.check_arrays(path, expected, arrays)
        step = saved["step"]
        self._forget_after(step)
        state: dict[str, Any] = {
            part: jax.tree.unflatten(
                jax.tree.structure(getattr(target, part)), [arrays[name] for name in names]
            )
            for part, names in _parts(target).items()
        }
        state["step"] = np.array(step, np.int32)
        return TrainState(**state)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's preservation policy: says which of the finished checkpoints stay.

        Orbax asks when it starts a save, and deletes the others when the new one is finished.
        """
        del context
        good = sorted(each.step for each in checkpoints if each.step < self.proven)
        scored = [step for step in good if step in self._scores]
        best = max(scored, key=self._scores.__getitem__, default=None)
        kept = {*good[-self.keep :], best}
        return [each.step in kept or each.step >= self.proven for each in checkpoints]

    def _read_newest(self) -> tuple[epath.Path, Flat, dict[str, Any]] | None:
        """Path, arrays and meta of the newest checkpoint; the first process chooses it for all."""
        found: tuple[epath.Path, Flat, dict[str, Any], list[epath.Path]] | None = None
        if hosts.index() == 0:  # if it fails it ends, and the others hear of that
            found = newest(self.directory, PARTS)
            for path in found[3] if found else []:
                storage.rename(path, _free_name(self.directory, path.name, "damaged"))
        name = found[0].name if found else None
        name, renamed = hosts.from_first("restore", [name, bool(found and found[3])])
        if renamed:
            self._manager.reload()
        if name is None:
            return None
        if found:
            return found[:3]
        path = self.directory / name
        try:
            return path, *read(path, PARTS)
        except storage.StorageError:
            raise
        except Exception as error:
            raise UserError(
                f"host {hosts.index()} cannot read {path}, which host 0 has read "
                f"({one_line(error)}); is the workdir shared by all hosts?"
            ) from error


def _noted_as_proven(directory: epath.Path) -> int:
    """The step that `note_all_proven` noted; -1 where there is none."""
    try:
        noted = json.loads(storage.read(directory / PROVEN))
    except (FileNotFoundError, ValueError):
        return -1
    return noted if isinstance(noted, int) else -1


def _free_name(directory: epath.Path, step: int | str, why: str = "suspect") -> str:
    """A name for a checkpoint that is set aside, which none before has."""
    name, taken = f"{why}-{step}", storage.list_folder(directory)
    number = 2
    while name in taken:
        name, number = f"{why}-{step}-{number}", number + 1
    return name


def save_weights(
    path: epath.PathLike,
    student: Params,
    teacher: Params | None = None,
    meta: dict[str, Any] | None = None,
) -> None:
    """Writes parameters alone, as a checkpoint that `load_weights` reads.

    Raises:
      UserError: the path exists, or cannot be written.
    """
    path = storage.absolute(path)
    if storage.exists(path):
        raise UserError(f"{path} exists; remove it or choose another path for the weights")
    trees = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    parts = {part: named_arrays(part, tree) for part, tree in trees.items()}
    with (
        explained(path),
        ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
    ):
        checkpointer.save(path, args=composite(parts, meta or {}))


def load_weights(
    source: epath.PathLike, which: str = "student", step: int | str | None = None
) -> tuple[Params, dict[str, Any]]:
    """Reads the parameters of a model, and nothing else.

    Args:
      source: a workdir, one of its checkpoints (`workdir`/checkpoints/STEP), or what `save_weights`
        wrote; "WORKDIR:best" asks for a run's best.
      which: "student" or "teacher".
      step: of a workdir, the step to read, or "best" for the one with the highest AP. None reads
        the newest, or the one before, with a warning, when that is damaged.

    Returns:
      The parameters as nested dictionaries of numpy arrays, and the checkpoint's meta.

    Raises:
      UserError: there is no checkpoint at the path, it cannot be read, or lacks these weights.
    """
    name = os.fspath(source)
    if name.endswith(":best"):
        name, step = name.removesuffix(":best"), "best"
    path = storage.absolute(name)
    directory = path if path.name == "checkpoints" else path / "checkpoints"
    if not storage.exists(path):
        raise UserError(f"checkpoint {path} does not exist")
    run = storage.is_directory(directory)
    if run and step is None:
        found = newest(directory, (which,))
        if found is None:
            raise UserError(f"{directory} holds no checkpoint")
        path, arrays, meta, _ = found
    else:
        if run:
            path = directory / str(_choose(directory, step))
        try:
            arrays, meta = read(path, (which,))
        except storage.StorageError:
            raise
        except Exception as error:
            raise UserError(f"{path} is no checkpoint, or is damaged: {one_line(error)}") from error
    if not arrays:
        raise UserError(f"checkpoint {path} has no {which} weights")
    return traverse_util.unflatten_dict(arrays, sep="/")[which], meta


def _choose(directory: epath.Path, step: int | str | None) -> int:
    """The step that was asked for by number or as the best."""
    steps = finished_steps(directory)
    if step == "best":
        scores = {s: ap for s, ap in _read_scores(directory)[0].items() if s in steps}
        if not scores:
            raise UserError(f"{directory} holds no evaluated checkpoint, so none is the best")
        return max(scores, key=scores.__getitem__)
    if step not in steps:
        raise UserError(f"{directory} holds no step {step}; there are {steps}")
    return int(step)


def _parts(state: TrainState) -> dict[str, Flat]:
    return {part: named_arrays(part, getattr(state, part)) for part in PARTS}


def _read_scores(directory: epath.Path) -> tuple[dict[int, float], str]:
    """AP by step, and what it is on; earlier versions wrote the former alone."""
    path = directory / "scores.json"
    try:
        content = json.loads(storage.read(path))
        scores = content.get("AP", content)
        return {int(step): ap for step, ap in scores.items()}, str(content.get("scored", ""))
    except FileNotFoundError:
        return {}, ""
    except (ValueError, AttributeError, TypeError) as error:
        reason = one_line(error)
        logging.warning("%s cannot be read, so the best checkpoint is unknown: %s", path, reason)
        return {}, ""
