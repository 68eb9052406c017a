"""Devices: the only module that maps functions over them, and shares batches out among them.

Every local device takes an equal share of this host's batch; parameters are the same on all of
them. The step runs by `jax.pmap`, or `jax.shard_map` (`config.mapping`), with the state un-stacked:
one copy as the program sees it, replicated by placement, so nothing has to be stacked, unstacked or
undone for a checkpoint.
"""

import collections
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixtrain_jax.errors import BAD_INPUT, BUG, LOST, LostPeer, UserError
from mixtrain_jax.runtime import compilation_cache, hosts, launchers, watch

AXIS = "batch"
JOINING = 300  # seconds to wait for the other processes at the start
# Seconds after which JAX takes a silent process for dead; half of it can be enough. It has to be
# longer than `watch.SILENT`, so that the watches, which name the host, report first.
HEARTBEAT_TIMEOUT = 120
_SIGNS_OF_LOSS = ("UNAVAILABLE", "DEADLINE_EXCEEDED")  # besides those of `hosts.tells_of_loss`
AHEAD = 2  # batches on the devices: the one to come, and the one after it


def sum_over_devices(tree: Any) -> Any:
    """Sums arrays over all devices of all hosts; only inside a mapped function."""
    return jax.lax.psum(tree, AXIS)


def replicate(tree: Any) -> Any:
    """Puts one copy of a tree of arrays on every local device."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch: Any) -> Any:
    """Cuts the leading axis B of every array into [local devices, B / local devices]."""
    count = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), batch)


def prefetch(batches: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Puts batches on the devices ahead of the step that takes them.

    Copies run while the devices work on the batch before; two batches are on their way or waiting.

    Args:
      batches: trees of numpy arrays [B, ...].

    Yields:
      Each batch as it came, and as `shard` cuts it, on the devices.
    """
    shares = NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS))
    waiting: collections.deque[tuple[Any, Any]] = collections.deque()
    while True:
        watch.report(doing="waiting for images")
        batch = next(batches, None)
        if batch is None:
            break
        waiting.append((batch, jax.device_put(shard(batch), shares)))
        watch.report(doing="computing")
        if len(waiting) == AHEAD:
            yield waiting.popleft()
    yield from waiting


def gather(tree: Any) -> Any:
    """Fetches what `shard` and a mapped function made, as numpy arrays [B, ...]."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), jax.device_get(tree))


def map_step(step: Callable[..., Any], devices: Sequence[Any] | None = None) -> jax.stages.Wrapped:
    """Maps step(state, batch) -> (state, metrics, output) over devices; all of them if None.

    State and metrics are un-stacked, batch and output have a leading device axis. The old state's
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


def shard_map_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a step as `map_step` does, by jit of shard_map over the devices of all processes.

    The state stays one array for all devices from step to step. `pmap` makes every leaf anew on its
    way in and out where there are several processes, which for a thousand leaves takes the main
    thread longer than a step should take the devices.
    """
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    same, cut = PartitionSpec(), PartitionSpec(AXIS)

    def on_one(state: Any, batch: Any) -> tuple[Any, Any, Any]:
        state, metrics, output = step(state, jax.tree.map(lambda x: x[0], batch))
        return state, metrics, jax.tree.map(lambda x: x[None], output)

    mapped = jax.jit(
        jax.shard_map(
            on_one, mesh=mesh, in_specs=(same, cut), out_specs=(same, same, cut), check_vma=False
        ),
        donate_argnums=0,
    )

    def run(state: Any, batch: Any) -> tuple[Any, Any, Any]:
        everywhere, parts = NamedSharding(mesh, same), NamedSharding(mesh, cut)
        state, metrics, output = mapped(_of_all(state, everywhere), _of_all(batch, parts))
        return state, metrics, of_this_host(output)

    return run


def of_this_host(tree: Any) -> Any:
    """Arrays over the devices of all processes as arrays over this one's; nothing is copied."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))

    def local(array: Any) -> Any:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return array
        spec = PartitionSpec() if array.is_fully_replicated else PartitionSpec(AXIS)
        shape = array.shape
        if not array.is_fully_replicated:
            shape = (jax.local_device_count(), *shape[1:])
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, spec), shards)

    return jax.tree.map(local, tree)


