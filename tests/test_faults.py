"""What can go wrong with a run, done to it for real: kills, full disks, bad pictures, NaN."""

import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mixtrain_jax import config as configs
from mixtrain_jax import train
from mixtrain_jax.data import batches, records
from mixtrain_jax.runtime import checkpoint, files, signals
from mixtrain_jax.runtime.errors import BAD_INPUT, UserError
from tests import tiny

STEPS = 40
OFTEN = dict(steps=STEPS, checkpoint__every=1, log__every=1)


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """The workdir of a run that nothing happened to, with a checkpoint after every step."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert tiny.run(tiny.get_config(shapes, **OFTEN, checkpoint__keep=1000), workdir) == 0
    return workdir


def assert_as_whole(whole, workdir, step):
    """A checkpoint is bit by bit the one of the run that nothing happened to."""
    ours, theirs = tiny.saved(workdir, step), tiny.saved(whole, step)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=f"{name}, step {step}")


def steps_on_disk(workdir):
    """The finished checkpoints, ascending."""
    return checkpoint._steps(workdir / "checkpoints")


def kill_often(shapes, workdir, most, seed):
    """Starts a run again and again, killed at random moments, until it is done or often enough.

    Returns:
      how many times it was killed.
    """
    rng = random.Random(seed)
    newest = 0
    for kills in range(most):
        running = tiny.Command("train", shapes, workdir, **OFTEN)
        if rng.random() < 0.9:  # the others die while they start
            running.wait_for("\nstep ")
            time.sleep(rng.uniform(0, 1))
        else:
            time.sleep(rng.uniform(0, 8))
        running.kill()
        if (workdir / "checkpoints").exists() and (steps := steps_on_disk(workdir)):
            assert steps[-1] >= newest, "a finished checkpoint is gone"
            newest = steps[-1]
            assert checkpoint.load_weights(workdir)[1]["step"] == newest
        if newest == STEPS:
            return kills + 1
    return most


def test_a_run_killed_at_random_moments_goes_on_as_if_nothing_had_been(shapes, whole, tmp_path):
    assert kill_often(shapes, tmp_path / "run", most=2, seed=0) >= 1
    assert tiny.run(tiny.get_config(shapes, **OFTEN), tmp_path / "run") == 0
    assert_as_whole(whole, tmp_path / "run", STEPS)
    ours, theirs = tiny.logged(tmp_path / "run"), tiny.logged(whole)
    assert ours == {step: theirs[step] for step in ours}


@pytest.mark.slow
def test_fifty_kills(shapes, whole, tmp_path):
    kills = seed = 0
    while kills < 50:
        seed += 1
        workdir = tmp_path / str(seed)
        kills += kill_often(shapes, workdir, most=5, seed=seed)
        assert tiny.Command("train", shapes, workdir, **OFTEN).codes() == [0]
        assert_as_whole(whole, workdir, STEPS)


def test_a_second_signal_ends_at_once_and_the_disk_is_whole(shapes, tmp_path):
    workdir = tmp_path / "run"
    running = tiny.Command("train", shapes, workdir, **OFTEN | {"steps": 1000})
    running.wait_for("\nstep    3/")  # so the first checkpoint is on disk
    os.kill(running.processes[0].pid, signal.SIGSTOP)  # so that both arrive in one step
    running.signal(signal.SIGTERM)
    running.signal(signal.SIGINT)
    os.kill(running.processes[0].pid, signal.SIGCONT)
    assert running.codes(seconds=20) == [signals.STOPPED]
    assert "asked to stop" not in running.said()
    _, meta = checkpoint.load_weights(workdir)
    assert meta["step"] == steps_on_disk(workdir)[-1]


def on_small_disk(shapes, size, script):
    """Runs a shell script with a disk of `size` mounted at $DISK, which only the script can see."""
    command = f"{sys.executable} -m mixtrain_jax.train --config=tests/tiny.py:{shapes}"
    command += f" --config.steps={STEPS} --config.checkpoint.every=1"
    script = f'mount -t tmpfs -o size={size} none "$DISK"; {script}'
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=configs.ROOT,
        env=os.environ | {"TRAIN": command},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_ends_training_in_one_line_with_the_last_checkpoint_whole(
    shapes, whole, tmp_path, monkeypatch
):
    monkeypatch.setenv("DISK", str(tmp_path))
    size = sum(f.stat().st_size for f in (whole / "checkpoints" / "1").rglob("*") if f.is_file())
    saved = tmp_path.with_name(f"{tmp_path.name}.copy")
    ended = on_small_disk(
        shapes,
        int(3.5 * size),
        '$TRAIN --workdir="$DISK/run" --config.checkpoint.keep=100; '
        f'code=$?; cp -r "$DISK/run" {shlex.quote(str(saved))}; exit $code',
    )
    assert ended.returncode == BAD_INPUT, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith("error: cannot write ") and "No space left on device" in errors[0]
    assert "Traceback" not in ended.stderr, ended.stderr
    _, meta = checkpoint.load_weights(saved)
    assert meta["step"] == steps_on_disk(saved)[-1] >= 1
    assert_as_whole(whole, saved, meta["step"])
    # Where there is room again, it goes on.
    assert tiny.run(tiny.get_config(shapes, **OFTEN), saved) == 0
    assert_as_whole(whole, saved, STEPS)


def test_a_workdir_that_cannot_be_written_is_one_line(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("DISK", str(tmp_path))
    ended = on_small_disk(
        shapes, 4096, 'mount -o remount,ro "$DISK"; exec $TRAIN --workdir="$DISK/run"'
    )
    assert ended.returncode == BAD_INPUT
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: cannot write ") and line.endswith("Read-only file system")


def test_json_on_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = files.epath.Path(tmp_path / "metrics.json")
    files.write_json(path, {"AP": 1})

    def full(self, content):
        pathlib.Path(self).write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*metrics.json: No space left on device"):
        files.write_json(path, {"AP": 2})
    assert json.loads(path.read_text()) == {"AP": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__fpn__channels": 16}, r"fpn.* is float32\[.*\] there and float32\[.*\] here"),
        ({"model__backbone__depth": 50}, "is of another model: student/backbone/"),
    ],
)
def test_going_on_with_another_model_is_refused(shapes, whole, changes, message):
    with pytest.raises(UserError, match=message):
        tiny.run(tiny.get_config(shapes, steps=STEPS, **changes), whole)


def test_going_on_with_other_classes_is_refused(shapes, whole, tmp_path):
    changes = {}
    for split in ("train", "val"):
        path = tmp_path / f"{split}.json"
        content = json.loads((shapes / "annotations" / f"{split}.json").read_text())
        content["categories"].append({"id": 99, "name": "heart"})
        path.write_text(json.dumps(content))
        changes[f"data__{split}__annotations"] = str(path)
    with pytest.raises(UserError, match="was trained with categories = .*; choose another workdir"):
        tiny.run(tiny.get_config(shapes, **changes), whole)


def test_more_steps_asked_go_on(shapes, tmp_path, capsys):
    assert tiny.run(tiny.get_config(shapes, steps=2), tmp_path) == 0
    assert tiny.run(tiny.get_config(shapes, steps=2), tmp_path) == 0
    assert "training is finished, 2 of 2 steps" in capsys.readouterr().out
    assert tiny.run(tiny.get_config(shapes, **OFTEN), tmp_path) == 0
    assert "going on after step 2" in capsys.readouterr().out
    assert sorted(tiny.logged(tmp_path)) == list(range(2, STEPS + 1))
    assert steps_on_disk(tmp_path)[-1] == STEPS


def test_a_corrupt_picture_in_the_middle_of_an_epoch_is_skipped(
    shapes, tmp_path, monkeypatch, capsys, caplog
):
    read = records.decode
    seen = []

    def damaged(content, size):
        seen.append(content)
        return read(content[: len(content) // 2] if content == seen[0] else content, size)

    monkeypatch.setattr(batches.records, "decode", damaged)
    config = tiny.get_config(shapes, steps=STEPS, data__max_bad_share=0.5)
    assert tiny.run(config, tmp_path) == 0
    assert "pictures could not be read and were skipped" in capsys.readouterr().out
    assert "skipping" in caplog.text
    assert all(np.isfinite(loss) for loss in tiny.logged(tmp_path).values())
    assert max(tiny.logged(tmp_path, "data/unreadable").values()) >= 1


def test_losses_that_are_not_finite_end_training(shapes, whole, tmp_path, monkeypatch):
    changes = dict(steps=STEPS, checkpoint__every=2, max_bad_steps=3)
    make = batches.train_batches
    spoilt = []

    def spoil(*arguments, **keywords):
        for number, batch in enumerate(make(*arguments, **keywords), 1):
            if number > 2:
                spoilt.append(batch.normal.index)
                image = np.full_like(batch.normal.image, np.nan)
                batch = batch.replace(normal=batch.normal.replace(image=image))
            yield batch

    monkeypatch.setattr(train.batches, "train_batches", spoil)
    with pytest.raises(UserError) as told:
        tiny.run(tiny.get_config(shapes, **changes), tmp_path)
    message = str(told.value)
    assert message.startswith("step 5 has a loss or gradient that is not finite")
    assert "number 3 in a row" in message
    assert "'loss': nan" in message and "normal/" in message
    images = json.loads((shapes / "annotations" / "train.json").read_text())["images"]
    for row in spoilt[2]:
        assert str(images[row]["id"]) in message.partition("images [")[2]
    assert_as_whole(whole, tmp_path, 2)
    for name, value in tiny.saved(tmp_path, 4).items():  # saved among the bad ones, weights good
        if name.startswith("student"):
            np.testing.assert_array_equal(value, tiny.saved(whole, 2)[name], err_msg=name)


def test_an_error_in_a_reading_thread_ends_training(shapes, tmp_path, monkeypatch):
    calls = []

    def fail(content, size):
        calls.append(size)
        if len(calls) > 20:
            raise MemoryError("no memory for a picture")
        return read(content, size)

    read = records.decode
    monkeypatch.setattr(batches.records, "decode", fail)
    with pytest.raises(MemoryError, match="no memory for a picture"):
        tiny.run(tiny.get_config(shapes, steps=STEPS), tmp_path)
