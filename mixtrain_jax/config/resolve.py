"""From what was asked to what is used: fills in all that depends on the data and the machine.

`resolve` is pure: it takes a config, data sets and a number of devices, and returns a new frozen
config. Nothing changes a config after that.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from mixtrain_jax.config import load
from mixtrain_jax.data.input import buckets
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.sources.load import as_train_reads
from mixtrain_jax.errors import UserError

EVAL_BATCH = 8  # images at least, where the config names no number


def resolve(
    config: ConfigDict,
    *,
    train: Dataset | None = None,
    val: Dataset | None = None,
    classes: int | None = None,
    devices: int = 1,
) -> FrozenConfigDict:
    """Returns a config with nothing left open.

    Filled in are the number of classes, the white of deep images, the length of training in steps,
    the steps at which the learning rate falls and MixTraining starts, the images of a batch of an
    evaluation, and the buckets; of val for images nobody has seen yet where there is no val set.
    Without a training set, only what detection needs is filled in.

    Args:
      config: what was asked; it stays as it is.
      train: the training split.
      val: the split to evaluate on; None: there is none.
      classes: how many there are, where neither split is given.
      devices: of all hosts together.

    Raises:
      UserError: fields contradict each other, the data or the devices; the message names them.
    """
    load.check(config)
    result = ConfigDict(config.to_dict())
    result.model.num_classes = _classes(config, train or val, classes)
    if train is not None:
        result.update(_length(config, len(train)))
        result.data.white = as_train_reads(config.data, train).white
        result.data.train.buckets = buckets.for_training(
            train.sizes, config.data.train, result.steps
        )
        if config.mixtraining.enabled:
            _check_method(config.mixtraining, result.model.num_classes, config.data.augment.flip)
        parts = parts_a_device(config.mixtraining.enabled, config.accumulate)
        check_batch_size("batch_size", config.batch_size, devices, parts)
    if result.steps is not None:
        result.optimizer.drop_steps = _drop_steps(result)
        if config.mixtraining.start_step is None:
            result.mixtraining.start_step = round(config.mixtraining.start_share * result.steps)
    if val is not None:
        result.data.val.buckets = buckets.for_evaluation(val.sizes, config.data.val)
    else:
        result.data.val.buckets = buckets.of_any(config.data.val)
    if config.eval.batch_size is None:
        result.eval.batch_size = devices * -(-EVAL_BATCH // devices)
    elif val is not None:
        check_batch_size("eval.batch_size", config.eval.batch_size, devices)
    return FrozenConfigDict(result)


def describe(config: FrozenConfigDict, train: Dataset) -> str:
    """Says in a few lines what `resolve` chose for a training run."""
    images = config.steps * config.batch_size
    lines = [
        f"training: {config.steps} steps of {config.batch_size} images, "
        f"{images / config.images_per_epoch:.4g} epochs of {config.images_per_epoch} images "
        f"({images / len(train):.4g} times the training set)",
        f"  buckets (height, width): {_listed(config.data.train.buckets)}; "
        f"for evaluation {_listed(config.data.val.buckets)}",
    ]
    method, optimizer = config.mixtraining, config.optimizer
    if optimizer.schedule == "steps":
        lines.append(f"  learning rate {optimizer.learning_rate:g}, falls to a tenth after steps "
                     + ", ".join(map(str, optimizer.drop_steps)))  # fmt: skip
    else:
        lines.append(f"  learning rate {optimizer.learning_rate:g}, falls as a cosine to 0")
    if not method.enabled:
        lines.append("  plain training")
    elif method.start_step >= config.steps:
        lines.append(f"  plain training: MixTraining would start after step {method.start_step}")
    else:
        lines.append(f"  MixTraining from step {method.start_step + 1} on")
    return "\n".join(lines)


def _check_method(method: ConfigDict, classes: int, flip: float) -> None:
    """Raises UserError where switches of the method contradict each other or the data."""
    mirrored = method.must_agree or method.auto_agreement
    soft = method.label_share < 1 or method.auto_share
    wrong = {
        "set auto_count or auto_agreement, not both": method.auto_count and method.auto_agreement,
        "set label_share or auto_share, not both": method.label_share < 1 and method.auto_share,
        "auto_share needs rate_given_object=True": (
            method.auto_share and not method.rate_given_object
        ),
        "soft labels need soft_background=True": soft and not method.soft_background,
        "must_agree and auto_agreement ask about mirrored images, of which the detector has seen "
        "none with config.data.augment.flip=0": mirrored and not flip,
        "rate_given_object rates all boxes of one class 1; leave it False": (
            method.rate_given_object and classes == 1
        ),
    }
    for what, is_so in wrong.items():
        if is_so:
            raise UserError(f"config.mixtraining: {what}")


def _classes(config: ConfigDict, dataset: Dataset | None, classes: int | None) -> int:
    count = classes if dataset is None else len(dataset.categories)
    asked: int | None = config.model.num_classes
    if count is None:
        raise ValueError("neither a data set nor a number of classes is given")
    if asked is not None and asked != count:
        where = "the checkpoint" if dataset is None else dataset.name
        raise UserError(
            f"config.model.num_classes is {asked}, but {where} has {count} categories; "
            "leave it unset or correct it"
        )
    return count


def _length(config: ConfigDict, images: int) -> dict[str, Any]:
    """Steps, and images in an epoch: an epoch is as many images whatever the batch."""
    per_epoch = config.images_per_epoch or images
    if config.steps is None and config.epochs is None:
        raise UserError("set config.steps or config.epochs: how long to train")
    steps = config.steps or max(1, round(config.epochs * per_epoch / config.batch_size))
    return {"steps": steps, "images_per_epoch": per_epoch}


def _drop_steps(config: ConfigDict) -> tuple[int, ...]:
    optimizer = config.optimizer
    if optimizer.drop_steps is not None:
        return tuple(optimizer.drop_steps)
    return tuple(round(share * config.steps) for share in optimizer.drops)


def parts_a_device(mixing: bool, accumulate: int) -> int:
    """How many parts a device's share of a batch has, each of one image at least.

    Args:
      mixing: `config.mixtraining.enabled`: there are a normal and a mixed half.
      accumulate: `config.accumulate`.
    """
    return (2 if mixing else 1) * accumulate


def check_batch_size(name: str, size: int, devices: int, parts: int = 1) -> None:
    """Checks that a global batch can be shared by all devices in equal parts.

    Raises:
      UserError: `size` is no multiple of what is needed; the message names the config field.
    """
    unit = devices * parts
    if size % unit:
        fewer = [count for count in range(1, devices) if size % (count * parts) == 0]
        raise UserError(
            f"config.{name} is {size}: make it a multiple of {unit} "
            f"({devices} devices x {parts} parts a device)"
            + (f", or use {fewer[-1]} of the devices" if fewer else "")
        )


def _listed(sizes: Any) -> str:
    return ", ".join(f"{height}x{width}" for height, width in np.asarray(sizes).tolist())
