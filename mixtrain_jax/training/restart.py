"""A run started again with other fields: which may differ, and what is said of it."""

from typing import Any

from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from mixtrain_jax.config import load, saved, schema
from mixtrain_jax.config.compare import Difference, differences
from mixtrain_jax.data.input import buckets
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import parallel, storage
from mixtrain_jax.runtime.orbax_files import finished_steps
from mixtrain_jax.training.optimizer import make_schedule


class OtherRun(UserError):
    """A workdir holds another run than the one that is asked for.

    Attributes:
      what: where, and in what they differ.
    """

    def __init__(self, what: str):
        super().__init__(
            f"{what}; choose another workdir, or add --allow_changes to resume it all the same"
        )
        self.what = what


def check(
    workdir: epath.Path,
    asked: ConfigDict,
    resolved: FrozenConfigDict,
    step: int | None,
    allow_changes: bool,
    labels: str = "",
) -> None:
    """Compares a run with what its workdir says it was.

    Fields that make it another run are refused; a changed schedule is told with the learning rates
    before and after; the rest is told.

    Args:
      workdir: directory of the run.
      asked: the config as given now.
      resolved: the config as used now.
      step: steps taken so far; None: none are saved, and nothing is compared.
      allow_changes: take what would be refused.
      labels: what it is trained on, as `agreement.labels_of` says it; "" is not compared.

    Raises:
      OtherRun: data, model, method or the like differ; all such fields are named.
    """
    if step is None or not storage.exists(workdir / saved.NAME):
        return
    before = saved.read(workdir)
    given = {difference.name for difference in differences(before.asked, asked)}
    found = differences(before.resolved, resolved)
    refused = [difference for difference in found if difference.kind == schema.IDENTITY]
    relabelled = ""
    if labels and before.labels and labels != before.labels:
        relabelled = f"its labels: {before.labels} before, {labels} now"
    if (refused or relabelled) and not allow_changes:
        what = ", ".join(filter(None, (_listed(refused, given), relabelled)))
        raise OtherRun(f"{workdir} holds another run: {what}")
    if found or relabelled:
        what = ", ".join(filter(None, (_listed(found, given), relabelled)))
        parallel.say(f"{workdir}: changed since the last start: {what}")
    if any(difference.kind == schema.SCHEDULE for difference in found):
        rates = [_rate(config, step) for config in (before.resolved, resolved)]
        parallel.say(
            f"  learning rate at step {step + 1}: {rates[0]:.4g} before, {rates[1]:.4g} now"
        )


def with_chosen_buckets(workdir: epath.Path, asked: ConfigDict, train: Dataset) -> ConfigDict:
    """`asked` with the training buckets that the run in the workdir chose, if it left them open.

    A longer run may choose other ones, which would change the order of its images.
    """
    started = finished_steps(workdir / "checkpoints") and storage.exists(workdir / saved.NAME)
    if asked.data.train.buckets or not started:
        return asked
    before = saved.read(workdir)
    same_scale = tuple(before.asked.data.train.scale) == tuple(asked.data.train.scale)
    if before.asked.data.train.buckets or not same_scale:
        return asked
    chosen = load.override_all(
        asked, {"data.train.buckets": repr(tuple(before.resolved.data.train.buckets))}
    )
    try:
        buckets.for_training(train.sizes, chosen.data.train, 1)
    except UserError:  # other images: it is another run in any case
        return asked
    return chosen


def _listed(found: list[Difference], given: set[str]) -> str:
    return ", ".join(
        str(each) if each.name in given else f"{each} (follows from other fields, data or devices)"
        for each in found
    )


def _rate(config: Any, step: int) -> float:
    return float(make_schedule(config.optimizer, config.steps)(step))
