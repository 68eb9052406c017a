"""What there is to compute on: devices, their memory, cores."""

import dataclasses
import os
import pathlib
import re
from typing import Any

import jax

from mixtrain_jax.runtime import launchers

# Of control groups, version 2 and 1: what a container may hold, what it holds, and the line of
# memory.stat that says how much of this are files that were read, which make room when asked to.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
_AMPERE = 8.0  # the compute capability of the first GPUs with units for bfloat16


@dataclasses.dataclass(frozen=True)
class Machine:
    """This host's share of what a program computes on.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      kind: of device, as JAX names it.
      devices: of all hosts.
      local_devices: of this host.
      memory: bytes that one device can still take; None: unknown.
      cores: processors this process may use.
      bfloat16: whether the devices have units for products of bfloat16, or it is no matter.
    """

    platform: str
    kind: str
    devices: int
    local_devices: int
    memory: int | None
    cores: int
    bfloat16: bool = True

    def __str__(self) -> str:
        named = f"{self.devices} {self.platform.upper()} device{'s' * (self.devices > 1)}"
        if self.platform != "cpu":
            named += f" ({self.kind})"
        free = "" if self.memory is None else f", {self.memory / 2**30:.1f} GiB free for each"
        return f"{named}{free}, {self.cores} cores"


def this_machine() -> Machine:
    """Looks at this machine; starts JAX's devices."""
    local = jax.local_devices()
    first = local[0]
    return Machine(
        platform=first.platform,
        kind=first.device_kind,
        devices=jax.device_count(),
        local_devices=len(local),
        memory=_host_memory(len(local)) if first.platform == "cpu" else _device_memory(first),
        cores=cores(),
        bfloat16=_has_bfloat16(first),
    )


def _has_bfloat16(device: Any) -> bool:
    """False for NVIDIA GPUs before Ampere; other devices tell no capability of this form."""
    capability = str(getattr(device, "compute_capability", ""))
    return not re.fullmatch(r"\d+\.\d+", capability) or float(capability) >= _AMPERE


def cores() -> int:
    """How many processors this process may use: its share, where a launcher started several."""
    everywhere = os.cpu_count() or 1
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else everywhere
    tasks, _ = launchers.tasks_here(os.environ)
    on_node = os.environ.get("SLURM_CPUS_ON_NODE", "")
    of_job = int(on_node) if on_node.isdecimal() else everywhere
    return min(free, max(1, of_job // tasks))


def free_memory() -> int | None:
    """Bytes of this host's memory that are free, this process's share; None: it is not known."""
    return _host_memory(1)


def _device_memory(device: jax.Device) -> int | None:
    """Bytes that JAX may still take of a device's own memory."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))


def _host_memory(devices: int) -> int | None:
    """Bytes of the host's memory that are free, shared by its tasks and their devices.

    None: it is not known.
    """
    available = _available()
    if available is None:
        return None
    free = [available]
    for folder, limit, used, cached in _GROUPS:
        try:
            most, now = (int(pathlib.Path(folder, name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
        free.append(most - now + (_number_in(pathlib.Path(folder, "memory.stat"), cached) or 0))
    if min(free) <= 0:  # it is counted otherwise than here
        return None
    tasks, _ = launchers.tasks_here(os.environ)
    return min(free) // (devices * tasks)


def _available() -> int | None:
    kilobytes = _number_in(pathlib.Path("/proc/meminfo"), "MemAvailable:")
    return None if kilobytes is None else 1024 * kilobytes


def _number_in(path: pathlib.Path, name: str) -> int | None:
    """The number that a file has after a name at the beginning of a line; None without one."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None
