"""How memory is handed out and used where XLA computes on the CPU.

XLA asks there for its large buffers anew in every step. By default glibc maps each of them and
gives it back to the system at once, which then has to zero every page again: for a small model a
third of a step's time. Kept, the pages are used again. They are kept in a few arenas: many would
keep more than is needed, and a single one is left in so many pieces by XLA's compiler that to
look for room among them takes a fifth of a small model's steps.
"""

import ctypes
import os

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1
_ARENAS = 3
_LOW_MEMORY = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def prepare() -> None:
    """Does all of this for a process that computes on the CPU, before JAX's devices start."""
    keep_freed()
    prefer_low_memory_schedule()


def keep_freed() -> bool:
    """Keeps what is freed for the next step; returns whether the C library could be told so."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _NEVER), mallopt(_ARENA_MAX, _ARENAS)]
    )


def prefer_low_memory_schedule() -> None:
    """Has XLA order operations so that less memory is held at once, before JAX's devices start.

    By default it orders them so that more can run at once, for more cores than a device has here.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _LOW_MEMORY not in flags:
        os.environ["XLA_FLAGS"] = f"{_LOW_MEMORY} {flags}"  # those of the user come last, and win
