"""What can go wrong with a run, done to it for real: kills, full disks, bad pictures, NaN."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from mixtrain_jax.config import load as configs
from mixtrain_jax.data.input import batches
from mixtrain_jax.data.sources import image_files
from mixtrain_jax.errors import BAD_INPUT, STOPPED, UserError
from mixtrain_jax.runtime import checkpoint, storage
from mixtrain_jax.training import loop
from tests import harness, tiny

STEPS = 16
OFTEN = dict(steps=STEPS, checkpoint__every=1, log__every=1)


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """The workdir of a run that nothing happened to, with a checkpoint after every step."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert harness.run(tiny.get_config(shapes, **OFTEN, checkpoint__keep=1000), workdir) == 0
    return workdir


def content(workdir):
    """The names in a workdir, and what its config and metrics hold."""
    names = sorted(os.fspath(path.relative_to(workdir)) for path in workdir.rglob("*"))
    return names, *[(workdir / name).read_text() for name in ("config.json", "metrics.jsonl")]


def kill(shapes, workdir, moment):
    """Starts a run and kills it at a moment; what is on disk is whole, and no step is lost.

    Args:
      moment: a function of the running command and its workdir that returns when it has come.

    Returns:
      the newest step on disk.
    """
    before = newest(workdir)
    running = harness.Command("train", shapes, workdir, **OFTEN)
    moment(running, workdir)
    running.kill()
    after = newest(workdir)
    assert after >= before, "a finished checkpoint is gone"
    if after:
        assert checkpoint.load_weights(workdir)[1]["step"] == after
    return after


def newest(workdir):
    """The newest finished checkpoint's step; 0 without any."""
    folder = workdir / "checkpoints"
    return max(harness.steps_on_disk(workdir), default=0) if folder.exists() else 0


def while_starting(running, workdir):
    """Before the first step, while the run reads and compiles."""
    running.wait_for("training:")


def while_saving(running, workdir):
    """A checkpoint is being written: its directory still has its temporary name."""
    running.wait_until(lambda: list((workdir / "checkpoints").glob("*tmp*")), "a save")


def between_saves(running, workdir):
    """A few steps later, at no moment in particular."""
    running.wait_for(f"\nstep {newest(workdir) + 4:2}/")


def test_a_run_killed_at_three_moments_resumes_as_if_nothing_had_been(shapes, whole, tmp_path):
    for moment in (while_starting, while_saving, between_saves):
        kill(shapes, tmp_path / "run", moment)
    assert harness.run(tiny.get_config(shapes, **OFTEN), tmp_path / "run") == 0
    harness.assert_as_whole(whole, tmp_path / "run", STEPS)
    ours, theirs = harness.logged(tmp_path / "run"), harness.logged(whole)
    assert ours == {step: theirs[step] for step in ours}


def test_a_second_signal_ends_at_once_and_the_disk_is_whole(shapes, tmp_path):
    workdir = tmp_path / "run"
    running = harness.Command("train", shapes, workdir, **OFTEN | {"steps": 1000})
    running.wait_for("\nstep    3/")  # so the first checkpoint is on disk
    os.kill(running.processes[0].pid, signal.SIGSTOP)  # so that both arrive in one step
    running.signal(signal.SIGTERM)
    running.signal(signal.SIGINT)
    os.kill(running.processes[0].pid, signal.SIGCONT)
    assert running.codes(seconds=120) == [STOPPED]
    assert "asked to stop" not in running.said()
    _, meta = checkpoint.load_weights(workdir)
    assert meta["step"] == harness.steps_on_disk(workdir)[-1]


def on_small_disk(shapes, size, script):
    """Runs a shell script with a disk of `size` mounted at $DISK, which only the script can see."""
    command = f"{sys.executable} -m mixtrain_jax.train --config=tests/tiny.py:{shapes}"
    command += f" --config.steps={STEPS} --config.checkpoint.every=1"
    script = f'mount -t tmpfs -o size={size} none "$DISK"; {script}'
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=configs.ROOT,
        env=os.environ | {"TRAIN": command, "JAX_NUM_CPU_DEVICES": "1"},  # as runs in this process
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
    assert meta["step"] == harness.steps_on_disk(saved)[-1] >= 1
    harness.assert_as_whole(whole, saved, meta["step"])
    # Where there is room again, it resumes.
    assert harness.run(tiny.get_config(shapes, **OFTEN), saved) == 0
    harness.assert_as_whole(whole, saved, STEPS)