def _of_all(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays over this process's devices as arrays over all; nothing is copied."""

    def everywhere(array: Any) -> Any:
        if array.sharding == sharding:
            return array
        shape = array.shape
        if not sharding.is_fully_replicated:
            shape = (jax.device_count(), *shape[1:])
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    return jax.tree.map(everywhere, tree)


# By `config.mapping`.
MAPPINGS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "pmap": map_step,
    "shard_map": shard_map_step,
}


def map_predict(predict: Callable[..., Any]) -> Callable[..., Any]:
    """Maps predict(params, view) -> result: params un-stacked, the rest with a device axis."""
    return jax.pmap(predict, axis_name=AXIS, in_axes=(None, 0), out_axes=0)


def collect(entries: list[Any]) -> list[Any]:
    """Joins the hosts' lists of plain JSON values in the hosts' order; every host gets all."""
    if jax.process_count() == 1:
        return entries
    # Here, and not in a sum over devices, which gives up sooner.
    watch.report_waiting(watch.FOR_OTHERS)
    hosts.from_all("collect", True)
    watch.report_waiting("computing")
    text = np.frombuffer(json.dumps(entries).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - len(text))))
    parts = [json.loads(bytes(t[:n])) for t, n in zip(texts, sizes, strict=True)]
    return [entry for part in parts for entry in part]


