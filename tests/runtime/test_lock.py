import json
import os
import socket
import subprocess
import sys
import time

import pytest

from mixtrain_jax.runtime import lock
from mixtrain_jax.runtime.errors import UserError


def write(workdir, **changes):
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": lock._started(os.getpid()),
        "renewed": time.time(),
    }
    (workdir / "lock").write_text(json.dumps(holder | changes))


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    workdir = tmp_path / "new"
    with lock.lock(workdir):
        with pytest.raises(UserError, match=rf"another run \(process {os.getpid()} on "):
            with lock.lock(workdir):
                pytest.fail("two runs in one workdir")
        assert (workdir / "lock").exists()
    assert not (workdir / "lock").exists()
    with lock.lock(workdir):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    program = (
        "import os, sys; from mixtrain_jax.runtime import lock\n"
        "with lock.lock(sys.argv[1]): os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert (tmp_path / "lock").exists()
    with lock.lock(tmp_path):
        pass


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({"renewed": 0}, True),  # a living process of this host may have been suspended
        ({"started": "1"}, False),  # its number was given to another process
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "renewed": time.time() - 2 * lock.STALE}, False),
    ],
)
def test_which_locks_are_stale(tmp_path, changes, held):
    write(tmp_path, **changes)
    if held:
        with pytest.raises(UserError, match="another run"), lock.lock(tmp_path):
            pass
    else:
        with lock.lock(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_damaged_lock_is_stale(tmp_path):
    (tmp_path / "lock").write_text("")
    with lock.lock(tmp_path):
        pass


def test_the_holder_renews_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.01)
    with lock.lock(tmp_path):
        before = json.loads((tmp_path / "lock").read_text())["renewed"]
        deadline = time.time() + 5
        while time.time() < deadline:
            text = (tmp_path / "lock").read_text()
            if text and json.loads(text)["renewed"] > before:
                break
            time.sleep(0.01)
        else:
            pytest.fail("not renewed")


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/lock"):
        with lock.lock(tmp_path / "file"):
            pass
