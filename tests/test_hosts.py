"""Several processes of which one is wrong, gone or stuck: what the others say, and that all end."""

import json
import os
import shutil
import signal
import time

import pytest

from mixtrain_jax.errors import BAD_INPUT, LOST, STALLED
from mixtrain_jax.runtime import checkpoint
from tests import harness
from tests.machines import Machines

pytestmark = pytest.mark.multidevice

# Devices, batch and steps are those of tests/test_processes.py: the same program is compiled once.
CHANGES = dict(batch_size=8, steps=1000, log__every=1, checkpoint__every=1, checkpoint__keep=1)
LONGEST = 60  # seconds in which all have to end


def pair(shapes, workdir, each=None, **changes):
    """Two processes with two devices each."""
    return harness.Command(
        "train", shapes, workdir, processes=2, devices=2, each=each, **CHANGES | changes
    )


def errors(run, process):
    return [line for line in run.said(process).splitlines() if line.startswith("error: ")]


def own_images(shapes, folder, change):
    """A flag for a copy of the training images, of which one host gets to see a changed one."""
    shutil.copytree(shapes / "train", folder)
    for path in sorted(folder.iterdir()):
        change(path)
    return f"--config.data.train.images={folder}"


def assert_newest_is_whole(workdir):
    assert checkpoint.load_weights(workdir)[1]["step"] == harness.steps_on_disk(workdir)[-1]


def test_images_that_one_host_cannot_read_end_all_with_the_same_line(shapes, tmp_path):
    damaged = own_images(shapes, tmp_path / "images", lambda path: path.write_bytes(b"none"))
    later = tmp_path / "whole"
    shutil.copytree(shapes / "train", later)
    link = tmp_path / "link"
    link.symlink_to(later)
    run = pair(
        shapes,
        tmp_path / "run",
        each=[[], [f"--config.data.train.images={link}"]],
        data__max_bad_share=0.2,
    )
    run.wait_for("\nstep    4/")  # more checkpoints than are kept, so there is something to prune
    link.unlink()
    link.symlink_to(damaged.partition("=")[2])
    assert run.codes(seconds=LONGEST) == [BAD_INPUT] * 2
    (theirs,), (ours,) = errors(run, 1), errors(run, 0)
    assert "images could not be read, more than config.data.max_bad_share = 0.2" in theirs
    assert ours == theirs.replace("error: ", "error: host 1 has ended: ")
    assert_newest_is_whole(tmp_path / "run")
    assert not [name for name in os.listdir(tmp_path / "run" / "checkpoints") if "damaged" in name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--config.seed=1"], "host 1 differs from host 0 in config.seed: 1 there, 0 on host 0"),
        (
            ["--config.optimizer.learning_rate=0.1"],
            "host 1 differs from host 0 in config.optimizer.learning_rate: 0.1 there, 0.001",
        ),
    ],
)
def test_hosts_with_other_flags_are_refused(shapes, tmp_path, flags, told):
    run = pair(shapes, tmp_path / "run", each=[[], flags])
    assert run.codes(seconds=300) == [BAD_INPUT] * 2
    for process in range(2):
        (line,) = errors(run, process)
        assert line.startswith(f"error: {told}")
    assert harness.steps_on_disk(tmp_path / "run") == []


@pytest.mark.slow
def test_hosts_with_other_data_are_refused(shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "train.json").read_text())
    content["annotations"].pop()
    (tmp_path / "train.json").write_text(json.dumps(content))
    flag = f"--config.data.train.annotations={tmp_path / 'train.json'}"
    run = pair(shapes, tmp_path / "run", each=[[], [flag]])
    assert run.codes(seconds=300) == [BAD_INPUT] * 2
    assert errors(run, 0)[0].startswith("error: host 1 differs from host 0 in the boxes of train: ")


def test_a_workdir_that_is_not_shared_is_found_out_at_once(shapes, tmp_path):
    run = pair(shapes, tmp_path / "run", each=[[], [f"--workdir={tmp_path / 'mine'}"]])
    assert run.codes(seconds=300) == [BAD_INPUT] * 2
    for process in range(2):
        (line,) = errors(run, process)
        assert "is not shared: host 1 does not see there what host 0 has written" in line
    assert not (tmp_path / "mine").exists() and not (tmp_path / "run" / "lock").exists()