def test_a_workdir_that_cannot_be_written_is_one_line(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("DISK", str(tmp_path))
    ended = on_small_disk(
        shapes, 4096, 'mount -o remount,ro "$DISK"; exec $TRAIN --workdir="$DISK/run"'
    )
    assert ended.returncode == BAD_INPUT
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: cannot write ") and line.endswith("Read-only file system")
    assert not list(tmp_path.iterdir())


def test_json_on_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = storage.epath.Path(tmp_path / "metrics.json")
    storage.write_json(path, {"AP": 1})

    def full(self, content):
        pathlib.Path(self).write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*metrics.json: No space left on device"):
        storage.write_json(path, {"AP": 2})
    assert json.loads(path.read_text()) == {"AP": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__fpn__channels": 16}, r"fpn.* is float32\[.*\] there and float32\[.*\] here"),
        ({"model__backbone__depth": 50}, "is of another model: student/backbone/"),
    ],
)
def test_resuming_with_another_model_is_refused(shapes, whole, changes, message):
    before = content(whole)
    with pytest.raises(UserError, match=message):
        harness.run(tiny.get_config(shapes, steps=STEPS, **changes), whole, allow_changes=True)
    assert content(whole) == before


def test_resuming_with_other_classes_is_refused(shapes, whole, tmp_path):
    changes = {}
    for split in ("train", "val"):
        path = tmp_path / f"{split}.json"
        labels = json.loads((shapes / "annotations" / f"{split}.json").read_text())
        labels["categories"].append({"id": 99, "name": "heart"})
        path.write_text(json.dumps(labels))
        changes[f"data__{split}__annotations"] = str(path)
    before = content(whole)
    with pytest.raises(UserError, match="was trained with categories = .*; choose another workdir"):
        harness.run(tiny.get_config(shapes, **changes), whole, allow_changes=True)
    assert content(whole) == before


def test_more_steps_asked_resume(shapes, tmp_path, capsys):
    assert harness.run(tiny.get_config(shapes, steps=2), tmp_path) == 0
    assert harness.run(tiny.get_config(shapes, steps=2), tmp_path) == 0
    assert "training is finished, 2 of 2 steps" in capsys.readouterr().out
    assert harness.run(tiny.get_config(shapes, **OFTEN), tmp_path) == 0
    assert "resuming after step 2" in capsys.readouterr().out
    assert sorted(harness.logged(tmp_path)) == list(range(2, STEPS + 1))
    assert harness.steps_on_disk(tmp_path)[-1] == STEPS


