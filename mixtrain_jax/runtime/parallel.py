"""Devices: the only module that knows how many there are.

Every local device takes an equal share of this host's batch; parameters are the same on all of
them. `jax.pmap` runs the step with the state un-stacked (one copy as the program sees it,
replicated by placement), so nothing has to be stacked, unstacked or undone for a checkpoint.
"""

import collections
import contextlib
import glob
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixtrain_jax.runtime import memory
from mixtrain_jax.runtime.errors import BAD_INPUT, UserError

AXIS = "batch"
LOST = 70  # the exit code of a process that had to end because another did
JOINING = 300  # seconds to wait for the other processes at the start
SILENCE = 60  # seconds after which a process that says nothing is taken for dead
_SIGNS_OF_LOSS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "oordination service")
_AHEAD = 2  # batches on the devices: the one to come, and the one after it


def total(tree: Any) -> Any:
    """Sums arrays over all devices of all hosts; only inside a mapped function."""
    return jax.lax.psum(tree, AXIS)


def place(tree: Any) -> Any:
    """Puts one copy of a tree of arrays on every local device."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def spread(batch: Any) -> Any:
    """Cuts the leading axis B of every array into [local devices, B / local devices]."""
    count = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), batch)


def prefetch(batches: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Puts batches on the devices ahead of the step that takes them.

    Copies run while the devices work on the batch before; two batches are on their way or waiting.

    Args:
      batches: trees of numpy arrays [B, ...].

    Yields:
      Each batch as it came, and as `spread` cuts it, on the devices.
    """
    shares = NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS))
    waiting: collections.deque[tuple[Any, Any]] = collections.deque()
    for batch in batches:
        waiting.append((batch, jax.device_put(spread(batch), shares)))
        if len(waiting) == _AHEAD:
            yield waiting.popleft()
    yield from waiting


def gather(tree: Any) -> Any:
    """Fetches what `spread` and a mapped function made, as numpy arrays [B, ...]."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), jax.device_get(tree))


def map_step(step: Callable, devices: Sequence | None = None) -> jax.stages.Wrapped:
    """Maps step(state, batch) -> (state, metrics, lesson) over devices; all of them if None.

    State and metrics are un-stacked, batch and lesson have a leading device axis. The old state's
    memory is reused for the new one.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None, 0),
        donate_argnums=(0,),
        devices=devices,
    )


def map_predict(predict: Callable) -> Callable:
    """Maps predict(params, view) -> result: params un-stacked, the rest with a device axis."""
    return jax.pmap(predict, axis_name=AXIS, in_axes=(None, 0), out_axes=0)


def collect(entries: list) -> list:
    """Joins the hosts' lists of plain JSON values in the hosts' order; every host gets all."""
    if jax.process_count() == 1:
        return entries
    text = np.frombuffer(json.dumps(entries).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - len(text))))
    parts = [json.loads(bytes(t[:n])) for t, n in zip(texts, sizes, strict=True)]
    return [entry for part in parts for entry in part]


@contextlib.contextmanager
def on_first(context: AbstractContextManager) -> Iterator[None]:
    """Enters a context on the first host only.

    Raises:
      UserError: entering it failed there; every host raises it.
    """
    with contextlib.ExitStack() as stack:
        trouble = []
        if jax.process_index() == 0:
            try:
                stack.enter_context(context)
            except UserError as error:
                trouble = [str(error)]
        if found := collect(trouble):
            raise UserError(found[0])
        yield


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process when it, or one it computes with, has failed; none waits for the others.

    A process that left the others by the usual way out would wait for them there, and they for it
    in their next sum over devices. So it says why in one line, and ends at once. One that hangs, or
    whose machine is gone without a word, JAX finds out after `SILENCE`, and aborts the others.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        code, line = LOST, str(error)
        if isinstance(error, UserError):
            code = BAD_INPUT
        elif any(sign in line for sign in _SIGNS_OF_LOSS):
            line = (
                "another process of this run is gone; start all of them again to go on after the "
                f"last checkpoint ({line[:150]})"
            )
        else:
            traceback.print_exc()
            line = f"{type(error).__name__}: {line}"
        print("error: " + " ".join(line.split()), file=sys.stderr, flush=True)
        sys.stdout.flush()
        if jax.process_index() == 0:
            time.sleep(2)  # when it is gone JAX aborts the others, which may be telling the same
        os._exit(code)


def say(line: str) -> None:
    """Prints a line, on the first host only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def start(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Prepares JAX: joins the other processes, and sets the compilation cache.

    Without arguments the other processes are those of the Slurm step or the Cloud TPU slice that
    this one runs in, if there is such a thing. The cache, by which a second start compiles nothing,
    is where JAX_COMPILATION_CACHE_DIR says, or in the user's cache directory.

    Args:
      coordinator: HOST:PORT where the first process can be reached by all.
      processes: how many there are.
      process: this one's number, from 0.

    Raises:
      UserError: some of the three are given and not all, they contradict each other, or the other
        processes cannot be reached.
    """
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    jax.config.update(
        "jax_compilation_cache_dir", cache or os.path.expanduser("~/.cache/mixtrain_jax")
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if cpu_only():
        memory.prepare()

    given = coordinator, processes, process
    if any(value is not None for value in given):
        _join(*given)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        _initialize(cluster_detection_method="slurm")
    elif _on_cloud_tpu():
        with contextlib.suppress(ValueError):  # a machine with a TPU that is no Cloud TPU VM
            _initialize()


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the processes that the command line names."""
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes and --process go together: give all or none")
    name, _, port = coordinator.rpartition(":")
    if not name or not port.isdecimal():
        raise UserError(f"--coordinator={coordinator}: write HOST:PORT of the first process")
    if not 0 <= process < processes:
        raise UserError(f"--process={process}: must be from 0 to {processes - 1}")
    _initialize(coordinator_address=coordinator, num_processes=processes, process_id=process)


def _initialize(**which: Any) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **which, initialization_timeout=JOINING, heartbeat_timeout_seconds=SILENCE
        )
    except RuntimeError as error:
        raise UserError(
            f"the processes of this run did not find each other: {str(error).splitlines()[0]}"
        ) from error
    # The first sum connects the processes, and each waits only seconds for the others: now they
    # come together, later one may compile for minutes longer.
    meet = jax.pmap(total, axis_name=AXIS)(np.ones(jax.local_device_count()))
    jax.block_until_ready(meet)


def _on_cloud_tpu() -> bool:
    """Whether this machine has TPUs and JAX means to use them."""
    wanted = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None


def cpu_only() -> bool:
    """Whether JAX can only compute on the CPU; known without starting its devices."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def host() -> tuple[int, int]:
    """Returns this host's number and how many hosts there are."""
    return jax.process_index(), jax.process_count()


def check_batch_size(name: str, size: int, parts: int = 1, devices: int | None = None) -> None:
    """Checks that a global batch can be shared by all devices (or so many) in equal parts.

    Raises:
      UserError: `size` is not a multiple of what is needed; the message names the config field.
    """
    devices = devices or jax.device_count()
    unit = devices * parts
    if size <= 0 or size % unit:
        raise UserError(
            f"config.{name} is {size}: make it a multiple of {unit} "
            f"({devices} devices x {parts} parts a device)"
        )