@pytest.mark.slow
def test_a_stopped_process_is_named_with_its_last_step(shapes, tmp_path):
    run = pair(shapes, tmp_path / "run")
    run.wait_for("\nstep    3/")
    run.signal(signal.SIGSTOP, process=1)
    start = time.monotonic()
    assert run.processes[0].wait(LONGEST + 20) == LOST
    assert time.monotonic() - start < LONGEST
    (line,) = errors(run, 0)
    assert "error: host 1 (" in line and "has said nothing for 40 s, its last step is " in line
    run.signal(signal.SIGCONT, process=1)
    assert run.codes(seconds=2 * LONGEST)[1] in (LOST, -signal.SIGABRT)
    assert_newest_is_whole(tmp_path / "run")


@pytest.mark.slow
def test_a_host_whose_reading_hangs_is_named_by_all(shapes, tmp_path):
    """One image is a pipe that nobody writes to."""
    folder = tmp_path / "images"
    shutil.copytree(shapes / "train", folder)
    run = pair(
        shapes,
        tmp_path / "run",
        each=[[], [f"--config.data.train.images={folder}"]],
        stall_minutes=1.5,
    )
    run.wait_for("\nstep    3/")
    for path in folder.iterdir():
        path.unlink()
        os.mkfifo(path)
    assert run.codes(seconds=240) == [STALLED] * 2
    for process in range(2):
        (line,) = errors(run, process)
        assert "error: host 1 (" in line and "is stuck, waiting for images at step " in line
        assert "for 1.5 minutes (config.stall_minutes)" in line
    assert_newest_is_whole(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_slow_reader_is_waited_for(shapes, tmp_path, split):
    """One host reads nothing for longer than XLA lets the devices of a CPU wait for each other."""
    folder = tmp_path / "images"
    shutil.copytree(shapes / split, folder)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    run = pair(
        shapes,
        tmp_path / "run",
        each=[[], [f"--config.data.{split}.images={folder}"]],
        steps=60,
    )
    run.wait_for("\nstep  3/")
    for path in kept:
        path.unlink()
        os.mkfifo(path)
    if split == "val":  # which is read after the last step
        run.wait_for("\nstep 60/")
    time.sleep(50)
    for path, content in kept.items():
        pipe = os.open(path, os.O_RDWR)  # lets those that read it already come to an end
        path.unlink()
        path.write_bytes(content)
        os.write(pipe, content)
        os.close(pipe)
    assert run.codes(seconds=300) == [0, 0]
    assert max(harness.logged(tmp_path / "run")) == 60


@pytest.mark.slow
def test_a_link_that_is_cut_ends_the_machines_on_both_sides(shapes, tmp_path):
    """Three machines with addresses of their own; one loses its link, and no packet says so."""
    changes = CHANGES | {"batch_size": 6, "eval__batch_size": 3}
    with Machines(3) as machines:
        run = harness.Command(
            "train", shapes, tmp_path / "run", processes=3, machines=machines, **changes
        )
        run.wait_for("\nstep    3/")
        machines.cut(2)
        codes = run.codes(seconds=2 * LONGEST)
    assert codes[0] == LOST and set(codes[1:]) <= {LOST, -signal.SIGABRT}
    (line,) = errors(run, 0)
    assert "error: host 2 (vm-3) has said nothing for 40 s, its last step is " in line
    assert_newest_is_whole(tmp_path / "run")
    steps = harness.steps_on_disk(tmp_path / "run")[-1] + 2
    changes |= {"steps": steps}
    with Machines(3) as machines:  # of the same names, so they know that the run before is dead
        again = harness.Command(
            "train", shapes, tmp_path / "run", processes=3, machines=machines, **changes
        )
        assert again.codes(seconds=300) == [0, 0, 0]


@pytest.mark.slow
def test_a_paused_machine_is_named_and_gives_up_when_it_goes_on(shapes, tmp_path):
    with Machines(2) as machines:
        run = harness.Command(
            "train", shapes, tmp_path / "run", processes=2, devices=2, machines=machines, **CHANGES
        )
        run.wait_for("\nstep    3/")
        run.signal(signal.SIGSTOP, process=1)
        assert run.processes[0].wait(LONGEST + 20) == LOST
        run.signal(signal.SIGCONT, process=1)
        assert run.codes(seconds=2 * LONGEST)[1] in (LOST, -signal.SIGABRT)
    (line,) = errors(run, 0)
    assert "error: host 1 (vm-2) has said nothing for 40 s, its last step is " in line
    assert_newest_is_whole(tmp_path / "run")
