"""Compiles the whole training step for TPUs that are not there, and says what it would need.

python tools/compile_tpu.py --config=configs/faster.py --topology=v5e:4x4 --batch_size=32

For each bucket it prints the seconds of compilation and, of the HBM of one device, what arguments
(state and batch), temporaries and code take, and whether it fits. Needs no TPU and no data, only
`pip install -r requirements-tpu.txt`; without buckets in the config it takes those that would be
chosen for pictures of COCO's sizes. --quick compiles several times as fast and joins fewer
operations, so that temporaries come out larger. Exit code 1 tells that a bucket does not fit.
"""

import argparse
import importlib.util
import os
import pathlib
import re
import sys
import time
from functools import partial
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

# Both must be settled before JAX is imported: the compiler's library, and that no device is asked.
_LIBTPU = importlib.util.find_spec("libtpu")
if _LIBTPU and _LIBTPU.origin:
    os.environ.setdefault(
        "TPU_LIBRARY_PATH", str(pathlib.Path(_LIBTPU.origin).parent / "libtpu.so")
    )
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # as long as nobody has a TPU, many may use its compiler
}

import jax
import numpy as np
from jax.experimental import topologies

from mixtrain_jax import cli
from mixtrain_jax.data import buckets
from mixtrain_jax.mixtraining import state as states
from mixtrain_jax.mixtraining.step import train_step
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import parallel
from mixtrain_jax.runtime.errors import UserError
from mixtrain_jax.types import Batch, View
from tools.benchmarks.host import COCO_LIKE

HBM = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB of a device, from Google's data sheets
# On v4 JAX has one device a chip; the compiler's own default is one for each of two TensorCores.
OPTIONS = {"v4": {"chip_config_name": "megacore"}}
CLASSES, STEPS = 80, 100_000  # where the config leaves them to the data
GIB = 2**30


def main(flags: argparse.Namespace) -> int:
    """Compiles for every bucket, prints a table, and returns the exit code."""
    config = flags.config
    if _LIBTPU is None:
        raise UserError("libtpu is not installed: pip install -r requirements-tpu.txt")
    chip = flags.topology.partition(":")[0]
    if chip not in HBM:
        raise UserError(f"--topology={flags.topology}: begin with one of {', '.join(HBM)}")
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=flags.topology, **OPTIONS.get(chip, {})
        )
    except Exception as error:
        raise UserError(f"--topology={flags.topology}: {str(error)[:200]}") from error
    devices = topology.devices
    if flags.quick:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    if config.model.num_classes is None:
        config.model.num_classes = CLASSES
    config.batch_size = flags.batch_size or config.batch_size
    halves = 2 if config.mixtraining.enabled else 1
    parallel.check_batch_size(
        "batch_size", config.batch_size, halves * config.accumulate, len(devices)
    )
    each = config.batch_size // len(devices)
    print(
        f"{len(devices)} devices of {chip}, {each} images each, of {HBM[chip]} GiB\n"
        f"{'bucket':>10} {'compile':>8} {'arguments':>10} {'temporary':>10} {'code':>6} {'all':>7}",
        flush=True,
    )
    fits = True
    for bucket in _buckets(config, flags.bucket):
        start = time.perf_counter()
        try:
            sizes = _memory(compile_step(config, bucket, devices))
            verdict = "fits"
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            sizes, fits = None, False
            why = re.search(
                r"Used \S+ of \S+ hbm|[\w ]+\(\S+\) exceeds available HBM \(\S+\)", str(error)
            )
            verdict = f"does not fit: {(why[0] if why else str(error)[:200]).strip()}"
        seconds = time.perf_counter() - start
        row = " " * 36 if sizes is None else "{:10.2f} {:10.2f} {:6.2f} {:7.2f}".format(*sizes)
        print(f"{bucket[0]:>5}x{bucket[1]:<4} {seconds:6.0f} s {row}  {verdict}", flush=True)
    return 0 if fits else 1


def compile_step(config: Any, bucket: buckets.Bucket, devices: Any) -> Any:
    """Compiles the step that training runs, for a bucket (height, width) and some devices."""
    model = detector.build(config.model)
    optimizer = states.make_optimizer(config, config.steps or STEPS)
    state = jax.eval_shape(
        lambda: states.create(model, optimizer, detector.init(model, config.seed))
    )
    step = parallel.map_step(
        partial(train_step, model=model, optimizer=optimizer, config=config, total=parallel.total),
        devices,
    )
    return step.lower(state, _batch(config, bucket, len(devices))).compile()


def _batch(config: Any, bucket: buckets.Bucket, devices: int) -> Batch:
    """The shapes of a global batch, with a device axis."""
    mixing = config.mixtraining.enabled
    count = config.batch_size // devices // (2 if mixing else 1)
    boxes = config.data.max_boxes

    def array(*shape: int, dtype: Any = np.float32) -> Any:
        return jax.ShapeDtypeStruct((devices, count, *shape), dtype)

    view = View(
        image=array(*bucket, 3),
        size=array(2, dtype=np.int32),
        matrix=array(3, 3),
        boxes=array(boxes, 4),
        labels=array(boxes, dtype=np.int32),
        valid=array(boxes, dtype=bool),
        index=array(dtype=np.int32),
    )
    return Batch(view, view, view) if mixing else Batch(view)


def _buckets(config: Any, chosen: list[str] | None) -> list[buckets.Bucket]:
    """Those of the command line or the config, or else chosen for COCO's sizes; largest first."""
    if chosen:
        found = []
        for text in chosen:
            match = re.fullmatch(r"(\d+)x(\d+)", text)
            if not match:
                raise UserError(f"--bucket={text}: write HEIGHTxWIDTH, such as 800x1344")
            found.append((int(match[1]), int(match[2])))
        return found
    long, low, high = config.data.train.scale
    sizes, weights = np.array(list(COCO_LIKE)), np.array(list(COCO_LIKE.values()))
    resized = buckets.resized(sizes[:, None], long, np.arange(low, high + 1)[None])
    return sorted(
        buckets.of(config, "train", resized, weights[:, None]), key=lambda b: -b[0] * b[1]
    )


def _memory(compiled: Any) -> tuple[float, float, float, float]:
    """GiB a device of arguments, temporaries and code, and of all that is held at once."""
    found = compiled.memory_analysis()
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    parts = (
        found.argument_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )
    arguments, temporary, code = (part / GIB for part in parts)
    return arguments, temporary, code, arguments + temporary + code + new / GIB


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--topology", required=True, help="chip and devices, such as v5e:4x4")
    parser.add_argument(
        "--batch_size", type=int, help="images a step, over all devices; default: the config's"
    )
    parser.add_argument(
        "--quick", action="store_true", help="spend less on optimization: an estimate from above"
    )
    parser.add_argument(
        "--bucket",
        action="append",
        metavar="HEIGHTxWIDTH",
        help="compile for this size only (may be repeated)",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
