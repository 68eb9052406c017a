"""Several processes with several devices each, over loopback: the real commands."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from mixtrain_jax.errors import BAD_INPUT, LOST, RESTARTABLE, STOPPED, UserError
from mixtrain_jax.evaluation.detect import read_weights
from mixtrain_jax.evaluation.evaluate import evaluate
from mixtrain_jax.runtime import checkpoint, orbax_files, parallel, processes
from mixtrain_jax.runtime.lock import lock
from tests import harness, tiny

pytestmark = pytest.mark.multidevice

PAIR = dict(processes=2, devices=2)
COMPARED = 4  # steps
CHANGES = dict(batch_size=8, steps=1000, log__every=1, checkpoint__every=2, checkpoint__keep=1000)


@pytest.fixture(scope="module")
def stopped(shapes, tmp_path_factory):
    """A run of two processes, one of which got SIGTERM: the run and its workdir."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    run = harness.Command("train", shapes, workdir, **PAIR, **CHANGES)
    run.wait_for(f"step {COMPARED + 1:4}/")
    run.signal(signal.SIGTERM, process=1)
    return run, workdir, run.codes()


@pytest.fixture(scope="module")
def alone(shapes, tmp_path_factory):
    """The workdir of the same training in one process on one device, stopped after a few steps."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    stop = harness.StopAfter(COMPARED)
    assert harness.run(tiny.get_config(shapes, **CHANGES), workdir, stop) == STOPPED
    return workdir


def test_a_signal_to_one_process_stops_all_after_the_same_step(stopped):
    run, workdir, codes = stopped
    assert codes == [STOPPED] * 2
    said = run.said().splitlines()
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.is_dir())
    assert step > COMPARED
    assert said[-1] == f"{workdir}: asked to stop, saved after step {step}; start again to resume"
    assert max(harness.logged(workdir)) == step
    assert "step" not in run.said(process=1)  # the first alone prints
    assert not (workdir / "lock").exists()


def test_two_processes_take_the_steps_of_one(stopped, alone):
    _, workdir, _ = stopped
    ours, theirs = harness.logged(workdir), harness.logged(alone)
    for step in range(1, COMPARED + 1):
        np.testing.assert_allclose(ours[step], theirs[step], rtol=1e-4, err_msg=f"step {step}")
    ours, theirs = harness.saved(workdir, COMPARED), harness.saved(alone, COMPARED)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = max(1e-3, np.abs(value).max())
        np.testing.assert_allclose(ours[name], value, atol=2e-4 * scale, err_msg=name)


def test_evaluation_in_two_processes_finds_what_one_finds(shapes, alone, tmp_path):
    pair = harness.Command(
        "evaluate", shapes, tmp_path / "run", f"--checkpoint={alone}", **PAIR, **CHANGES
    )
    config = tiny.get_config(shapes, **CHANGES)
    evaluate(config, read_weights(str(alone), "student"), tmp_path / "detections.json")
    assert pair.codes() == [0, 0], pair.said()
    harness.assert_same_detections(
        tmp_path / "detections.json", tmp_path / "run" / "detections.json"
    )
    assert "AP50" in pair.said() and "AP50" not in pair.said(process=1)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_when_a_process_is_killed_the_others_end(shapes, stopped, victim):
    _, workdir, _ = stopped
    run = harness.Command("train", shapes, workdir, **PAIR, **CHANGES)
    run.wait_for("resuming after step")
    run.wait_for("\nstep ")
    run.signal(signal.SIGKILL, process=victim)
    codes = run.codes(seconds=2 * processes.HEARTBEAT_TIMEOUT)
    assert codes.pop(victim) == -signal.SIGKILL
    # JAX aborts a process when it hears of a death before the process's own work fails of it.
    assert codes[0] in (LOST, -signal.SIGABRT)
    # It is told by the step's own failure, by JAX, or by the watch, whichever notices first.
    said = run.said(1 - victim)
    told = ("error: another process of this run is gone", "another task died", "has said nothing")
    assert any(line in said for line in told)
    steps = orbax_files.finished_steps(workdir / "checkpoints")
    assert checkpoint.load_weights(workdir)[1]["step"] == steps[-1]


def test_what_the_first_process_refuses_ends_all(shapes, tmp_path):
    workdir = tmp_path / "run"
    with lock(workdir):
        run = harness.Command("train", shapes, workdir, **PAIR, **CHANGES)
        held = json.loads((workdir / "lock").read_bytes())
        assert run.codes() == [BAD_INPUT] * 2
        still = json.loads((workdir / "lock").read_bytes())
        assert still | {"renewed": held["renewed"]} == held  # it is renewed now and then
        assert all(path.name.startswith("lock") for path in workdir.iterdir())
    for process in range(2):
        lines = [line for line in run.said(process).splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        assert f"another run (process {os.getpid()} on " in lines[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, 0), "--coordinator, --processes and --process go together"),
        (("localhost:1", 2, None), "--coordinator, --processes and --process go together"),
        (("localhost", 2, 0), "--coordinator=localhost: write HOST:PORT"),
        (("localhost:1", 2, 2), "--process=2: must be from 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(given, message):
    with pytest.raises(UserError, match=message):
        processes.start(*given)


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_whose_other_never_comes_ends_so_that_both_are_started_again(number):
    """The other may have been killed while it started. JAX itself gives up, by an abort."""
    program = (
        "from mixtrain_jax.runtime import processes; processes.JOINING = 3\n"
        f"processes.start('localhost:{harness.free_port()}', 2, {number})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGABRT and 128 + signal.SIGABRT in RESTARTABLE


def test_a_lone_machine_starts_alone(monkeypatch, capsys):
    def fail(**which):
        pytest.fail("joined processes that are not there")

    monkeypatch.setattr(processes.jax.distributed, "initialize", fail)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}.items():  # not in a step
        monkeypatch.setenv(name, value)
    processes.start()
    assert capsys.readouterr() == ("", "")


def test_a_slurm_step_joins_its_processes(monkeypatch):
    joined = []
    monkeypatch.setattr(
        parallel.jax.distributed, "initialize", lambda **which: joined.append(which)
    )
    monkeypatch.setattr(processes.jax.config, "update", lambda name, value: None)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1(x4)")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    monkeypatch.setattr(processes.watch, "start", lambda: None)
    processes.start()
    assert [how["cluster_detection_method"] for how in joined] == ["slurm"]
