"""Runs of seconds for tests of the commands: a config for generated pictures, and processes.

As a config file (`--config=tests/tiny.py:FOLDER`) it trains a tiny detector with MixTraining on the
pictures that `make_shapes` wrote to a folder.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from mixtrain_jax import config as configs
from mixtrain_jax import train
from mixtrain_jax.runtime import checkpoint, signals
from tests.mixtraining import small

STEPS = 6


def get_config(folder: str, **changes):
    """The small model on the pictures in a folder; double underscores in names are dots."""
    config = small.config()
    config.model.num_classes = None
    config.batch_size, config.steps = 4, STEPS
    config.eval.batch_size = 4
    config.data.train.update(scale=(64, 48, 64), buckets=((64, 64),))
    config.data.val.update(scale=(64, 64), buckets=((64, 64),))
    for split in ("train", "val"):
        config.data[split].annotations = f"{folder}/annotations/{split}.json"
        config.data[split].images = f"{folder}/{split}"
    config.checkpoint.every = 3
    config.log.update(every=2, pictures_every=STEPS)
    config.optimizer.warmup_steps = 2
    for name, value in changes.items():
        configs.override(config, name.replace("__", "."), str(value))
    return config


class StopAfter(signals.Stop):
    """A stop that is requested once it has been asked about in so many steps."""

    def __init__(self, steps):
        self.steps, self.asked = steps, 0

    @property
    def requested(self):
        self.asked += 1
        return self.asked >= self.steps


class Command:
    """A command in processes of its own, with each process's output in a file.

    Attributes:
      processes: one for each process of the run.
    """

    def __init__(self, name, folder, workdir, *flags, processes=1, devices=1, **changes):
        """Starts `python -m mixtrain_jax.NAME` on the pictures in a folder."""
        workdir.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", f"mixtrain_jax.{name}", f"--config=tests/tiny.py:{folder}"]
        command += [f"--config.{n.replace('__', '.')}={value}" for n, value in changes.items()]
        command += [f"--workdir={workdir}", *flags]
        several = [f"--coordinator=localhost:{free_port()}", f"--processes={processes}"]
        fake = f" --xla_force_host_platform_device_count={devices}"
        self.processes, self._files = [], []
        for i in range(processes):
            self._files.append(
                workdir.with_name(f"{workdir.name}.{len(os.listdir(workdir.parent))}.log")
            )
            with self._files[-1].open("w") as file:
                process = subprocess.Popen(
                    command + ([*several, f"--process={i}"] if processes > 1 else []),
                    cwd=configs.ROOT,
                    env=os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"] + fake},
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
        end = time.monotonic() + seconds
        while text not in self.said():
            if self.processes[0].poll() is not None or time.monotonic() > end:
                self.kill()
                pytest.fail(f"ended, or {seconds} s have passed, without {text!r}: {self.said()}")
            time.sleep(0.05)

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


def logged(workdir, name="loss"):
    """What metrics.jsonl says of a metric, by step."""
    lines = map(json.loads, pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def run(config, workdir, stop=None):
    """Trains in this process; returns the exit code."""
    workdir.mkdir(parents=True, exist_ok=True)
    return train.train(config, workdir, stop or signals.Stop())


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
