"""The training loop, from top to bottom: read, restore, step, tell, save, evaluate."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from mixtrain_jax.config import agreement, saved
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.input import batches, plan
from mixtrain_jax.data.input.read_errors import ReadErrors
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.sources.load import (
    as_train_reads,
    check_same_categories,
    has_split,
    load_dataset,
)
from mixtrain_jax.errors import STOPPED, UserError
from mixtrain_jax.models import detector
from mixtrain_jax.pages import fonts
from mixtrain_jax.runtime import checkpoint, hosts, machine, parallel, signals, watch
from mixtrain_jax.runtime.monitor import Monitor, due
from mixtrain_jax.training import announce, pictures, restart, run_page, warm_start
from mixtrain_jax.training.guard import BadNumbers, BadSteps
from mixtrain_jax.training.optimizer import make_optimizer, make_schedule
from mixtrain_jax.training.update import create_state, make_step
from mixtrain_jax.training.validation import Validation
from mixtrain_jax.types import Batch, TrainState


def train(
    asked: ConfigDict,
    workdir: epath.Path,
    stop: signals.Stop,
    origin: saved.Origin | None = None,
    allow_changes: bool = False,
    from_scratch: bool = False,
) -> int:
    """Trains as `asked` says, from scratch, from weights or from the workdir's last checkpoint.

    Args:
      asked: the config as the user gave it; it stays as it is.
      workdir: directory of this run.
      stop: tells when to save and end early.
      origin: where `asked` came from, for config.json.
      allow_changes: resume although fields differ that make this another run.
      from_scratch: train although the backbone is one for pretrained weights and has none.

    Returns:
      0 when training is finished, `errors.STOPPED` when it was asked to stop and has saved.

    Raises:
      UserError: data, config, workdir or weights are not as they have to be, the workdir holds
        another run, memory does not suffice, or numbers are not finite; the message says which.
    """
    train_set, val_set = load_splits(asked.data)
    bucketed = restart.with_chosen_buckets(workdir, asked, train_set)
    config = resolve(bucketed, train=train_set, val=val_set, devices=parallel.device_count())
    watch.set_patience(config.stall_minutes)

    # The model, and what the workdir has of this run.
    model = detector.build(config.model)
    optimizer = make_optimizer(config.optimizer, config.model.backbone, config.steps)
    rate = make_schedule(config.optimizer, config.steps)
    checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint.keep)
    labels = agreement.labels_of(train_set)
    restart.check(workdir, asked, config, checkpoints.newest_step(), allow_changes, labels)
    shapes = jax.eval_shape(lambda: create_state(optimizer, detector.init(model, config.seed)))
    announce.announce_run(config, train_set, val_set, shapes, machine.this_machine(), workdir)

    # The state: the last checkpoint's, or a first one.
    categories = train_set.categories
    host_state = checkpoints.restore_latest(shapes, {"categories": categories})
    if host_state is None:
        if not from_scratch:
            warm_start.require_weights(config)
        params = warm_start.initial_parameters(model, config, categories)
        host_state = create_state(optimizer, params)
    start = int(host_state.step)
    sets = [train_set] if val_set is None else [train_set, val_set]
    agreement.check(config, sets, start, host_state)
    state: TrainState = parallel.replicate(host_state)
    del host_state  # a whole state on the host

    # The stream of batches, the step, and what goes on beside it.
    read_errors = ReadErrors(config.data.max_bad_share, again=True)
    stream = own_batches(config, train_set, start, read_errors)
    map_over_devices = parallel.MAPPINGS[config.mapping]
    train_step = map_over_devices(make_step(config, model, optimizer, parallel.sum_over_devices))
    host, host_count = parallel.host()
    monitor = Monitor(
        workdir,
        config.steps,
        batch_size=config.batch_size,
        start_step=start,
        active=host == 0,
        page=partial(run_page.write, workdir, config, train_set),
    )
    compiling = announce.Compiling(monitor, stop)
    guard = BadSteps(config.max_bad_steps, train_set, checkpoints)
    validation = Validation(config, val_set, monitor, checkpoints)
    names = fonts.drawable([str(category["name"]) for category in categories])
    meta = {
        "categories": categories,
        "config": config.to_dict(),
        "exif": train_set.reading.exif,  # as its labels have it; other images are read alike
    }

    with checkpoints, contextlib.closing(monitor), bad_numbers_explained(checkpoints):
        # What a former start of this run left to do, if it came to an end.
        if start and validation.missed(start):  # the run was ended between saving and evaluating
            validation.run(start, state)
        reason = validation.ends_training(start)
        if start >= config.steps or reason:
            if not checkpoints.all_proven(start):  # the run was ended before it could be
                batch, sharded = next(stream)
                with compiling.of(batch):
                    prove_last(train_step, state, sharded, guard, batch, checkpoints)
            parallel.say(
                f"{workdir}: training is finished, {start} of {config.steps} steps are done"
                + (f": {reason}" if reason else "")
            )
            return 0
        checkpoints.reached_preemption(start)  # a signal from now on is counted from this step
        if any(hosts.from_all("asked to stop", stop.requested)):
            parallel.say(f"{workdir}: asked to stop before step {start + 1}")
            return STOPPED
        if start:
            parallel.say(f"{workdir}: resuming after step {start}")
        if host == 0:
            saved.save(workdir, asked, config, origin or saved.Origin(), labels)

        for step in range(start + 1, config.steps + 1):
            with monitor.waiting():
                batch, sharded = next(stream)
            watch.report(step)
            with compiling.of(batch):
                state, metrics, output = train_step(state, sharded)
            guard.check(step, metrics, batch)

            log_due = due(step, config.log.every, config.steps)
            if log_due or monitor.overdue():
                # What has no slash in its name is printed, in this order.
                told = jax.device_get({"loss": metrics["loss"], "lr": rate(step - 1)} | metrics)
                told["data/unreadable"] = read_errors.count
                if log_due:
                    monitor.log(step, told)
                else:
                    monitor.print_line(step, told)
            picture_due = due(step, config.log.pictures_every, config.steps) or step == start + 1
            if host == 0 and picture_due:
                drawn = pictures.of_batch(batch, output, names, config.data)
                monitor.picture(step, "train", drawn)
            stopping = checkpoints.reached_preemption(step) or (stop.requested and host_count == 1)
            if stopping or validation.due(step) or due(step, config.checkpoint.every, config.steps):
                monitor.flush()  # what a checkpoint holds has been told
                with monitor.pause():
                    checkpoints.save(step, state, meta)
            if stopping:
                checkpoints.wait()
                parallel.say(
                    f"{workdir}: asked to stop, saved after step {step}; start again to resume"
                )
                return STOPPED
            if validation.due(step):
                validation.run(step, state)
                if reason := validation.ends_training(step):
                    parallel.say(f"{workdir}: training ends after step {step}: {reason}")
                    break

        prove_last(train_step, state, sharded, guard, batch, checkpoints)
    watch.set_patience(0)

    if read_errors.count:
        parallel.say(
            f"{len(read_errors.reasons)} images could not be read and were skipped, "
            f"{read_errors.count} times in {read_errors.drawn} draws"
        )
    return 0


def load_splits(data: ConfigDict) -> tuple[Dataset, Dataset | None]:
    """Reads train and, where `config.data` describes one, val.

    Raises:
      UserError: one cannot be read, or they have other classes.
    """
    train_set = load_dataset(data, "train")
    of_val = as_train_reads(data, train_set)
    if not has_split(of_val, "val"):
        return train_set, None
    val_set = load_dataset(of_val, "val")
    check_same_categories(train_set, val_set)
    return train_set, val_set


def own_batches(
    config: Any, train_set: Dataset, start: int, read_errors: ReadErrors
) -> Iterator[tuple[Batch, Any]]:
    """This host's share of each batch from the step after `start` on, as it is and on the devices.

    A batch comes once all hosts have theirs.
    """
    host, host_count = parallel.host()
    own_share = batches.train_batches(
        train_set,
        config.data,
        seed=config.seed,
        batch_size=config.batch_size,
        first_mixed_step=plan.first_mixed_step(config.mixtraining),
        start_step=start,
        host_index=host,
        host_count=host_count,
        read_errors=read_errors,
    )
    return watch.wait_for_all(parallel.prefetch(own_share))


@contextlib.contextmanager
def bad_numbers_explained(checkpoints: checkpoint.Checkpoints) -> Iterator[None]:
    """Where bad steps end training, sets aside what they may have spoilt, and says what is left."""
    try:
        yield
    except BadNumbers as error:
        raise UserError(
            f"{error}; {checkpoints.set_suspects_aside()}; lower config.optimizer.learning_rate or "
            "look at the images"
        ) from error


def prove_last(
    train_step: Callable[..., Any],
    state: TrainState,
    sharded: Any,
    guard: BadSteps,
    batch: Batch,
    checkpoints: checkpoint.Checkpoints,
) -> None:
    """Takes one step more and keeps nothing of it but whether its numbers are finite.

    A checkpoint counts as good only once a later step has given finite numbers.

    Args:
      train_step: the compiled step.
      state: after the last step.
      sharded: a batch on the devices, whichever is at hand.
      guard: has looked at all steps before.
      batch: the same on the host, named where its numbers are bad.
      checkpoints: of the run.

    Raises:
      BadNumbers: the last weights give numbers that are not finite.
    """
    last = int(state.step)
    _, metrics, _ = train_step(state, sharded)
    guard.check(last + 1, metrics, batch)
    guard.finish()
    checkpoints.note_all_proven(last)
