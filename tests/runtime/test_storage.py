"""Every path, local and in a bucket: what is read and written, and what its errors become."""

import errno
import json
import os
import subprocess
import sys

import pytest

from mixtrain_jax.config import load
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import lock, storage
from tests.bucket import Fault


@pytest.fixture(params=["local", "gs"])
def folder(request, tmp_path):
    """A folder that is not there yet, on disk and in a bucket."""
    if request.param == "local":
        return storage.absolute(tmp_path / "new")
    request.getfixturevalue("bucket")
    return storage.absolute(f"gs://bucket/{tmp_path.name}")


@pytest.fixture
def hasty(monkeypatch):
    """No waiting between tries."""
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)


def test_files_come_and_go(folder):
    assert storage.list_folder(folder) == [] and not storage.exists(folder / "a")
    with pytest.raises(FileNotFoundError):
        storage.read(folder / "a")
    storage.make_directory(folder)
    storage.write_json(folder / "deep" / "a.json", {"AP": 1})
    storage.write(folder / "b", b"12")
    assert storage.list_folder(folder) == ["b", "deep"]
    assert storage.is_directory(folder / "deep") and not storage.is_directory(folder / "b")
    assert json.loads(storage.read(folder / "deep" / "a.json")) == {"AP": 1}
    storage.write(folder / "b", b"3")
    assert storage.read(folder / "b") == b"3"
    storage.rename(folder / "deep", "damaged-deep")
    assert storage.list_folder(folder) == ["b", "damaged-deep"]
    assert storage.exists(folder / "damaged-deep" / "a.json")
    storage.delete(folder / "b")
    storage.delete(folder / "b")
    assert storage.list_folder(folder) == ["damaged-deep"]


def test_a_bucket_is_no_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert os.fspath(storage.absolute("gs://bucket/run")) == "gs://bucket/run"
    assert os.fspath(storage.absolute("run")) == f"{tmp_path}/run"


@pytest.mark.parametrize("kind", ["503", "cut"])
@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_write_that_fails_in_the_middle_is_made_again(bucket, kind, size):
    path = storage.absolute(f"gs://bucket/written-{kind}-{size}")
    fault = Fault(kind, method="POST", times=1)
    bucket.faults.append(fault)
    storage.write(path, bytes(size))
    assert fault.met == 1
    assert bucket.content(f"written-{kind}-{size}") == bytes(size)


def test_a_slow_answer_is_not_waited_for_for_ever(bucket, hasty):
    path = storage.absolute("gs://bucket/slow")
    storage.write(path, b"content")
    fault = Fault("slow", method="GET", seconds=7)  # the tests' limit is 5 s
    bucket.faults.append(fault)
    assert storage.read(path) == b"content"
    assert fault.met == 1


def test_errors_that_pass_are_tried_again_and_others_are_not(tmp_path, hasty):
    calls = []

    def fail(error):
        calls.append(error)
        if len(calls) < 4:
            raise error
        return "done"

    for passing in (ConnectionResetError(), TimeoutError(), OSError(errno.ESTALE, "Stale file")):
        calls.clear()
        assert storage.retry("read", tmp_path, lambda error=passing: fail(error)) == "done"
        assert len(calls) == 4
    calls.clear()
    with pytest.raises(UserError, match="cannot read x: No space left on device"):
        storage.retry("read", "x", lambda: fail(OSError(errno.ENOSPC, os.strerror(28))))
    assert len(calls) == 1


@pytest.mark.parametrize("passes", [True, False])
def test_what_cannot_be_told_is_not_taken_for_no(tmp_path, hasty, monkeypatch, passes):
    """A network's file system that fails for a moment; a folder that may not be looked into."""
    (tmp_path / "2000").mkdir()
    error = OSError(errno.ESTALE, "Stale") if passes else PermissionError(errno.EACCES, "Denied")
    tries = []

    def stat(path, stat=os.stat):
        tries.append(path)
        if len(tries) == 1:
            raise error
        return stat(path)

    monkeypatch.setattr(storage.os, "stat", stat)
    for look in (storage.exists, storage.is_directory):
        tries.clear()
        if passes:
            assert look(tmp_path / "2000") and len(tries) == 2
        else:
            with pytest.raises(storage.StorageError, match="cannot read .*2000: Denied"):
                look(tmp_path / "2000")
    monkeypatch.undo()
    assert not storage.exists(tmp_path / "2001") and not storage.exists(tmp_path / "a\0b")


def test_a_bucket_that_is_not_there_is_one_line(bucket):
    for write in (
        lambda: storage.write("gs://nosuch/run/lock", b""),
        lambda: storage.rename("gs://bucket/nothing", "other"),
    ):
        with pytest.raises(storage.StorageError, match="no such bucket or folder"):
            write()


def test_patience_ends_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.0)

    def fail():
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    with pytest.raises(storage.StorageError, match="cannot read gs://b/x: Connection") as told:
        storage.retry("read", "gs://b/x", fail)
    assert told.value.transient and isinstance(told.value, OSError)


def test_the_lock_is_renewed_through_a_hiccup(bucket, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.05)
    monkeypatch.setattr(lock, "SETTLE", 0.0)
    monkeypatch.setattr(storage, "PATIENCE", 0.0)

    def renewed():
        return json.loads(bucket.content("locked/lock"))["renewed"]

    def wait_for_another():
        before, end = renewed(), storage.time.monotonic() + 20
        while renewed() == before:
            assert storage.time.monotonic() < end, "the lock is not renewed any more"
            storage.time.sleep(0.02)

    with lock.lock("gs://bucket/locked"):
        wait_for_another()
        fault = Fault("cut", method="POST", times=6)  # all tries of gcsfs
        monkeypatch.setattr("gcsfs.retry.random.random", lambda: -(2.0**9))  # without its pauses
        bucket.faults.append(fault)
        end = storage.time.monotonic() + 20
        while fault.met < fault.times:
            assert storage.time.monotonic() < end, "the lock is not renewed any more"
            storage.time.sleep(0.02)
        wait_for_another()
        with pytest.raises(UserError, match="another run"), lock.lock("gs://bucket/locked"):
            pytest.fail("two runs in one workdir")
    assert not bucket.names("locked")


QUIET = """
from mixtrain_jax import process
process.prepare_storage()
from mixtrain_jax.runtime import storage
for number in range(3):
    storage.write("gs://bucket/quiet", b"1")
    storage.exists("gs://bucket/quiet")
"""


def test_a_command_speaks_with_a_bucket_without_a_word(bucket):
    """By default gcsfs asks for the kind of the bucket before each operation, and warns."""
    kept = {"STORAGE_EMULATOR_HOST", "NO_GCE_CHECK"}
    environment = {name: value for name, value in os.environ.items() if "FS" not in name}
    environment.pop("EPATH_USE_TF", None)
    done = subprocess.run(
        [sys.executable, "-c", QUIET],
        cwd=load.ROOT,
        env=environment | {name: bucket.environment[name] for name in kept},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
