"""The loop that docs/tpu.md gives, around commands that end in every way."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from mixtrain_jax import errors
from mixtrain_jax.config import load

SCRIPT = load.ROOT / "tools" / "restart.sh"


LOCAL = "step and (plan.parent / 'checkpoints' / str(step)).mkdir(parents=True)\n"
IN_A_BUCKET = (
    "import os, urllib.request\n"
    "place = os.environ['STORAGE_EMULATOR_HOST'] + '/upload/storage/v1/b/bucket/o'\n"
    "query = f'?uploadType=media&name=loop/checkpoints/{step}/commit_success.txt'\n"
    "step and urllib.request.urlopen(place + query, b'1')\n"
)


# A shell that is started with Ctrl-C ignored, as in the background, goes on ignoring it.
HEARS_CTRL_C = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)


def run(folder, ends, workdir=None, saves=LOCAL, **variables):
    """Runs a command that ends each time with the next (code, checkpoint it leaves or None)."""
    plan = folder / "plan.json"
    folder.mkdir(parents=True, exist_ok=True)
    plan.write_text(json.dumps(ends))
    program = (
        "import json, pathlib, sys\n"
        f"plan = pathlib.Path({str(plan)!r})\n"
        "(code, step), *rest = json.loads(plan.read_text())\n"
        "plan.write_text(json.dumps(rest))\n"
        f"{saves}"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        ["sh", SCRIPT, workdir or folder, "python3", "-S", "-c", program],
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "PAUSE": "0"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, json.loads(plan.read_text())


def test_it_goes_on_until_the_run_is_finished(tmp_path):
    ends = [[code, step] for step, code in enumerate(errors.RESTARTABLE, 1)]
    done, left = run(tmp_path, [*ends, [0, None], [0, None]])
    assert (done.returncode, left) == (0, [[0, None]])


@pytest.mark.parametrize("code", [errors.BUG, errors.BAD_INPUT, errors.INTERRUPTED, 137])
def test_it_ends_where_somebody_has_to_look(tmp_path, code):
    done, left = run(tmp_path, [[75, 1], [code, None], [0, None]])
    assert (done.returncode, left) == (code, [[0, None]])


def test_three_starts_in_vain_are_enough(tmp_path):
    ends = [[70, 1], [70, None], [70, None], [70, 2], [70, None], [134, None], [71, None], [0, 3]]
    done, left = run(tmp_path, ends)
    assert (done.returncode, left) == (71, [[0, 3]])
    assert "three times without a new checkpoint" in done.stderr


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_loop_that_is_asked_to_stop_starts_nothing_again(tmp_path, asked):
    """The run is asked besides, and ends with 75 when it has saved."""
    program = (
        "import os, pathlib, signal, time\n"
        f"signal.signal({int(asked)}, lambda *_: os._exit(75))\n"
        f"pathlib.Path({str(tmp_path)!r}, 'begun').touch()\n"
        "time.sleep(60)\n"
    )
    loop = subprocess.Popen(
        [
            "python3",
            "-S",
            "-c",
            HEARS_CTRL_C,
            "sh",
            SCRIPT,
            tmp_path,
            "python3",
            "-S",
            "-c",
            program,
        ],
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "PAUSE": "0"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(loop.pid, asked)
    assert loop.wait(timeout=30) == 75


def test_a_loop_that_is_asked_while_it_lists_checkpoints_starts_nothing(tmp_path):
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "ls"
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/listing\nsleep 1\n")
    slow.chmod(0o755)
    loop = subprocess.Popen(
        ["sh", SCRIPT, tmp_path, "touch", tmp_path / "begun"],
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PAUSE": "0"},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "listing").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    loop.terminate()
    assert loop.wait(timeout=30) == 75
    assert not (tmp_path / "begun").exists()


def test_a_bucket_that_cannot_be_listed_is_told_at_once(tmp_path):
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text("#!/bin/sh\necho not logged in >&2\nexit 1\n")
    gcloud.chmod(0o755)
    path = f"{tmp_path}/bin:/usr/bin:/bin"
    done, left = run(tmp_path, [[0, None]], "gs://bucket/loop", PATH=path)
    assert (done.returncode, left) == (2, [[0, None]])
    assert "gcloud cannot list gs://bucket" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="needs gcloud, which lists the bucket")
def test_checkpoints_in_a_bucket_are_seen(bucket, tmp_path):
    url = bucket.environment["STORAGE_EMULATOR_HOST"]
    variables = {
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{url}/storage/v1/",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "STORAGE_EMULATOR_HOST": url,
    }
    (tmp_path / "begun" / "9").mkdir(parents=True)
    (tmp_path / "begun" / "9" / "meta").write_text("a save that was killed")
    bucket.put(tmp_path / "begun", "loop/checkpoints")
    first, second = [[70, None], [70, None], [70, 8]], [[70, None], [70, 10]]
    ends = [*first, *second, [71, None], [70, None], [70, None], [0, None]]
    done, left = run(tmp_path, ends, "gs://bucket/loop", IN_A_BUCKET, **variables)
    assert (done.returncode, left) == (70, [[0, None]]), done.stderr
    finished = [name for name in bucket.names("loop/") if name.endswith("commit_success.txt")]
    assert [name.split("/")[2] for name in finished] == ["10", "8"]


def test_the_scripts_of_the_docs_are_shell(tmp_path):
    for path in (SCRIPT, *pathlib.Path(load.ROOT, "docs", "cluster").glob("*.sbatch")):
        subprocess.run(["bash", "-n", path], check=True)
    for name in ("docs/cluster/train.sbatch", "tools/restart.sh"):
        text = (load.ROOT / name).read_text()
        assert " | ".join(map(str, errors.RESTARTABLE[:3] + errors.RESTARTABLE[3:])) in text
