"""How the benchmark measures: time, memory, the matmul rate, and the arithmetic of a program."""

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

Row = dict[str, Any]
_LEAST, _MOST = 3, 100  # timed calls


def accelerator() -> bool:
    """Whether JAX runs on something other than the CPU."""
    return jax.default_backend() != "cpu"


def seconds(
    call: Callable[[], Any], budget: float, wait: Callable[[Any], Any] = jax.block_until_ready
) -> Row:
    """Times a call that has been warmed up, each one until its result is there.

    Args:
      call: what to time.
      budget: seconds after which no further call begins; at least three are made.
      wait: waits for a result.

    Returns:
      `first`, the first call, which compiles; `median`, `low` and `high` of `runs` later ones.
    """
    first = _once(call, wait)
    _once(call, wait)  # allocators and caches settle
    reset_peak()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < _LEAST or (time.perf_counter() < end and len(times) < _MOST):
        times.append(_once(call, wait))
    return {
        "first": first,
        "median": statistics.median(times),
        "low": min(times),
        "high": max(times),
        "runs": len(times),
    }


def _once(call: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
    begin = time.perf_counter()
    wait(call())
    return time.perf_counter() - begin


def matmul_rate() -> float:
    """GFLOP/s of a square matrix product of random numbers, the best of five.

    4096^3 in float32 on CPU; on accelerators 8192^3 in bfloat16.
    """
    side, dtype = (8192, jnp.bfloat16) if accelerator() else (4096, jnp.float32)
    left, right = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in range(2))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(left, right))
    best = min(_once(lambda: product(left, right), jax.block_until_ready) for _ in range(5))
    return 2 * side**3 / best / 1e9


def efficiency(call: Callable[[], Any], budget: float, gflop: float) -> Row:
    """Times a call of `gflop` GFLOP between two measurements of the matmul rate.

    Returns:
      What `seconds` does, `peak_gb`, `matmul` (mean GFLOP/s before and after) and `efficiency`,
      gflop / median / matmul.
    """
    before = matmul_rate()
    found = seconds(call, budget)
    peak = peak_gb()
    rate = (before + matmul_rate()) / 2
    return found | {
        "gflop": gflop,
        "peak_gb": peak,
        "matmul": rate,
        "efficiency": gflop / found["median"] / rate,
    }


def reset_peak() -> None:
    """Lets `peak_gb` begin anew, where Linux can; XLA's compiler is then left out of it."""
    gc.collect()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_gb() -> float:
    """Peak memory in GB: of the first accelerator, or else resident of this process.

    On Linux resident memory is what the kernel has seen since `reset_peak`; on accelerators the
    peak is since the start of the process.
    """
    if accelerator():
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e9
    return math.nan


def gflop(function: Callable, *arguments: Any) -> float:
    """Counts the matrix products and convolutions of a function, a multiply-add as two.

    Everything else is left out, as model FLOPs are usually given: elementwise work, and loops of
    unknown length (RoIAlign's over tiles). Zeros that a gradient of a strided convolution inserts
    are not counted.
    """
    return _flop(jax.make_jaxpr(function)(*arguments).jaxpr) / 1e9


def _flop(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        params, name = equation.params, equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2.0 * equation.outvars[0].aval.size * inner
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            work = 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
            total += work / np.prod(params["lhs_dilation"])
        elif name == "scan":
            total += params["length"] * _flop(params["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(_flop(branch.jaxpr) for branch in params["branches"])
        elif name != "while":
            for inner in jax.extend.core.jaxprs_in_params(params):
                total += _flop(inner)
    return total


def trace(call: Callable[[], Any], folder: Any) -> None:
    """Calls once more and writes what ran to a folder, for TensorBoard and Perfetto."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # its events would fill the trace before the call begins
    with jax.profiler.trace(str(folder), profiler_options=options):
        jax.block_until_ready(call())
