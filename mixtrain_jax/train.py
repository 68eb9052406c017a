"""Trains a detector.

python -m mixtrain_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

Started again with the same workdir, training goes on where it stopped; a finished run says so and
ends. The workdir gets the config as it was used, checkpoints, metrics (TensorBoard and
metrics.jsonl) and pictures.
"""

import argparse
import contextlib
import math
from collections.abc import Collection
from functools import partial
from typing import Any

import jax
from absl import logging
from etils import epath
from flax import traverse_util

from mixtrain_jax import cli
from mixtrain_jax import config as configs
from mixtrain_jax.data import batches, buckets, records, sources
from mixtrain_jax.evaluation import coco, detect, pictures
from mixtrain_jax.mixtraining import state as states
from mixtrain_jax.mixtraining.step import train_step
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import checkpoint, parallel, signals
from mixtrain_jax.runtime.errors import UserError
from mixtrain_jax.runtime.lock import lock
from mixtrain_jax.runtime.monitor import Monitor
from mixtrain_jax.types import Params, TrainState


def main(flags: argparse.Namespace) -> int:
    """Holds the workdir for this run, and trains; returns the exit code."""
    parallel.start(flags.coordinator, flags.processes, flags.process)
    with parallel.together(), parallel.on_first(lock(flags.workdir)), signals.catch() as stop:
        return train(flags.config, epath.Path(flags.workdir), stop)


def train(config: Any, workdir: epath.Path, stop: signals.Stop) -> int:
    """Trains as `config` says, from scratch, from weights or from the workdir's last checkpoint.

    Returns:
      0 when training is finished, `signals.STOPPED` when it was asked to stop and has saved.
    """
    train_set = sources.load(config.data, "train")
    val_set = sources.load(config.data, "val")
    sources.check_same_categories(train_set, val_set)
    complete(config, train_set)
    buckets.for_evaluation(val_set.sizes, config)  # fails now rather than after training
    parallel.say(f"{train_set.report}\n{val_set.report}")

    model = detector.build(config.model)
    optimizer = states.make_optimizer(config, config.steps)
    predict = detect.predictor(config)
    checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint.keep)
    meta = checkpoint_meta(config, train_set)

    fresh = partial(states.create, model, optimizer)
    shapes = jax.eval_shape(lambda: fresh(detector.init(model, config.seed)))
    restored = checkpoints.restore_latest(shapes, {"categories": meta["categories"]})
    start = 0 if restored is None else restored[1]
    host, hosts = parallel.host()
    faults = batches.Faults(config.data.max_bad_share)
    stream = parallel.prefetch(
        batches.train_batches(
            train_set, config, start_step=start, host_index=host, host_count=hosts, faults=faults
        )
    )
    first = fresh(initial_parameters(model, config)) if restored is None else restored[0]
    state: TrainState = parallel.place(first)

    step = parallel.map_step(
        partial(train_step, model=model, optimizer=optimizer, config=config, total=parallel.total)
    )
    rate = states.schedule(config.optimizer, config.steps)
    monitor = Monitor(
        workdir,
        config.steps,
        batch_size=config.batch_size,
        start_step=start,
        active=host == 0,
    )

    guard = BadSteps(config.max_bad_steps, train_set)
    names = [category["name"] for category in train_set.categories]

    def evaluate_at(done: int) -> None:
        with monitor.pause():
            scores = evaluate(predict, state, val_set, config)
        monitor.scalars(done, flat(scores))
        checkpoints.record(done, next(iter(scores.values())))

    with contextlib.closing(checkpoints), contextlib.closing(monitor):
        missed = due(start, config.eval.every, config.steps) and start not in checkpoints.scores()
        if start and missed:  # the run was ended between saving and evaluating
            evaluate_at(start)
        if start >= config.steps:
            parallel.say(
                f"{workdir}: training is finished, {start} of {config.steps} steps are done"
            )
            return 0
        if start:
            parallel.say(f"{workdir}: going on after step {start}")
        if host == 0:
            configs.save(config, workdir / "config.json")

        for done in range(start + 1, config.steps + 1):
            with monitor.waiting():
                batch, placed = next(stream)
            state, metrics, lesson = step(state, placed)
            guard.check(done, metrics, batch)

            if due(done, config.log.every, config.steps):
                metrics = {"loss": metrics["loss"], "lr": rate(done - 1)} | metrics
                monitor.log(done, jax.device_get(metrics) | {"data/unreadable": faults.count})
            if due(done, config.log.pictures_every, config.steps) or done == start + 1:
                monitor.picture(done, "train", pictures.of_batch(batch, lesson, names, config))
            stopping = checkpoints.reached_preemption(done) or (stop.requested and hosts == 1)
            evaluating = due(done, config.eval.every, config.steps)
            if stopping or evaluating or due(done, config.checkpoint.every, config.steps):
                with monitor.pause():
                    checkpoints.save(done, state, meta)
            if stopping:
                checkpoints.wait()
                parallel.say(
                    f"{workdir}: asked to stop, saved after step {done}; start again to go on"
                )
                return signals.STOPPED
            if evaluating:
                evaluate_at(done)

    if faults.count:
        print(f"{faults.count} of {faults.drawn} pictures could not be read and were skipped")
    return 0


