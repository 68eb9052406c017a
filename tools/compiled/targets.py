"""Cards that are not there: how their compiler is reached, and what they can do at most."""

import dataclasses
import importlib.util
import os
import pathlib
from typing import Any

from mixtrain_jax.errors import UserError
from tools.compiled.reckoning import Peak

GIB = 2**30
# On v4 JAX has one device a chip; the compiler's own default is one for each of two TensorCores.
_TPU_OPTIONS = {"v4": {"chip_config_name": "megacore"}}


@dataclasses.dataclass(frozen=True)
class Card:
    """A kind of device, from its maker's data sheet.

    Attributes:
      memory: GiB.
      peak: FLOP and bytes a second.
      facts: of a GPU, what its compiler is told: name, cores, float32 units of a core, clock in
        GHz, bytes of L2 cache, of shared memory of a core and of a block, compute capability.
    """

    memory: float
    peak: Peak
    facts: tuple[str, int, int, float, int, int, int, tuple[int, int]] | None = None


# TPUs compute float32 products as bfloat16 by default. GPUs as TF32, half as fast.
CARDS = {
    "h100": Card(
        84_942_979_072 / GIB,
        Peak(989e12, 495e12, 3.35e12),
        ("NVIDIA H100 80GB HBM3", 132, 128, 1.98, 52_428_800, 233_472, 232_448, (9, 0)),
    ),
    "h200": Card(
        151_397_597_184 / GIB,
        Peak(989e12, 495e12, 4.8e12),
        ("NVIDIA H200 141GB HBM3e", 132, 128, 1.98, 52_428_800, 233_472, 232_448, (9, 0)),
    ),
    "a100": Card(
        85_100_068_864 / GIB,
        Peak(312e12, 156e12, 2.039e12),
        ("NVIDIA A100-SXM4-80GB", 108, 64, 1.41, 41_943_040, 167_936, 166_912, (8, 0)),
    ),
    "l4": Card(
        23_566_352_384 / GIB,
        Peak(121e12, 60e12, 0.3e12),
        ("NVIDIA L4", 58, 128, 2.04, 50_331_648, 102_400, 101_376, (8, 9)),
    ),
    "v4": Card(32, Peak(275e12, 275e12, 1.2e12)),
    "v5e": Card(16, Peak(197e12, 197e12, 0.82e12)),
    "v5p": Card(95, Peak(459e12, 459e12, 2.765e12)),
    "v6e": Card(32, Peak(918e12, 918e12, 1.64e12)),
}


def prepare() -> None:
    """Lets JAX ask no device, and find the TPUs' compiler; before JAX is imported."""
    libtpu = importlib.util.find_spec("libtpu")
    if libtpu and libtpu.origin:
        library = pathlib.Path(libtpu.origin).parent / "libtpu.so"
        os.environ.setdefault("TPU_LIBRARY_PATH", str(library))
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # while nobody has a TPU many may use its compiler
    }


def card(target: str) -> Card:
    """The card that --target names; raises UserError if it is none."""
    name, _, shape = target.partition(":")
    if name not in CARDS:
        raise UserError(f"--target={target}: begin with one of {', '.join(CARDS)}")
    if bool(shape) == (CARDS[name].facts is not None):
        raise UserError(
            f"--target={target}: write a TPU with its devices, such as v5e:4x4, a GPU without"
        )
    return CARDS[name]


def devices(target: str) -> list[Any]:
    """The devices to compile for; raises UserError where their compiler is missing or refuses."""
    found, name = card(target), target.partition(":")[0]
    package, extra = ("libtpu", "tpu-compiler") if found.facts is None else ("jax_plugins", "gpu")
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"the compiler for {name} is not installed: pip install 'mixtrain_jax[{extra}]'"
        )
    from jax.experimental import topologies

    try:
        if found.facts is None:
            topology = topologies.get_topology_desc(
                platform="tpu", topology_name=target, **_TPU_OPTIONS.get(name, {})
            )
        else:
            topology = topologies.get_topology_desc(
                platform="cuda", topology_name="", target_config=config(found), topology="1x1x1"
            )
    except Exception as error:  # of a compiler, which raises anything
        raise UserError(f"--target={target}: {str(error)[:200]}") from error
    return list(topology.devices)


def config(found: Card) -> str:
    """A GPU as XLA's GpuTargetConfigProto has it, in its text form."""
    assert found.facts is not None
    name, cores, units, clock, cache, shared, block, (major, minor) = found.facts
    extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": shared,
        "threads_per_core_limit": 1536 if (major, minor) == (8, 9) else 2048,
        "core_count": cores,
        "fpus_per_core": units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": round(found.peak.bandwidth),
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": round(found.memory * GIB),
        "shared_memory_per_block_optin": block,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "device_vendor": '"NVIDIA Corporation"',
        "name": f'"{name}"',
        "driver_version": '"13.0.0"',
        "runtime_version": '"12.8.0"',
        "compile_time_toolkit_version": '"12.8.0"',
        "dnn_version": '"9.10.0"',
    }
    lines = [f"  {field}: {value}" for field, value in fields.items()]
    capability = f"major: {major} minor: {minor} feature_extension: {extension}"
    return "\n".join(
        [
            "gpu_device_info {",
            *lines,
            f"  cuda_compute_capability {{ {capability} }}",
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 patch: 0 }",
            f'device_description_str: "{name}"',
        ]
    )
