"""Runs of the commands for tests: in this process, or in processes of their own."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest

from mixtrain_jax.config import load as configs
from mixtrain_jax.runtime import checkpoint, orbax_files, signals
from mixtrain_jax.training import loop, update
from tests.mixtraining import small


class StopAfter(signals.Stop):
    """A stop that is requested once it has been asked about in so many steps, and once before."""

    def __init__(self, steps):
        self.steps, self.asked = steps, 0

    @property
    def requested(self):
        self.asked += 1
        return self.asked > self.steps


class Command:
    """A command in processes of its own, with each process's output in a file.

    Attributes:
      processes: one for each process of the run.
    """

    def __init__(
        self,
        name,
        folder,
        workdir,
        *flags,
        processes=1,
        devices=1,
        logs=None,
        environments=None,
        each=None,
        machines=None,
        **changes,
    ):
        """Starts `python -m mixtrain_jax.NAME` on the images in a folder.

        Args:
          name: of the command.
          folder: that `make_shapes` wrote.
          workdir: of the run.
          flags: further ones.
          processes: how many start.
          devices: how many each has.
          logs: where output goes; beside the workdir if None.
          environments: further variables of each process.
          each: further flags of each process.
          machines: `tests.machines.Machines`, one for each process; None: all run on this one.
          changes: fields of the config; double underscores are dots.
        """
        logs = logs or workdir.parent
        logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", f"mixtrain_jax.{name}", f"--config=tests/tiny.py:{folder}"]
        command += [f"--config.{n.replace('__', '.')}={value}" for n, value in changes.items()]
        command += [f"--workdir={workdir}", *flags]
        first = "vm-1" if machines else "localhost"
        several = [f"--coordinator={first}:{free_port()}", f"--processes={processes}"]
        fake = f" --xla_force_host_platform_device_count={devices}"
        self.processes, self._files = [], []
        for i in range(processes):
            self._files.append(logs / f"{len(os.listdir(logs))}.log")
            with self._files[-1].open("w") as file:
                process = subprocess.Popen(
                    (machines.prefixes[i] if machines else [])
                    + command
                    + ([*several, f"--process={i}"] if processes > 1 else [])
                    + (each[i] if each else []),
                    cwd=configs.ROOT,
                    env=os.environ
                    | {"XLA_FLAGS": os.environ["XLA_FLAGS"] + fake}
                    | (environments[i] if environments else {}),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            self.processes.append(process)

    def said(self, process=0):
        """What a process has printed so far, without the chatter of Gloo."""
        lines = self._files[process].read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("[Gloo]"))

    def wait_for(self, text, seconds=1200):
        """Waits until the first process has printed a text; one that does not is killed."""
        self.wait_until(lambda: text in self.said(), repr(text), seconds)

    def wait_until(self, happened, what, seconds=1200):
        """Waits until something has happened; if it does not the processes are killed."""
        end = time.monotonic() + seconds
        while not happened():
            if self.processes[0].poll() is not None or time.monotonic() > end:
                self.kill()
                pytest.fail(f"ended, or {seconds} s have passed, without {what}: {self.said()}")
            time.sleep(0.02)

    def signal(self, number, process=0):
        """Sends a signal to a process."""
        self.processes[process].send_signal(number)

    def codes(self, seconds=1200):
        """Waits for the end; returns the exit codes, negative for signals. None may hang."""
        end = time.monotonic() + seconds
        try:
            return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        finally:
            self.kill()

    def kill(self):
        """Kills what is left of it."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()


def two_processes(program, arguments, **variables):
    """Runs a program in two processes, which are given a place to meet and their number.

    Args:
      program: Python; what it is given are PLACE, NUMBER, and this process's of `arguments`.
      arguments: of each of the two.
      variables: of their environment.

    Returns:
      What each has printed, and its standard error; both have ended well.
    """
    place = f"localhost:{free_port()}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, place, str(number), *map(str, given)],
            cwd=configs.ROOT, env=os.environ | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number, given in enumerate(arguments)
    ]  # fmt: skip
    try:
        ended = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, trouble) in zip(running, ended, strict=True):
        assert process.returncode == 0, trouble
    return ended


def free_port():
    """A port nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def saved(workdir, step):
    """All parameters of a checkpoint, by name."""
    found = {}
    for which in ("student", "teacher"):
        params, _ = checkpoint.load_weights(workdir / "checkpoints" / str(step), which)
        found |= {which + name: leaf for name, leaf in small.leaves(params).items()}
    return found


def assert_as_whole(whole, workdir, step):
    """A checkpoint is bit by bit the one of the run that nothing happened to."""
    ours, theirs = saved(workdir, step), saved(whole, step)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=f"{name}, step {step}")


def steps_on_disk(workdir):
    """The finished checkpoints, ascending."""
    return orbax_files.finished_steps(workdir / "checkpoints")


def logged(workdir, name="loss"):
    """What metrics.jsonl says of a metric, by step."""
    lines = map(json.loads, pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


_steps = {}


def _made_once(config, *parts):
    """The same step for equal configs: JAX traces a function only once, and that takes seconds."""
    fields = ("model", "mixtraining", "optimizer", "steps", "seed", "accumulate")
    made_of = str([config[field] for field in fields] + [config.data.mean, config.data.std])
    return _steps.setdefault(made_of, update.make_step(config, *parts))


def traced_once():
    """Within, runs of this process make equal steps only once."""
    return mock.patch.object(loop, "make_step", _made_once)


def run(config, workdir, stop=None, **options):
    """Trains in this process; returns the exit code."""
    workdir.mkdir(parents=True, exist_ok=True)
    with traced_once():
        return loop.train(config, workdir, stop or signals.Stop(), **options)


def assert_same_detections(ours, theirs):
    """Two COCO results files hold the same detections, but for rounding."""
    found = []
    for path in (ours, theirs):
        entries = json.loads(path.read_text())
        found.append(sorted(entries, key=lambda e: (e["image_id"], -e["score"])))
    assert len(found[0]) == len(found[1]) > 10
    for one, other in zip(*found, strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["category_id"] == other["category_id"]
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=0.02)
        np.testing.assert_allclose(one["score"], other["score"], atol=1e-4)
