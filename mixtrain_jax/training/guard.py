"""The watch over losses that are not finite."""

from typing import Any

from absl import logging

from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime.checkpoint import Checkpoints
from mixtrain_jax.types import Batch


class BadNumbers(UserError):
    """Too many steps in a row whose loss, gradient or update is not finite."""


class BadSteps:
    """Watches for losses that are not finite, one step behind so that devices never wait for it.

    Attributes:
      limit: so many bad steps in a row end training.
      consecutive: bad steps in a row so far.
    """

    def __init__(self, limit: int, dataset: Dataset, checkpoints: Checkpoints):
        """Watches from the next step on.

        Args:
          limit: so many bad steps in a row end training.
          dataset: of which the images of a bad step are named.
          checkpoints: are told of the last step whose loss, gradient and update were finite. What
            was saved before it is good: its weights gave finite numbers. Of what was saved after it
            nobody knows, as a finite update may be one that wrecks the weights.
        """
        self.limit = limit
        self.consecutive = 0
        self._dataset = dataset
        self._checkpoints = checkpoints
        self._waiting: list[tuple[int, dict[str, Any], Batch]] = []

    def check(self, step: int, metrics: dict[str, Any], batch: Batch) -> None:
        """Looks at the step before this one, whose numbers are there by now.

        Args:
          step: number of the step that was just started.
          metrics: its metrics, perhaps still being computed.
          batch: what it trains on, named where its numbers are bad.

        Raises:
          BadNumbers: too many bad steps in a row.
        """
        self._look(self.limit)
        self._waiting = [(step, metrics, batch)]

    def finish(self) -> None:
        """Looks at the last step, after which none comes that could show that it was good.

        Raises:
          BadNumbers: it was bad.
        """
        self._look(1)

    def _look(self, limit: int) -> None:
        previous, self._waiting = self._waiting, []
        for done, found, seen in previous:
            if not float(found["update/bad"]):
                self.consecutive = 0
                self._checkpoints.proven = done
                continue
            self.consecutive += 1
            message = self._describe(done, found, seen)
            logging.warning("%s; the step is left out", message)
            if self.consecutive >= limit:
                raise BadNumbers(
                    f"{message}; it is number {self.consecutive} in a row, so training stops"
                )

    def _describe(self, step: int, metrics: dict[str, Any], batch: Batch) -> str:
        losses = {
            name: float(value)
            for name, value in metrics.items()
            if name == "loss" or name.startswith(("normal/", "mixed/"))
        }
        ids = [
            int(self._dataset.image_ids[row])
            for view in (batch.normal, batch.strong)
            if view is not None
            for row in view.index
        ]
        return f"step {step} has a loss or gradient that is not finite: {losses}, images {ids}"
