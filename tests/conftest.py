"""Settings all tests share: JAX on the CPU with a compilation cache, and skips that can fail."""

import os
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")

# Compiling takes most of the tests' time; what is compiled runs for moments.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import pytest


def no_skips(report):
    """With MIXTRAIN_NO_SKIPS=1, as in CI, a test or module that would be skipped fails."""
    expected_to_fail = hasattr(report, "wasxfail")
    if os.environ.get("MIXTRAIN_NO_SKIPS") == "1" and report.skipped and not expected_to_fail:
        report.outcome = "failed"
        report.longrepr = f"skipped, which MIXTRAIN_NO_SKIPS=1 forbids: {report.longrepr[-1]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return no_skips((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return no_skips((yield))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> pathlib.Path:
    """A folder with fourteen generated pictures to train on and six for evaluation."""
    from tools import make_shapes

    folder = tmp_path_factory.mktemp("shapes")
    make_shapes.make(folder, train=14, val=6, size=64, seed=0, drop=0, shift=0, swap=0)
    return folder


@pytest.fixture
def on_devices() -> Callable[..., str]:
    """Runs a program in a process of its own with some number of fake devices; returns its output.

    The flag that makes them would change what `pmap` and the thread pool do in all other tests.
    """

    def run(count: int, program: str, *arguments: object) -> str:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
        process = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
            cwd=pathlib.Path(__file__).parents[1],
            env=os.environ | {"XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    return run