@contextlib.contextmanager
def abort_all_on_error() -> Iterator[None]:
    """Ends this process when it, or one it computes with, has failed; none waits for the others.

    A process that left the others by the usual way out would wait for them there, and they for it
    in their next sum over devices. So it says why in one line, there and to the others, and ends at
    once; their watches end them with the same exit code. One that hangs, or whose machine
    is gone without a word, is found out by the watches, and after `HEARTBEAT_TIMEOUT` by JAX.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            watch.finish()  # the caller may go on; no watch outlives the run
            raise
        if not isinstance(error, Exception):
            raise
        code, line = BUG, f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            code, line = BAD_INPUT, str(error)
        elif isinstance(error, LostPeer):
            code, line = error.code, str(error)
        elif _tells_of_loss(error):
            code = LOST
            line = (
                "another process of this run is gone; start all of them again to resume after the "
                f"last checkpoint ({line[:150]})"
            )
            time.sleep(4 * watch.BEAT)  # in which the watch may hear which it was, and why
        else:
            traceback.print_exc()
        watch.silence()  # one line is enough
        line = " ".join(line.split())
        print(f"error: {line}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if code != LOST:
            watch.tell_end(code, line)
        if jax.process_index() == 0:
            time.sleep(3 * watch.BEAT)  # the service ends with this process; let the others hear
        os._exit(code)
    watch.finish()


def _tells_of_loss(error: BaseException) -> bool:
    signs = any(sign in str(error) for sign in _SIGNS_OF_LOSS)
    return hosts.tells_of_loss(error) or (signs and hosts.count() > 1)


def say(line: str) -> None:
    """Prints a line, on the first host only."""
    if jax.process_index() == 0:
        print(line, flush=True)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Says, on the first host, that something long begins, and then how long it took."""
    say(f"{what} ...")
    begin = time.perf_counter()
    yield
    say(f"{what} took {time.perf_counter() - begin:.1f} s")


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    devices: bool = True,
) -> None:
    """Joins the other processes, starts the devices, and sets the compilation cache.

    Without arguments the other processes are those of the Slurm step, the Open MPI or Kubernetes
    job or the Cloud TPU slice that this one runs in, if there is such a thing.

    Args:
      coordinator: HOST:PORT where the first process can be reached by all.
      processes: how many there are.
      process: this one's number, from 0.
      devices: whether JAX's devices will be used; a program alone leaves them to others if not.

    Raises:
      UserError: some of the three are given and not all, they contradict each other, the other
        processes cannot be reached, or JAX's devices cannot be started.
    """
    cache = compilation_cache.prepare()
    given = coordinator, processes, process
    if jax.distributed.is_initialized():  # a further run of this program
        pass
    elif any(value is not None for value in given):
        _join(*given)
    elif (how := launchers.found(os.environ, launchers.gpus())) is not None:
        _initialize(**how)
    elif launchers.on_cloud_tpu(os.environ) and not _alone_already():
        with contextlib.suppress(ValueError):  # a machine with a TPU that is no Cloud TPU VM
            _initialize()
    if devices and hosts.count() == 1:
        _start_devices()
    watch.start()
    if hosts.count() > 1 and jax.default_backend() == "gpu":
        compilation_cache.keep_if_shared(cache)


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the processes that the command line names."""
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes and --process go together: give all or none")
    name, _, port = coordinator.rpartition(":")
    if not name or not port.isdecimal():
        raise UserError(f"--coordinator={coordinator}: write HOST:PORT of the first process")
    if not 0 <= process < processes:
        raise UserError(f"--process={process}: must be from 0 to {processes - 1}")
    _initialize(
        coordinator_address=coordinator,
        num_processes=processes,
        process_id=process,
        cluster_detection_method="deactivate",  # no launcher is asked, as the flags say it all
        local_device_ids=launchers.local_devices(os.environ, launchers.gpus()),
    )


def _initialize(**which: Any) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **which, initialization_timeout=JOINING, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
        )
    except RuntimeError as error:
        raise UserError(
            f"the processes of this run did not find each other: {str(error).splitlines()[0]}"
        ) from error
    # The first sum connects the processes, and each waits only seconds for the others: now they
    # come together, later one may compile for minutes longer.
    try:
        _start_devices()
        meet = jax.pmap(sum_over_devices, axis_name=AXIS)(np.ones(jax.local_device_count()))
        jax.block_until_ready(meet)
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        if not isinstance(error, UserError):
            line = f"the processes of this run cannot sum (NCCL_DEBUG=INFO tells more): {line}"
        print(f"error: {line}", file=sys.stderr, flush=True)
        # Any other way out waits for the other processes.
        os._exit(BAD_INPUT if isinstance(error, UserError) else LOST)


def _start_devices() -> None:
    """Starts JAX's devices; raises UserError if those that were asked for do not start here."""
    asked = os.environ.get("JAX_PLATFORMS")
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter of what is not installed
        if _tells_of_loss(error):
            raise
        where = f"JAX_PLATFORMS={asked}: " if asked else ""
        why = "".join(str(error).splitlines()[:1])
        raise UserError(f"{where}JAX's devices do not start here. {why}") from error
    if found == "cpu" and not cpu_only() and not asked:
        logging.warning(
            "JAX was installed for accelerators and finds none, so this runs on the CPU: "
            "JAX_PLATFORMS=cuda (or tpu) tells why, JAX_PLATFORMS=cpu that it is meant."
        )


def _alone_already() -> bool:
    """Whether JAX's devices have started, and this process has all there are.

    Raises:
      UserError: it has some of several hosts', which can no longer join.
    """
    from jax._src import xla_bridge

    if not xla_bridge.backends_are_initialized():
        return False
    if jax.process_count() > 1:
        raise UserError(
            "JAX was used before this run, and so the hosts cannot join; start a fresh process on "
            "each, and train first"
        )
    return True


def describe() -> str:
    """One line: how many processes and devices compute together, and what the devices are."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    count, here = jax.device_count(), jax.local_device_count()
    return (
        f"{jax.process_count()} host{'s' if jax.process_count() > 1 else ''}, {count} "
        f"device{'s' if count > 1 else ''} ({', '.join(kinds)}), {here} on this host"
    )


def cpu_only() -> bool:
    """Whether JAX can only compute on the CPU; known without starting its devices."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def device_count() -> int:
    """Returns how many devices all hosts have together."""
    return jax.device_count()


def host() -> tuple[int, int]:
    """Returns this host's number and how many hosts there are."""
    return jax.process_index(), jax.process_count()
