"""Settings all tests share: JAX on the CPU with a compilation cache, and skips that can fail.

MIXTRAIN_TEST_PLATFORM=cuda runs tests on a GPU (docs/benchmarks.md says which of them make sense
there).
"""

import ctypes
import gc
import os
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = os.environ.get("MIXTRAIN_TEST_PLATFORM", "cpu")
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # workers share a GPU
os.environ["EPATH_USE_TF"] = "false"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")

# Compiling takes most of the tests' time; what is compiled runs for moments. MIXTRAIN_AS_USERS=1,
# as `make test` sets it for golden tests and commands, compiles as users have it.
os.environ.setdefault("XLA_FLAGS", "")
if os.environ.get("MIXTRAIN_AS_USERS") != "1" and os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    if version("jax").startswith("0.10."):  # later ones end at this flag: they have no other way
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import pytest

# Files that take a worker minutes come first, so that no worker waits for one of them at the end.
LONG = ("faults", "processes", "step", "hosts", "api", "experiment", "audit")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


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


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped():
    """Keeps the memory of a worker bounded: what a file's tests compiled goes with them."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@pytest.fixture(autouse=True)
def the_process_is_left_as_it_was():
    """What a test sets for its process ends with it, so that the order of tests decides nothing."""
    from absl import logging
    from PIL import Image

    environment, pixels, level = dict(os.environ), Image.MAX_IMAGE_PIXELS, logging.get_verbosity()
    yield
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(
        {name: value for name, value in environment.items() if os.environ.get(name) != value}
    )
    Image.MAX_IMAGE_PIXELS = pixels
    logging.set_verbosity(level)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> pathlib.Path:
    """A folder with fourteen generated pictures to train on and six for evaluation."""
    from tools import make_shapes

    folder = tmp_path_factory.mktemp("shapes")
    make_shapes.make(folder, train=14, val=6, size=64, seed=0, drop=0, shift=0, swap=0)
    return folder


@pytest.fixture(scope="session")
def _bucket():
    """The bucket of all tests; they take names of their own."""
    from tests.bucket import Bucket

    bucket = Bucket()
    yield bucket
    bucket.close()


@pytest.fixture
def bucket(the_process_is_left_as_it_was, _bucket):
    """gs://bucket on loopback, without faults at first."""
    _bucket.faults.clear()
    os.environ.update(_bucket.environment)  # also for commands in processes of their own
    return _bucket


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