def evaluate(predict, state: TrainState, val_set: records.Dataset, config) -> dict[str, dict]:
    """Scores the student, the teacher or both on the val split, and prints the tables."""
    chosen, scores = config.eval.weights, {}
    for name in ("student", "teacher") if chosen == "both" else (chosen,):
        scores[name], _ = detect.evaluate(predict, getattr(state, name), val_set, config)
        parallel.say(f"{name} after step {int(state.step)}\n{coco.table(scores[name])}")
    return scores


def due(step: int, every: int, last: int) -> bool:
    """Whether something done every so many steps, and after the last one, is due after `step`."""
    return step == last or (every > 0 and step % every == 0)


def flat(scores: dict[str, dict]) -> dict[str, float]:
    """The twelve COCO numbers of each set of weights, by the names they are logged under."""
    return {f"val_{name}/{key}": found[key] for name, found in scores.items() for key in coco.KEYS}


def complete(config: Any, dataset: records.Dataset) -> None:
    """Fills in what depends on the data (classes, steps) and checks what depends on the devices.

    Raises:
      UserError: fields that contradict each other or the data; the message names them.
    """
    classes = len(dataset.categories)
    if config.model.num_classes is None:
        config.model.num_classes = classes
    if config.model.num_classes != classes:
        raise UserError(
            f"config.model.num_classes is {config.model.num_classes}, but {dataset.name} has "
            f"{classes} categories; leave it unset or correct it"
        )
    if config.steps is None and config.epochs is None:
        raise UserError("set config.steps or config.epochs: how long to train")
    if config.steps_per_epoch is None:
        config.steps_per_epoch = math.ceil(len(dataset) / config.batch_size)
    if config.steps is None:
        config.steps = max(1, round(config.epochs * config.steps_per_epoch))
    halves = 2 if config.mixtraining.enabled else 1
    parallel.check_batch_size("batch_size", config.batch_size, halves * config.accumulate)
    parallel.check_batch_size("eval.batch_size", config.eval.batch_size)


def checkpoint_meta(config: Any, dataset: records.Dataset) -> dict:
    """What a checkpoint says about its model, for `evaluate`, `predict` and people."""
    return {"categories": dataset.categories, "config": config.to_dict()}


def initial_parameters(model: detector.Detector, config: Any) -> Params:
    """Fresh parameters, or those of `config.init_from` as far as they fit.

    Arrays the checkpoint lacks (all but the backbone's, in a classifier's) or has in another shape
    (the last layers, when the classes differ) stay as initialised, and are named in the log.

    Raises:
      UserError: there is no such checkpoint, or nothing in it fits.
    """
    params = detector.init(model, config.seed)
    if not config.init_from:
        return params
    ours = traverse_util.flatten_dict(params)
    theirs = traverse_util.flatten_dict(checkpoint.load_weights(config.init_from)[0])
    taken = {n: theirs[n] for n in ours if n in theirs and theirs[n].shape == ours[n].shape}
    if not taken:
        raise UserError(f"config.init_from={config.init_from}: none of its arrays fits this model")
    rest = ", ".join(outline(ours.keys() - taken.keys(), taken.keys()))
    parallel.say(
        f"took {len(taken)} of {len(ours)} arrays from {config.init_from}"
        + (f"; as initialised: {rest}" if rest else "")
    )
    return traverse_util.unflatten_dict(ours | taken)


def outline(names: Collection[tuple[str, ...]], others: Collection[tuple[str, ...]]) -> list[str]:
    """Names arrays by the largest parts of the model that hold none of the others."""
    mixed = {name[:length] for name in others for length in range(len(name) + 1)}
    wholes = {
        next(name[:length] for length in range(len(name) + 1) if name[:length] not in mixed)
        for name in names
    }
    return sorted("/".join(whole) for whole in wholes)


class BadSteps:
    """Watches for losses that are not finite, one step behind so that devices never wait for it."""

    def __init__(self, limit: int, dataset: records.Dataset):
        self.limit = limit
        self.dataset = dataset
        self.row = 0
        self.waiting: list = []

    def check(self, step: int, metrics: dict, batch: Any) -> None:
        """Looks at the step before this one.

        Raises:
          UserError: too many bad steps in a row.
        """
        previous, self.waiting = self.waiting, [(step, metrics, batch)]
        for done, found, seen in previous:
            if not float(found["update/bad"]):
                self.row = 0
                continue
            self.row += 1
            losses = {
                name: float(value)
                for name, value in found.items()
                if name == "loss" or name.startswith(("normal/", "mixed/"))
            }
            ids = [
                int(self.dataset.image_ids[row])
                for view in (seen.normal, seen.strong)
                if view is not None
                for row in view.index
            ]
            message = (
                f"step {done} has a loss or gradient that is not finite: {losses}, images {ids}"
            )
            logging.warning("%s; the step is left out", message)
            if self.row >= self.limit:
                raise UserError(
                    f"{message}; it is number {self.row} in a row, so training stops; the last "
                    "checkpoint is good: lower config.optimizer.learning_rate or look at the images"
                )


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="directory of this run")
    cli.add_processes(parser)
    return parser


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    cli.run(main, parse())
