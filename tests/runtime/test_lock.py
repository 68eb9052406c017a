import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from mixtrain_jax.errors import BAD_INPUT, UserError
from mixtrain_jax.runtime import lock

ROOT = pathlib.Path(__file__).parents[2]


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
        ({"host": "elsewhere", "renewed": time.time() - 2 * lock.FORGOTTEN}, False),
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


def clock(monkeypatch):
    """A clock that only moves while something sleeps; what sleeps, and what is done meanwhile."""
    looks, then = [], []

    def look(seconds):
        looks.append(seconds)
        assert len(looks) < 1000
        for each in then:
            each()

    monkeypatch.setattr(lock.time, "sleep", look)
    monkeypatch.setattr(lock.time, "monotonic", lambda: sum(looks))
    return looks, then


@pytest.mark.parametrize("behind", [2 * lock.STALE, -2 * lock.STALE])
@pytest.mark.parametrize("alive", [True, False])
def test_clocks_of_two_hosts_may_differ(tmp_path, monkeypatch, behind, alive):
    """A lock that seems old, or of the future, is looked at for as long as two renewals take."""
    looks, then = clock(monkeypatch)
    write(tmp_path, host="elsewhere", renewed=time.time() - behind)
    if alive:
        then.append(lambda: write(tmp_path, host="elsewhere", renewed=time.time() - behind + 1))
        with pytest.raises(UserError, match="another run"), lock.lock(tmp_path):
            pass
        return
    with lock.lock(tmp_path):
        pass
    wait = 2 * lock.RENEW if behind > 0 else lock.STALE
    assert wait <= sum(looks) <= wait + 2 * lock.LOOK


SLEEPER = """
    import sys, threading, time
    from mixtrain_jax.runtime import lock
    lock.RENEW = 0.1
    with lock.lock(sys.argv[1]):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_holder_that_slept_too_long_ends_and_leaves_the_others_lock(tmp_path):
    """What another host has written there meanwhile stays; so does its lock when this one ends."""
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLEEPER), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "held\n"
    write(tmp_path, host="elsewhere", key="another")
    _, error = run.communicate(timeout=30)
    assert run.returncode == BAD_INPUT
    assert error.endswith("this run slept for so long that another one goes on there\n")
    assert json.loads((tmp_path / "lock").read_text())["key"] == "another"


def test_only_ones_own_lock_is_deleted(tmp_path):
    with lock.lock(tmp_path):
        write(tmp_path, host="elsewhere", key="another")
    assert json.loads((tmp_path / "lock").read_text())["key"] == "another"


@pytest.mark.parametrize("alive", [True, False])
def test_whether_a_run_on_another_host_is_alive_shows_in_its_renewing(
    tmp_path, monkeypatch, capsys, alive
):
    """So a run that is started again right after its hosts were taken away waits and goes on."""
    looks, slept = clock(monkeypatch)
    if alive:
        slept.append(lambda: write(tmp_path, host="elsewhere"))
    write(tmp_path, host="elsewhere")
    if alive:
        with pytest.raises(UserError, match="another run"), lock.lock(tmp_path):
            pass
        assert json.loads((tmp_path / "lock").read_text())["host"] == "elsewhere"
    else:
        with lock.lock(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert looks and "waiting to see whether it is alive" in capsys.readouterr().out


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
    with pytest.raises(UserError, match="cannot write .*file: File exists"):
        with lock.lock(tmp_path / "file"):
            pass


RACE = """
    import sys, time
    from mixtrain_jax.runtime import lock
    from mixtrain_jax.errors import UserError
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with lock.lock(sys.argv[1]):
            print("held", flush=True)
            sys.stdin.readline()
    except UserError as error:
        print(error, flush=True)
"""


def test_of_runs_begun_at_the_same_instant_one_holds_the_lock(tmp_path):
    for attempt in range(3):
        workdir = tmp_path / str(attempt)
        command = [sys.executable, "-c", textwrap.dedent(RACE), str(workdir)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        runs = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(4)]
        assert [run.stdout.readline() for run in runs] == ["ready\n"] * 4
        for run in runs:
            run.stdin.write("go\n")
            run.stdin.flush()
        said = sorted(run.stdout.readline() for run in runs)
        assert [line[:11] for line in said] == ["another run"] * 3 + ["held\n"]
        for run in runs:
            run.communicate("end\n")
        assert not (workdir / "lock").exists()
