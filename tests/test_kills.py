"""A hundred kills at random moments, of runs of two processes whose files are in a bucket."""

import json
import random
import signal
import time

import pytest
from etils import epath

from mixtrain_jax.errors import LOST
from mixtrain_jax.runtime import checkpoint, processes
from tests import harness

pytestmark = pytest.mark.multidevice

STEPS = 30
KEPT = 3
CHANGES = dict(
    batch_size=4, steps=STEPS, checkpoint__every=2, checkpoint__keep=KEPT, log__every=1
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """The workdir of a run of two processes that nothing happened to, with all checkpoints."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    changes = CHANGES | {"checkpoint__keep": 1000}
    run = harness.Command("train", shapes, workdir, processes=2, **changes)
    assert run.codes() == [0, 0], run.said()
    return workdir


def kill(run, rng):
    """Kills both processes of a run, or one, at a random moment; the other has to end by itself."""
    if rng.random() < 0.9:  # the others die while they start
        run.wait_until(lambda: "\nstep " in run.said() or ended(run), "a step or its end")
        time.sleep(rng.uniform(0, 3))
    else:
        time.sleep(rng.uniform(0, 10))
    victims = rng.choice([(0, 1), (0, 1), (0, 1), (0, 1), (0,), (1,)])
    for victim in victims:
        run.signal(signal.SIGKILL, victim)
    codes = run.codes(seconds=processes.JOINING + 60)  # one killed before it joined is waited for
    assert set(codes) <= {0, LOST, -signal.SIGABRT, -signal.SIGKILL}, run.said()


def ended(run):
    return any(process.poll() is not None for process in run.processes)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_a_hundred_kills_over_processes_and_a_bucket(shapes, whole, bucket, tmp_path, part):
    rng, kills, number = random.Random(part), 0, 0
    folder = bucket.put(shapes, "shapes")
    while kills < 25:
        number += 1
        workdir = epath.Path(f"gs://bucket/kills/{part}-{number}")

        def start(workdir=workdir):
            return harness.Command(
                "train", folder, workdir, processes=2, logs=tmp_path, **CHANGES
            )  # fmt: skip

        before = []
        for _ in range(5):
            kill(start(), rng)
            kills += 1
            after = harness.steps_on_disk(workdir)
            # The newest of before may only have given way to newer ones.
            assert set(before[-KEPT:]) <= set(after) or after[-1] > before[-1]
            assert not before or after[-1] >= before[-1], "a finished checkpoint is gone"
            if after:
                assert checkpoint.load_weights(workdir)[1]["step"] == after[-1]
            before = after
            if after and after[-1] == STEPS:
                break
        last = start()
        assert last.codes() == [0, 0], last.said()
        harness.assert_as_whole(whole, workdir, STEPS)
        names = bucket.names(f"kills/{part}-{number}/")
        assert not [name for name in names if "damaged" in name or "suspect" in name], names
        lines = bucket.content(f"kills/{part}-{number}/metrics.jsonl").splitlines()
        losses = {each["step"]: each["loss"] for each in map(json.loads, lines) if "loss" in each}
        theirs = harness.logged(whole)
        assert losses == {step: theirs[step] for step in losses} and STEPS in losses
        print(f"part {part}: run {number}, {kills} kills", flush=True)
