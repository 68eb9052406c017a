"""Evaluation during training: when it is due, whose weights it scores, what follows from it."""

import math
from collections.abc import Mapping
from typing import Any

from mixtrain_jax.config import agreement
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.evaluation import coco, detect
from mixtrain_jax.runtime import parallel
from mixtrain_jax.runtime.checkpoint import Checkpoints
from mixtrain_jax.runtime.monitor import Monitor, due
from mixtrain_jax.types import TrainState


class Validation:
    """Scores the student, the teacher or both on the val split, every so many steps."""

    def __init__(
        self, config: Any, dataset: Dataset | None, monitor: Monitor, checkpoints: Checkpoints
    ):
        """Compiles nothing yet.

        Args:
          config: the whole config, resolved.
          dataset: the val split; None: nothing is ever due.
          monitor: gets the twelve numbers as val_student/AP and so on.
          checkpoints: gets the AP that chooses the best checkpoint, the student's if it is scored.
        """
        self._config = config
        self._dataset = dataset
        self._monitor = monitor
        self._checkpoints = checkpoints
        self._scored = "" if dataset is None else describe(config, dataset)
        if checkpoints.scores() and not checkpoints.scores(self._scored):
            parallel.say(
                f"val was {checkpoints.scored} so far, and is {self._scored} now: earlier scores "
                "end no training, and with the first new one they choose the best checkpoint no "
                f"more, which is that of step {best_step(checkpoints.scores())}: copy it to keep it"
            )
        self._predict = detect.predictor(config.model, config.data, config.eval.dtype)

    def due(self, step: int) -> bool:
        """Whether the state after `step` is to be scored: every so many steps, and at the end."""
        return self._dataset is not None and due(step, self._config.eval.every, self._config.steps)

    def missed(self, step: int) -> bool:
        """Whether the state after `step` was to be scored and was not, on whatever."""
        return self.due(step) and step not in self._checkpoints.scores()

    def run(self, step: int, state: TrainState) -> None:
        """Scores the state after `step`, prints the tables, and records the scores."""
        if self._dataset is None:
            return
        chosen = self._config.eval.weights
        scores: dict[str, dict[str, Any]] = {}
        with self._monitor.pause():
            for name in ("student", "teacher") if chosen == "both" else (chosen,):
                scores[name], _ = detect.evaluate(
                    self._predict,
                    parallel.of_this_host(getattr(state, name)),
                    self._dataset,
                    self._config.data,
                    self._config.eval,
                )
                parallel.say(f"{name} after step {step}\n{coco.table(scores[name])}")
        self._monitor.scalars(step, flat(scores))
        self._monitor.page()
        self._monitor.flush()  # what is recorded is not scored again
        forgotten = self._checkpoints.record(step, next(iter(scores.values())), self._scored)
        if forgotten:
            parallel.say(f"{forgotten} scores on another val are forgotten")

    def ends_training(self, step: int) -> str:
        """Why training is to end after `step`; empty where it is to go on.

        It depends on the scores on disk alone, so a run that is started again decides the same.
        """
        patience = self._config.eval.patience
        scores = self._checkpoints.scores(self._scored)
        since = without_gain(scores, step)
        if not patience or since < patience:
            return ""
        best = best_step(scores, step)
        return (
            f"{since} evaluations in a row found no AP above {scores[best]:.3f}, that of step "
            f"{best} (config.eval.patience = {patience})"
        )


def describe(config: Any, dataset: Dataset) -> str:
    """What scores are on, in words; scores with different texts cannot be compared."""
    which = "the teacher" if config.eval.weights == "teacher" else "the student"
    long, short = config.data.val.scale
    part = f"the first {config.eval.images} of " if config.eval.images else ""
    return f"{which} at scale {long}, {short} on {part}{agreement.labels_of(dataset)}"


def best_step(scores: Mapping[int, float], step: float = math.inf) -> int:
    """The first of the steps up to `step` with the highest AP."""
    return max((s for s in sorted(scores) if s <= step), key=scores.__getitem__)


def without_gain(scores: Mapping[int, float], step: int) -> int:
    """How many evaluations up to `step` have passed since the best AP; an equal one is no better.

    An AP of -1 is none: nothing is there to be found.

    Args:
      scores: AP by step.
      step: later scores, of a run that has gone back to an older checkpoint, do not count.
    """
    past = [s for s in scores if s <= step and scores[s] >= 0]
    best = best_step(scores, step) if past else 0
    return sum(s > best for s in past)


def flat(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The twelve COCO numbers of each set of weights, by the names they are logged under."""
    return {f"val_{name}/{key}": found[key] for name, found in scores.items() for key in coco.KEYS}
