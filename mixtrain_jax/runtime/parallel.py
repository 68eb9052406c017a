"""Devices: the only module that knows how many there are.

Every local device takes an equal share of this host's batch; parameters are the same on all of
them. `jax.pmap` runs the step with the state un-stacked (one copy as the program sees it,
replicated by placement), so nothing has to be stacked, unstacked or undone for a checkpoint.
"""

import collections
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixtrain_jax.runtime.errors import UserError

AXIS = "batch"
_ASK_EVERY = 10  # steps
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


def map_step(step: Callable) -> Callable:
    """Maps step(state, batch) -> (state, metrics, lesson) over devices.

    State and metrics are un-stacked, batch and lesson have a leading device axis. The old state's
    memory is reused for the new one.
    """
    return jax.pmap(
        step, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, None, 0), donate_argnums=(0,)
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


def any_host(asked: bool, step: int) -> bool:
    """Whether any host was asked to stop, the same answer on all; several ask now and then."""
    if jax.process_count() == 1:
        return asked
    if step % _ASK_EVERY:
        return False
    return bool(multihost_utils.process_allgather(np.array(asked)).any())


def start() -> None:
    """Prepares JAX: the compilation cache, so that a second start compiles nothing.

    The cache is where JAX_COMPILATION_CACHE_DIR says, or in the user's cache directory.
    """
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    jax.config.update(
        "jax_compilation_cache_dir", cache or os.path.expanduser("~/.cache/mixtrain_jax")
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def host() -> tuple[int, int]:
    """Returns this host's number and how many hosts there are."""
    return jax.process_index(), jax.process_count()


def check_batch_size(name: str, size: int, parts: int = 1) -> None:
    """Checks that a global batch can be shared by all devices in equal parts.

    Raises:
      UserError: `size` is not a multiple of what is needed; the message names the config field.
    """
    unit = jax.device_count() * parts
    if size <= 0 or size % unit:
        raise UserError(
            f"config.{name} is {size}: make it a multiple of {unit} "
            f"({jax.device_count()} devices x {parts} parts a device)"
        )
