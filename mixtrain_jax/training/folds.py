"""The audit of a run's labels, and its detectors.

They are the run's own, or one for each part of the images, trained without it.
"""

from typing import Any

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from mixtrain_jax.auditing import own
from mixtrain_jax.config import load
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.sources.load import load_dataset, read_annotations, share_images
from mixtrain_jax.errors import STOPPED, UserError, memory_in_one_line
from mixtrain_jax.evaluation.audit import Judge, audit, by_own, read_calibration
from mixtrain_jax.runtime import checkpoint, parallel, signals, storage, watch
from mixtrain_jax.runtime.lock import hold
from mixtrain_jax.training import loop
from mixtrain_jax.training.announce import LESS_MEMORY
from mixtrain_jax.training.restart import OtherRun
from mixtrain_jax.training.run import stoppable
from mixtrain_jax.training.warm_start import lacks_weights


def audit_split(
    asked: ConfigDict,
    source: str,
    workdir: epath.Path,
    output: epath.Path,
    *,
    split: str,
    folds: int,
    threshold: float,
    dump: bool = False,
    calibration: str = "",
    in_program: bool = False,
) -> dict[str, Any] | None:
    """Audits the labels of a split, and writes what it finds.

    Args:
      asked: the run's config.
      source: the run's own detector: the workdir or one of its checkpoints.
      workdir: the run's directory.
      output: where audit.json, corrected.json and the page go.
      split: "train" or "val".
      folds: how many detectors to train for the audit; 0 takes the run's own.
      threshold: findings from this score on are applied in corrected.json.
      dump: write looks.npz, too: all that the detectors see.
      calibration: as in `evaluation.audit.audit`.
      in_program: no signal ends the process while folds are trained.

    Returns:
      The contents of audit.json; None where training was asked to stop.

    Raises:
      UserError: several processes take part, the folds make no sense, their detectors are of
        other labels or another config, or the calibration is none.
    """
    if (count := parallel.host()[1]) > 1:
        raise UserError(f"the audit runs in one process, and {count} take part; start it alone")
    if folds < 0 or folds == 1:
        raise UserError(f"--folds={folds}: choose 2 or more, or 0 for the run's own detector")
    if folds and split != "train":
        raise UserError(f"--folds={folds}: no detector is trained on {split}; leave --folds out")
    read_calibration(calibration)  # before anything is trained
    if folds and lacks_weights(asked) and (first := _first_weights(source)):
        raise UserError(
            f"config.init_from is empty, and this backbone does not learn from random weights (the "
            f"run began with {first}); name weights that have not seen these images"
        )
    dataset = load_dataset(asked.data, split)
    if by_own(calibration):
        own.check_enough(len(dataset.boxes.values))
    seen = "in sample" if split == "train" and not folds else "out of fold"
    if folds and started_on_the_same_images(asked):
        seen = "by its first weights"
        logging.warning(
            "config.init_from=%s was trained on these images, so the folds start from weights that "
            "have seen what they judge; --config.init_from=... names others",
            asked.init_from,
        )
    with stoppable(in_program) as stop:
        found = judges(asked, dataset, source, workdir, split, folds, stop)
    if found is None:
        return None
    watch.set_patience(0)  # what follows tells no steps
    return audit(
        asked,
        dataset,
        found,
        output,
        split=split,
        seen=seen,
        threshold=threshold,
        dump=dump,
        calibration=calibration,
    )


def started_on_the_same_images(asked: ConfigDict) -> bool:
    """Whether the weights that a run starts from were trained on images of its train split.

    False where it cannot be told: weights of no run, and weights or labels that are gone.
    """
    if not asked.init_from:
        return False
    try:
        _, meta = checkpoint.load_weights(asked.init_from)
        data = meta.get("config", {}).get("data")
        return data is not None and share_images(ConfigDict(data), asked.data)
    except UserError:
        return False


def _first_weights(source: str) -> str | None:
    """The weights that a run started from; None where it started from random ones."""
    _, meta = checkpoint.load_weights(source)
    return meta.get("config", {}).get("init_from") or None


def judges(
    asked: ConfigDict,
    dataset: Dataset,
    source: str,
    workdir: epath.Path,
    split: str,
    folds: int,
    stop: signals.Stop,
) -> list[Judge] | None:
    """Returns the detectors that are to look at a data set, trained first where there are folds.

    Training is that of the run in all but the images left out, with as many steps; each detector is
    in `workdir`/folds/K-k, where a second start resumes it.

    Args:
      asked: the run's config.
      dataset: the labels to audit.
      source: the run's own detector.
      workdir: the run's directory.
      split: of the data set, "train" or "val".
      folds: how many detectors to train; 0 takes the run's own.
      stop: tells when to save and end early.

    Returns:
      The detectors with the rows each looks at; None where training was asked to stop.
    """
    if not folds:
        return [Judge(source, np.arange(len(dataset)))]
    found = []
    epoch = asked.images_per_epoch or len(dataset)  # of the run, so that a fold has its steps
    for k in range(folds):
        own = workdir / "folds" / f"{folds}-{k}"
        storage.make_directory(own)
        left_out = {"data.train.leave_out": f"({k}, {folds})", "images_per_epoch": str(epoch)}
        if k:  # what the detectors before hold is used again, though it does not count as free
            left_out["max_memory"] = "0"
        config = load.override_all(asked, left_out)
        with hold(own), memory_in_one_line(LESS_MEMORY):
            try:
                # Whether it may start without pretrained weights was decided when the run started.
                ended = loop.train(config, own, stop, from_scratch=True)
            except OtherRun as problem:
                raise UserError(f"{problem.what}; delete {own} to train it anew") from None
        if ended == STOPPED:
            return None
        seen = read_annotations(config.data, "train")
        unseen = np.flatnonzero(~np.isin(dataset.image_ids, seen.image_ids))
        found.append(Judge(str(own), unseen))
    return found
