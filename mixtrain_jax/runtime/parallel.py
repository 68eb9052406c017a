"""Devices: the only module that maps functions over them, and shares batches out among them.

Every local device takes an equal share of this host's batch; parameters are the same on all of
them. The step runs by `jax.pmap`, or `jax.shard_map` (`config.mapping`), with the state un-stacked:
one copy as the program sees it, replicated by placement, so nothing has to be stacked, unstacked or
undone for a checkpoint.
"""

import collections
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixtrain_jax.runtime import hosts, watch

AXIS = "batch"
AHEAD = 2  # batches on the devices: the one to come, and the one after it


def sum_over_devices(tree: Any) -> Any:
    """Sums arrays over all devices of all hosts; only inside a mapped function."""
    return jax.lax.psum(tree, AXIS)


def connect() -> None:
    """Sums over all devices once, which connects them."""
    sums = jax.pmap(sum_over_devices, axis_name=AXIS)(np.ones(jax.local_device_count()))
    jax.block_until_ready(sums)


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


def describe() -> str:
    """One line: how many processes and devices compute together, and what the devices are."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    count, here = jax.device_count(), jax.local_device_count()
    return (
        f"{jax.process_count()} host{'s' if jax.process_count() > 1 else ''}, {count} "
        f"device{'s' if count > 1 else ''} ({', '.join(kinds)}), {here} on this host"
    )


def device_count() -> int:
    """Returns how many devices all hosts have together."""
    return jax.device_count()


def host() -> tuple[int, int]:
    """Returns this host's number and how many hosts there are."""
    return jax.process_index(), jax.process_count()
