"""Checkpoints in a bucket whose server has hiccups: nothing whole is ever called damaged."""

import numpy as np
import pytest

from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import checkpoint, orbax_files, storage
from tests.bucket import Fault
from tests.runtime import test_checkpoint as local

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def saved(name):
    """Two checkpoints in a workdir of this name."""
    workdir = storage.absolute(f"gs://bucket/{name}")
    local.save_steps(workdir, 1, 2)
    return workdir


def newest_loss(workdir):
    state = local.restore(workdir)
    step = int(state.step)
    local.assert_same(state, local.make_state(step))
    return step


def test_saves_and_restores_in_a_bucket(bucket):
    workdir = saved("plain")
    assert newest_loss(workdir) == 2
    assert orbax_files.finished_steps(workdir / "checkpoints") == [1, 2]


def test_a_hiccup_while_reading_is_read_over(bucket):
    workdir = saved("hiccup")
    bucket.faults += [
        Fault("503", method="GET", holds="hiccup", times=2),
        Fault("cut", method="GET", holds="ocdbt", times=2),
    ]
    assert newest_loss(workdir) == 2
    assert all(fault.met for fault in bucket.faults)
    assert not [name for name in bucket.names("hiccup/") if "damaged" in name]


def test_one_answer_that_is_refused_takes_no_checkpoint_away(bucket):
    workdir = saved("refused")
    before = bucket.names("refused/")
    bucket.faults.append(Fault("403", method="GET", holds="2/commit_success.txt", times=9))
    bucket.faults.append(Fault("403", method="GET", holds="2%2Fcommit_success.txt", times=9))
    with pytest.raises(UserError, match="cannot read gs://bucket/refused"):
        checkpoint.Checkpoints(workdir)
    assert all(fault.met for fault in bucket.faults)
    bucket.faults.clear()
    assert bucket.names("refused/") == before
    assert newest_loss(workdir) == 2


def test_a_server_that_does_not_answer_is_told_and_nothing_is_renamed(bucket, monkeypatch):
    workdir = saved("silent")
    checkpoints = checkpoint.Checkpoints(workdir)
    monkeypatch.setattr(storage, "PATIENCE", 0.0)
    monkeypatch.setattr("gcsfs.retry.random.random", lambda: -(2.0**9))  # no pauses
    fault = Fault("503", method="GET", holds="2%2Fmeta", times=10_000)
    bucket.faults.append(fault)
    with pytest.raises(storage.StorageError, match="cannot read gs://bucket/silent/checkpoints/2"):
        checkpoints.restore_latest(local.make_state(), local.META)
    assert fault.met
    bucket.faults.clear()
    checkpoints.close()
    assert newest_loss(workdir) == 2
    assert not [name for name in bucket.names("silent/") if "damaged" in name]


def test_one_that_is_damaged_is_set_aside_in_a_bucket_too(bucket):
    workdir = saved("damaged")
    storage.write(workdir / "checkpoints" / "2" / "meta" / "metadata", b"{")
    assert newest_loss(workdir) == 1
    assert storage.list_folder(workdir / "checkpoints") == ["1", "damaged-2"]


def test_a_write_is_made_again_when_the_connection_is_cut(bucket):
    bucket.faults += [
        Fault("cut", method="POST", holds="/upload/", times=3),
        Fault("503", method="POST", holds="/upload/", times=3),
    ]
    workdir = saved("cut")
    assert all(fault.met == 3 for fault in bucket.faults)
    assert newest_loss(workdir) == 2


def test_suspects_are_set_aside_and_the_newest_good_one_is_named(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3, 4, 5):
        checkpoints.proven = min(step - 1, 3)  # the last finite step was 3
        checkpoints.save(step, local.make_state(step), local.META)
    checkpoints.wait()
    # 1 was pruned for 2, which is proven; of 3 and later nobody knows, so they stay.
    assert local.steps_on_disk(tmp_path) == [2, 3, 4, 5]
    told = checkpoints.set_suspects_aside()
    assert told == (
        "checkpoints 3, 4, 5 may hold wrecked weights and are renamed; "
        "the newest good checkpoint is 2"
    )
    checkpoints.close()
    assert storage.list_folder(tmp_path / "checkpoints") == [
        "2",
        "suspect-3",
        "suspect-4",
        "suspect-5",
    ]
    state = local.restore(tmp_path)
    assert state.step == 2
    assert np.array_equal(
        state.student["head"]["kernel"], local.make_state(2).student["head"]["kernel"]
    )


def test_what_was_proven_is_still_known_after_a_restart(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.proven = step - 1
        checkpoints.save(step, local.make_state(step), local.META)
    checkpoints.close()
    again = checkpoint.Checkpoints(tmp_path, keep=3)
    again.restore_latest(local.make_state(), local.META)
    told = again.set_suspects_aside()
    again.close()
    assert told.endswith("the newest good checkpoint is 1")
    assert storage.list_folder(tmp_path / "checkpoints") == ["1", "suspect-2", "suspect-3"]


def test_what_killed_saves_left_is_gone_before_anybody_looks_at_the_folder(bucket):
    """In a bucket a folder ends with its last file, and whoever is listing it then fails."""
    workdir = storage.absolute("gs://bucket/killed")
    local.save_steps(workdir, 2)
    (workdir / "checkpoints" / "2" / "commit_success.txt").unlink()
    bucket.faults.append(Fault("slow", "DELETE", seconds=0.5, times=1000))
    with checkpoint.Checkpoints(workdir) as checkpoints:
        assert bucket.names("killed/checkpoints/") == []
        assert checkpoints.newest_step() is None
    assert bucket.faults[0].met > 1
