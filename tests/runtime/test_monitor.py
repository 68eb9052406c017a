import errno
import json
import re

import numpy as np
import pytest
from etils import epath

from mixtrain_jax.runtime import event_files, monitor
from tests.bucket import Fault


class Clock:
    """A clock that stands still until told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(monitor.time, "perf_counter", clock)
    return clock


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_events(workdir):
    """All events as TensorFlow reads them, checksums verified."""
    tf = pytest.importorskip("tensorflow")
    from tensorflow.core.util import event_pb2

    files = sorted(map(str, workdir.glob("events.out.tfevents.*")))
    return [event_pb2.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(files)]


def test_line_shows_progress_speed_wait_and_eta(tmp_path, clock, capsys):
    m = monitor.Monitor(tmp_path, 200, batch_size=8)
    with m.pause():
        clock.now += 300  # compilation
    clock.now += 30
    m.log(50, {"loss": 2.5, "lr": 1e-3, "mixtraining/found": 7})
    with m.waiting():
        clock.now += 5
    with m.pause():
        clock.now += 1000
    clock.now += 15
    m.log(100, {"loss": np.float32(1.23456), "lr": np.array(2e-4)})
    m.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "step  50/200 [#####...............]  25% | loss 2.5 lr 0.001 | "
        "13.3 images/s | input wait 0% | ETA 01:30"
    )
    assert second == (
        "step 100/200 [##########..........]  50% | loss 1.235 lr 0.0002 | "
        "20.0 images/s | input wait 25% | ETA 00:52"
    )
    line = records(tmp_path)[0]
    assert line["step"] == 50
    assert line["mixtraining/found"] == 7
    assert line["images_per_second"] == pytest.approx(50 * 8 / 30)


def test_speed_is_smoothed_and_knows_no_compilation(tmp_path, clock, capsys):
    m = monitor.Monitor(tmp_path, 40, batch_size=1)
    with m.pause():
        clock.now += 1000
    for step, seconds in [(10, 5), (20, 10), (30, 20)]:
        clock.now += seconds
        m.log(step, {})
    m.close()
    rate = 0.7 * (0.7 * 2.0 + 0.3 * 1.0) + 0.3 * 0.5
    assert records(tmp_path)[0]["images_per_second"] == pytest.approx(2.0)
    assert capsys.readouterr().out.endswith(f"ETA 00:{round(10 / rate):02d}\n")


def test_lines_come_at_the_first_step_and_by_time(tmp_path, clock, capsys):
    m = monitor.Monitor(tmp_path, 1000, batch_size=1)
    told = []
    for step in range(1, 13):
        clock.now += 4
        if m.overdue():
            m.print_line(step, {"loss": step})
            told.append(step)
    m.log(12, {"loss": 12})
    assert not m.overdue()
    m.close()
    assert told == [1, 6, 11]
    assert re.findall(r"step +(\d+)/", capsys.readouterr().out) == ["1", "6", "11", "12"]
    assert [r["step"] for r in records(tmp_path)] == [12]  # told is not logged
    assert records(tmp_path)[0]["images_per_second"] == pytest.approx(0.25)


def test_a_resumed_run_reads_like_one_never_stopped(tmp_path, capsys):
    m = monitor.Monitor(tmp_path, 40, batch_size=1)
    for step in (10, 20, 30):
        m.log(step, {"loss": step})
    m.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # killed while writing
    m = monitor.Monitor(tmp_path, 40, batch_size=1, start_step=20)
    for step in (30, 40):
        m.log(step, {"loss": step})
    m.close()
    assert [r["step"] for r in records(tmp_path)] == [10, 20, 30, 40]
    assert re.findall(r"step (\d+)/40", capsys.readouterr().out) == ["10", "20", "30", "30", "40"]


def test_lines_that_could_not_be_read_at_the_start_are_not_written_over(bucket, caplog):
    workdir = epath.Path("gs://bucket/curves")
    m = monitor.Monitor(workdir, 40, batch_size=1)
    m.log(10, {"loss": 10})
    m.close()
    fault = Fault("403", "GET", holds="metrics.jsonl")
    bucket.faults.append(fault)
    m = monitor.Monitor(workdir, 40, batch_size=1, start_step=10)
    m.log(20, {"loss": 20})
    m.close()
    assert fault.met == 1 and "Logs are incomplete" in caplog.text
    lines = bucket.content("curves/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    m = monitor.Monitor(tmp_path, 10, batch_size=1)
    m.scalars(1, {"val/AP": 0.5, "loss": float("nan"), "big": float("inf")})
    m.close()
    (record,) = records(tmp_path)
    assert (record["val/AP"], record["loss"], record["big"]) == (0.5, None, None)


def test_tensorflow_reads_the_event_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 300, 3), np.uint8)
    m = monitor.Monitor(tmp_path, 1000, batch_size=1, start_step=300)
    m.scalars(301, {"loss": 1.5, "val/AP": float("nan")})
    m.picture(302, "detections", pixels)
    m.close()
    version, start, scalars, picture = read_events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (301, start.session_log.START)
    assert scalars.step == 301
    assert [v.tag for v in scalars.summary.value] == ["loss", "val/AP"]
    assert scalars.summary.value[0].simple_value == 1.5
    assert np.isnan(scalars.summary.value[1].simple_value)
    (value,) = picture.summary.value
    assert (value.tag, value.image.height, value.image.width) == ("detections", 20, 300)
    import tensorflow as tf

    decoded = tf.io.decode_png(value.image.encoded_image_string).numpy()
    np.testing.assert_array_equal(decoded, pixels)


def test_event_files_are_short_and_finished(tmp_path, monkeypatch):
    files = event_files.EventFiles(tmp_path, first_step=1)
    monkeypatch.setattr(event_files, "BYTES", 1000)
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for step in range(1, 4):
        files.picture(step, "noise", noise)
        files.scalars(step, {"loss": step})
    files.close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 4
    values = [event for event in read_events(tmp_path) if event.summary.value]
    assert sorted((v.step, v.summary.value[0].tag) for v in values) == [
        (step, tag) for step in (1, 2, 3) for tag in ("loss", "noise")
    ]
    starts = [event for event in read_events(tmp_path) if event.HasField("session_log")]
    assert [event.step for event in starts] == [1]


def test_event_files_reach_an_object_store_whole(tmp_path, bucket):
    files = event_files.EventFiles("gs://bucket/events", first_step=1)
    files.scalars(1, {"loss": 2})
    assert not bucket.names("events/")
    files.close()
    (name,) = bucket.names("events/")
    (tmp_path / name.removeprefix("events/")).write_bytes(bucket.content(name))
    (*_, event) = read_events(tmp_path)
    assert event.summary.value[0].simple_value == 2


def test_a_full_disk_costs_log_lines_and_one_warning(tmp_path, monkeypatch, capsys, caplog):
    m = monitor.Monitor(tmp_path, 40, batch_size=1)
    m.log(10, {"loss": 1})

    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        m._writer.submit(lambda: None).result()
        patch.setattr(monitor._Appended, "add", full)
        m.log(20, {"loss": 1})
        m._writer.submit(lambda: None).result()
    m.log(30, {"loss": 1})
    m.close()
    assert [r["step"] for r in records(tmp_path)] == [10, 30]
    assert caplog.text.count("Logs are incomplete") == 1
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_standard_output_on_a_full_disk_is_no_harm(tmp_path, monkeypatch, caplog):
    m = monitor.Monitor(tmp_path, 10, batch_size=1)
    with open("/dev/full", "w", buffering=1) as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        m.log(1, {})
        patch.undo()
        with pytest.raises(OSError, match="No space left"):
            full.close()
    m.close()
    assert [r["step"] for r in records(tmp_path)] == [1]
    assert "No space left" in caplog.text


def test_only_the_first_process_writes(tmp_path, capsys):
    m = monitor.Monitor(tmp_path / "w", 10, batch_size=1, active=False)
    m.log(1, {"loss": 1})
    m.scalars(1, {"loss": 1})
    m.picture(1, "x", np.zeros((2, 2, 3), np.uint8))
    m.close()
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "w").exists()
