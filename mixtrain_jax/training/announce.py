"""What a run says of itself before its first step, and while it compiles.

Devices, parameters, the settled schedule, buckets with their padding, the memory that a step will
take against what is there, and doubts about the config.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from mixtrain_jax.config.resolve import describe
from mixtrain_jax.data.input import buckets
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.views.geometry import resized
from mixtrain_jax.errors import UserError
from mixtrain_jax.inspection import memory_estimate
from mixtrain_jax.runtime import parallel
from mixtrain_jax.runtime.machine import Machine
from mixtrain_jax.runtime.monitor import Monitor
from mixtrain_jax.runtime.signals import Stop
from mixtrain_jax.types import Batch, TrainState

LESS_MEMORY = (
    "set config.model.remat=True or config.accumulate=2 (or more), or lower config.batch_size or "
    "config.data.train.scale (all but remat need --allow_changes in a run that has begun)"
)


def announce_run(
    config: Any,
    train: Dataset,
    val: Dataset | None,
    shapes: TrainState,
    machine: Machine,
    workdir: epath.Path,
) -> None:
    """Says what is about to run; nothing is compiled yet.

    Args:
      config: the whole config, resolved.
      train: the training split.
      val: the split to evaluate on, if there is one.
      shapes: of the train state.
      machine: what it runs on.
      workdir: directory of the run.

    Raises:
      UserError: a step would take far more memory than there is.
    """
    parallel.say(train.report.text)
    parallel.say(val.report.text if val else "no val split (config.data.val): no evaluation")
    parallel.say(describe(config, train))
    parallel.say(f"  padding: {describe_padding(config, train)}")
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes.student))
    parallel.say(f"{machine}; {count / 1e6:.1f} million parameters")
    check_memory(config, machine)
    warn_dtype(config, machine)
    warn_patience(config, val)
    warn_fields_without_effect(config.mixtraining)
    warn_crowded_images(config, train)
    if val is not None:
        warn_other_scale(config, train, val)
    parallel.say(f"curves and pictures: tensorboard --logdir={workdir}")


def describe_padding(config: Any, train: Dataset) -> str:
    """Says for each bucket how often views are padded to it, and how much of it is padding.

    Before lone shapes join others, see `plan.Stream`.
    """
    sizes = [(int(height), int(width)) for height, width in config.data.train.buckets]
    all_views = buckets.Views(train.sizes, config.data.train)
    count, area = np.zeros(len(sizes)), np.zeros(len(sizes))
    for views, which in all_views.blocks():
        found = buckets.fitting(views, sizes)
        often = np.broadcast_to(all_views.counts[which, None], found.shape)[found >= 0]
        sides = views[found >= 0].prod(axis=-1)
        found = found[found >= 0]
        count += np.bincount(found, often, len(sizes))
        area += np.bincount(found, often * sides, len(sizes))
    told = [
        f"{height}x{width} {mine / count.sum():.0%} of views, "
        f"{1 - pixels / mine / (height * width):.0%} empty"
        for (height, width), mine, pixels in zip(sizes, count, area, strict=True)
        if mine
    ]
    return "; ".join(told)


def check_memory(config: Any, machine: Machine) -> None:
    """Estimates the memory of a step in the largest bucket against what is there.

    Raises:
      UserError: it is more than `config.max_memory` times what is there.
    """
    bucket = memory_estimate.largest(config.data.train.buckets)
    estimate = memory_estimate.of_training(config, bucket, machine.devices, machine.platform)
    line = f"a step in {bucket[0]}x{bucket[1]} takes about {estimate}"
    if machine.memory is None:
        parallel.say(f"memory of a device: {line}")
        return
    share = estimate.total / machine.memory
    there = f"{line}; {machine.memory / memory_estimate.GIB:.2f} GiB per device are free"
    if config.max_memory and share > config.max_memory:
        raise UserError(f"{there}: {LESS_MEMORY}; config.max_memory=0 tries it all the same")
    parallel.say(f"memory of a device: {there}")
    if share > memory_estimate.WARN:
        logging.warning("A step may not fit into the memory that is there: %s.", LESS_MEMORY)


def warn_dtype(config: Any, machine: Machine) -> None:
    """Warns where the devices have no units for the products that they are to compute."""
    if config.model.dtype == "bfloat16" and not machine.bfloat16:
        logging.warning(
            "These GPUs have no units for bfloat16: try config.model.dtype=float32, in a new run."
        )


def warn_patience(config: Any, val: Dataset | None) -> None:
    """Warns where training cannot stop early although it is asked to."""
    asked, every = config.eval.patience, config.eval.every
    if asked and val is not None and not val.boxes.counts.any():
        logging.warning("config.eval.patience = %d has no effect: val has no objects.", asked)
    elif asked and (val is None or not every or (asked + 1) * every >= config.steps):
        logging.warning(
            "config.eval.patience = %d has no effect: in %d steps there are %d evaluations before "
            "the last; lower config.eval.every.",
            asked,
            config.steps,
            (config.steps - 1) // every if every and val is not None else 0,
        )


def warn_fields_without_effect(method: Any) -> None:
    """Warns of fields of `config.mixtraining` that do nothing beside the others."""
    if not method.enabled:
        return
    limits = [method.gt_score_threshold]
    limits += [method.normal_gt_score_threshold] if method.mend_normal else []
    least = min(limits) if method.mixed_augmentation else 0
    searched = method.must_agree or method.auto_agreement or method.auto_count
    doubts = {
        f"replace_score_threshold = {method.replace_score_threshold:g} is not above {least:g}, the "
        "rating at which boxes are left out: no box that stays is replaced": (
            method.replace_boxes
            and not method.auto_share
            and method.replace_score_threshold <= least
        ),
        "normal_gt_score_threshold needs mend_normal and mixed_augmentation": (
            method.normal_gt_score_threshold > 0
            and not (method.mend_normal and method.mixed_augmentation)
        ),
        "must_agree, auto_agreement and auto_count choose pseudo boxes, and without replace_boxes "
        "and add_missing none is a target": (
            searched and not (method.replace_boxes or method.add_missing)
        ),
    }
    for doubt, is_so in doubts.items():
        if is_so:
            logging.warning("config.mixtraining: %s.", doubt)


def warn_crowded_images(config: Any, train: Dataset) -> None:
    """Warns where images have more boxes to train on than the detector may find."""
    most = config.model.roi_head.detections
    count = int((train.boxes.counts > most).sum())
    if count:
        logging.warning(
            "%d images of train have more boxes than config.model.roi_head.detections = %d, and no "
            "more are found in one; `mixtrain_jax.check --write` chooses what suits these images.",
            count,
            most,
        )


def warn_other_scale(config: Any, train: Dataset, val: Dataset) -> None:
    """Warns where val images are seen at a scale that training never shows."""
    long, low, high = config.data.train.scale
    shown = np.concatenate([resized(train.sizes, long, short).min(axis=1) for short in (low, high)])
    seen = float(np.median(resized(val.sizes, *config.data.val.scale).min(axis=1)))
    if not shown.min() - 1 <= seen <= shown.max() + 1:
        logging.warning(
            "Val images are seen with a short side of %d pixels, training images with %d to %d: "
            "scores will suffer; see config.data.val.scale and config.data.train.scale.",
            seen,
            shown.min(),
            shown.max(),
        )


class Compiling:
    """Tells of each compilation of the step: when it begins, and how long it took."""

    def __init__(self, monitor: Monitor, stop: Stop):
        """Knows of no compiled step yet.

        Args:
          monitor: whose rates compilations are left out of.
          stop: a signal that comes during a compilation ends the process at once.
        """
        self._monitor = monitor
        self._stop = stop
        self._seen: set[tuple[tuple[int, ...], bool]] = set()

    @contextlib.contextmanager
    def of(self, batch: Batch) -> Iterator[None]:
        """Around a step: tells of the compilation that a batch of a new shape will need."""
        shape, mixed = batch.normal.image.shape, batch.weak is not None
        if (shape, mixed) in self._seen:
            yield
            return
        self._seen.add((shape, mixed))
        kind = "MixTraining step" if mixed else "step"
        last_words = "asked to stop while compiling: ended at once, start again to resume"
        with (
            self._monitor.pause(),
            parallel.timed(f"compiling {kind} for {shape[1]}x{shape[2]}"),
            self._stop.ends_at_once(last_words),
        ):
            yield