def test_a_corrupt_picture_in_the_middle_of_an_epoch_is_skipped(
    shapes, tmp_path, monkeypatch, capsys, caplog
):
    read = image_files.decode
    seen = []

    def damaged(content, size, reading):
        seen.append(content)
        part = content[: len(content) // 2] if content == seen[0] else content
        return read(part, size, reading)

    monkeypatch.setattr(image_files, "decode", damaged)
    config = tiny.get_config(shapes, steps=STEPS, data__max_bad_share=0.5)
    assert harness.run(config, tmp_path) == 0
    assert "1 images could not be read and were skipped" in capsys.readouterr().out
    assert "skipping" in caplog.text
    assert all(np.isfinite(loss) for loss in harness.logged(tmp_path).values())
    assert max(harness.logged(tmp_path, "data/unreadable").values()) >= 1


def spoilt_images(batch):
    """The batch with images that no file can hold: normalised, and not numbers."""
    image = np.full(batch.normal.image.shape, np.nan, np.float32)
    return batch.replace(normal=batch.normal.replace(image=image, shown=None))


def test_losses_that_are_not_finite_end_training(shapes, whole, tmp_path, monkeypatch):
    changes = dict(steps=STEPS, checkpoint__every=2, max_bad_steps=3)
    make = batches.train_batches
    spoilt = []

    def spoil(*arguments, **keywords):
        for number, batch in enumerate(make(*arguments, **keywords), 1):
            if number > 3:
                spoilt.append(batch.normal.index)
                batch = spoilt_images(batch)
            yield batch

    monkeypatch.setattr(loop.batches, "train_batches", spoil)
    with pytest.raises(UserError) as told:
        harness.run(tiny.get_config(shapes, **changes), tmp_path)
    message = str(told.value)
    assert message.startswith("step 6 has a loss or gradient that is not finite")
    assert "number 3 in a row" in message
    assert "checkpoints 4, 6 may hold wrecked weights and are renamed" in message
    assert "the newest good checkpoint is 2" in message
    assert "'loss': nan" in message and "normal/" in message
    images = json.loads((shapes / "annotations" / "train.json").read_text())["images"]
    for row in spoilt[2]:
        assert str(images[row]["id"]) in message.partition("images [")[2]
    harness.assert_as_whole(whole, tmp_path, 2)
    assert harness.steps_on_disk(tmp_path) == [2]
    assert {"suspect-4", "suspect-6"} <= set(storage.list_folder(tmp_path / "checkpoints"))


@pytest.mark.slow
def test_nan_losses_stop_training_with_the_images_named(shapes, tmp_path):
    config = tiny.get_config(shapes, max_bad_steps=2, optimizer__learning_rate=3e38)
    config.optimizer.warmup_steps = 0
    with pytest.raises(UserError, match=r"number 2 in a row.*"):
        harness.run(config, tmp_path)


@pytest.mark.slow
def test_bad_numbers_right_after_a_restart_leave_what_was_good(shapes, tmp_path, monkeypatch):
    config = tiny.get_config(shapes, **OFTEN, max_bad_steps=3)
    assert harness.run(config, tmp_path, harness.StopAfter(4)) == STOPPED
    make = batches.train_batches

    def spoil(*arguments, **keywords):
        for batch in make(*arguments, **keywords):
            yield spoilt_images(batch)

    monkeypatch.setattr(loop.batches, "train_batches", spoil)
    with pytest.raises(UserError, match="number 3 in a row.*the newest good checkpoint is 2"):
        harness.run(config, tmp_path)
    assert harness.steps_on_disk(tmp_path) == [1, 2]


@pytest.mark.slow
def test_a_rate_that_wrecks_the_weights_leaves_a_good_checkpoint(shapes, tmp_path):
    """The step that wrecks them is finite, and so is the loss that it reports."""
    changes = dict(steps=STEPS, checkpoint__every=1, checkpoint__keep=2, max_bad_steps=3)
    assert harness.run(tiny.get_config(shapes, **changes | {"steps": 3}), tmp_path) == 0
    before = harness.saved(tmp_path, 2)
    wild = tiny.get_config(shapes, **changes, optimizer__learning_rate=1e9)
    with pytest.raises(UserError, match="may hold wrecked weights and are renamed"):
        harness.run(wild, tmp_path, allow_changes=True)
    good = harness.steps_on_disk(tmp_path)
    assert good[-1] == 3  # step 4, the first at that rate, was finite
    notes = {"scores.json", checkpoint.PROVEN}
    assert all(name.startswith("suspect-") or name.isdecimal() or name in notes
               for name in storage.list_folder(tmp_path / "checkpoints"))  # fmt: skip
    newest = harness.saved(tmp_path, good[-1])
    assert max(np.abs(value).max() for value in newest.values()) < 100
    assert before.keys() == newest.keys()


def test_bad_numbers_in_the_last_step_are_no_good_end(shapes, tmp_path, monkeypatch):
    make = batches.train_batches

    def spoil(*arguments, **keywords):
        for number, batch in enumerate(make(*arguments, **keywords), 1):
            if number == STEPS:
                batch = spoilt_images(batch)
            yield batch

    monkeypatch.setattr(loop.batches, "train_batches", spoil)
    with pytest.raises(UserError, match=r"step 17 has a loss .*the newest good checkpoint is 12"):
        harness.run(tiny.get_config(shapes, steps=STEPS, checkpoint__every=4), tmp_path)
    assert harness.steps_on_disk(tmp_path)[-1] == 12


def test_a_run_stopped_at_its_end_is_proven_when_it_is_started_again(shapes, tmp_path, monkeypatch):
    """Else its last weights would pass for good ones, with code 0, and nobody would have looked."""
    config = tiny.get_config(shapes, steps=STEPS, checkpoint__every=4)
    workdir = tmp_path / "run"
    assert harness.run(config, workdir, harness.StopAfter(STEPS)) == STOPPED
    proven = workdir / "checkpoints" / checkpoint.PROVEN
    assert harness.steps_on_disk(workdir)[-1] == STEPS and not proven.exists()
    shutil.copytree(workdir, tmp_path / "bad")
    make = batches.train_batches
    monkeypatch.setattr(
        loop.batches, "train_batches", lambda *a, **k: map(spoilt_images, make(*a, **k))
    )
    with pytest.raises(UserError, match="step 17 has a loss .*the newest good checkpoint is 12"):
        harness.run(config, tmp_path / "bad")
    monkeypatch.setattr(loop.batches, "train_batches", make)
    assert harness.run(config, workdir) == 0
    assert json.loads(proven.read_text()) == STEPS
    monkeypatch.setattr(loop, "prove_last", lambda *_: pytest.fail("proven twice"))
    assert harness.run(config, workdir) == 0


def test_a_stop_before_the_first_step_trains_nothing(shapes, tmp_path, capsys):
    config = tiny.get_config(shapes, steps=STEPS)
    assert harness.run(config, tmp_path, harness.StopAfter(0)) == STOPPED
    assert "asked to stop before step 1" in capsys.readouterr().out
    assert harness.steps_on_disk(tmp_path) == []


def test_an_error_in_a_reading_thread_ends_training(shapes, tmp_path, monkeypatch):
    calls = []

    def fail(content, size, reading):
        calls.append(size)
        if len(calls) > 20:
            raise MemoryError("no memory for a picture")
        return read(content, size, reading)

    read = image_files.decode
    monkeypatch.setattr(image_files, "decode", fail)
    with pytest.raises(MemoryError, match="no memory for a picture"):
        harness.run(tiny.get_config(shapes, steps=STEPS), tmp_path)
