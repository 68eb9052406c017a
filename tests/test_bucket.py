"""A run whose every path is in a bucket: annotations, images, weights to start from, workdir."""

import json

import numpy as np
import pytest
from etils import epath

from mixtrain_jax.evaluation.detect import read_weights
from mixtrain_jax.evaluation.evaluate import evaluate
from mixtrain_jax.evaluation.predict import predict
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import checkpoint
from tests import harness, tiny
from tests.bucket import Fault

STEPS = 20
CHANGES = dict(steps=STEPS, checkpoint__every=2, checkpoint__keep=2, log__every=1)


@pytest.fixture(scope="module")
def local(shapes, tmp_path_factory):
    """Weights to start from, and the workdir of a run on local disks that nothing happened to."""
    folder = tmp_path_factory.mktemp("local")
    config = tiny.get_config(shapes, model__num_classes=6)
    params = detector.init(detector.build(config.model), 7)
    checkpoint.save_weights(folder / "weights", params)
    config = tiny.get_config(shapes, **CHANGES, init_from=folder / "weights")
    assert harness.run(config, folder / "run") == 0
    return folder


@pytest.mark.slow
def test_a_run_in_a_bucket_killed_and_resumed_is_the_local_one(shapes, local, bucket, tmp_path):
    folder = bucket.put(shapes, "shapes")
    weights = bucket.put(local / "weights", "weights")
    workdir = epath.Path("gs://bucket/runs/one")

    def start():
        return harness.Command(
            "train", folder, workdir, logs=tmp_path, init_from=weights, **CHANGES
        )

    first = start()
    first.wait_for("\nstep  7/")
    first.kill()
    assert "runs/one/lock" in bucket.names()
    bucket.faults += [
        Fault("503", method="GET", times=2),
        Fault("503", method="GET", holds="shapes", times=3),
        Fault("503", method="POST", times=2),
        Fault("cut", method="POST", holds="/upload/", times=1),
        Fault("slow", method="GET", holds="shapes", times=1, seconds=7),
    ]
    second = start()
    assert second.codes() == [0], second.said()
    assert all(fault.met for fault in bucket.faults)
    said = second.said()
    assert "gs://bucket/runs/one: resuming after step" in said
    assert "Traceback" not in said and "warning" not in said.lower(), said

    ours, theirs = harness.saved(workdir, STEPS), harness.saved(local / "run", STEPS)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    lines = bucket.content("runs/one/metrics.jsonl").splitlines()
    losses = {each["step"]: each["loss"] for each in map(json.loads, lines) if "loss" in each}
    assert losses == harness.logged(local / "run")
    names = [name.removeprefix("runs/one/") for name in bucket.names("runs/one/")]
    kept = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
    assert kept == {"16", "18", "20", "scores.json", "proven.json"}  # two good ones, and the last
    assert {"config.json", "metrics.jsonl", f"pictures/train_{STEPS:07d}.png"} <= set(names)
    assert [name for name in names if "tfevents" in name] and "lock" not in names

    config = tiny.get_config(folder, **CHANGES)
    evaluate(config, read_weights(str(workdir), "student"), workdir / "detections.json")
    assert json.loads(bucket.content("runs/one/metrics.json"))["AP"] >= 0
    image = next(name for name in bucket.names("shapes/val") if name.endswith(".jpg"))
    images = [f"gs://bucket/{image}"]
    predict(config, f"{workdir}:best", "student", images, workdir / "seen", 0.3)
    (found,) = json.loads(bucket.content("runs/one/seen/detections.json"))
    assert found["image"] == images[0]
    picture = f"runs/one/seen/{epath.Path(image).stem}.png"
    assert bucket.content(picture).startswith(b"\x89PNG")
