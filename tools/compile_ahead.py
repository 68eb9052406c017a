"""Compiles the whole training step for cards that are not there, and says what it asks of them.

python tools/compile_ahead.py --config=configs/faster_r50.py --target=h100 --batch_size=8
python tools/compile_ahead.py --config=configs/faster.py --target=v5e:4x4 --batch_size=32

For each bucket it prints the seconds of compilation and, of the memory of one device, what
arguments (state and batch, and the batches waiting for their turn), temporaries and code take, and
whether it fits; then a reckoning of the program: kernels, bytes and FLOP, loops that make the host
wait, and the least time that a step can take (rules: tools/compiled/reckoning.py). --json keeps the
numbers, for later versions to be compared with, --text the compiled programs themselves.

Needs neither card nor data; for TPUs `pip install ".[tpu-compiler]"`, for GPUs `".[gpu]"`, each in
an environment of its own. For GPUs nothing is tuned by trial, so that other kernels than these may
run on a card, and no seconds are measured. Without buckets in the config it takes those that would
be chosen for images of COCO's sizes. --quick compiles several times as fast and joins fewer
operations, so that temporaries come out larger. Exit code 1 tells that a bucket does not fit.
"""

import argparse
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tools.compiled import hlo, reckoning, targets

targets.prepare()

import jax
import numpy as np
from etils import epath

from mixtrain_jax import cli
from mixtrain_jax.config import load, rules
from mixtrain_jax.config.resolve import check_batch_size, parts_a_device, resolve
from mixtrain_jax.data.input import buckets
from mixtrain_jax.errors import UserError
from mixtrain_jax.inspection import memory_estimate
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import parallel, storage
from mixtrain_jax.training.optimizer import make_optimizer
from mixtrain_jax.training.update import create_state, make_step
from mixtrain_jax.types import Batch
from tools.benchmarks.host import COCO_LIKE

CLASSES, STEPS = 80, 100_000  # where the config leaves them to the data


def main(flags: argparse.Namespace) -> int:
    """Compiles for every bucket, prints what it finds, and returns the exit code."""
    config = flags.config
    card, rounds = targets.card(flags.target), _rounds(flags.rounds or ())
    devices = targets.devices(flags.target)
    if flags.quick:
        _optimize_little()
    config = assumed(config, flags.batch_size)
    parts = parts_a_device(config.mixtraining.enabled, config.accumulate)
    check_batch_size("batch_size", config.batch_size, len(devices), parts)
    each = config.batch_size // len(devices)
    print(
        f"{len(devices)} devices of {flags.target}, {each} images each, of {card.memory:.1f} GiB\n"
        f"{'bucket':>10} {'compile':>8} {'arguments':>10} {'temporary':>10} {'code':>6} {'all':>7}",
        flush=True,
    )
    found = []
    for bucket in _buckets(config, flags.bucket):
        start = time.perf_counter()
        name = f"{bucket[0]}x{bucket[1]}"
        numbers: dict[str, Any] = {"bucket": name, "fits": False}
        try:
            compiled = compile_step(config, bucket, devices)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            why = re.search(
                r"Used \S+ of \S+ hbm|[\w ]+\(\S+\) exceeds available HBM \(\S+\)", str(error)
            )
            verdict, row = f": {(why[0] if why else str(error)[:200]).strip()}", " " * 36
        else:
            sizes = _memory(compiled, _bytes(_batch(config, bucket, len(devices))) // len(devices))
            numbers |= dict(zip(("arguments", "temporaries", "code", "memory"), sizes, strict=True))
            numbers["fits"] = sizes[-1] <= card.memory
            verdict, row = "", "{:10.2f} {:10.2f} {:6.2f} {:7.2f}".format(*sizes)
            text = compiled.as_text()
            if flags.text:
                storage.write(epath.Path(flags.text) / f"{name}.txt", text.encode())
            numbers |= reckoning.summary(reckoning.look(hlo.parse(text), rounds), card.peak, each)
        numbers["compile_seconds"] = time.perf_counter() - start
        fits = "fits" if numbers["fits"] else "does not fit"
        print(f"{name:>10} {numbers['compile_seconds']:6.0f} s {row}  {fits}{verdict}", flush=True)
        if "kernels" in numbers:
            print(reckoning.table(numbers), flush=True)
        found.append(numbers)
    if flags.json:
        facts = {"target": flags.target, "images": each, "jax": jax.__version__}
        storage.write_json(flags.json, facts | {"buckets": found}, indent=1)
    return 0 if all(numbers["fits"] for numbers in found) else 1


def _optimize_little() -> None:
    """Asks for quick compilation; the option of JAX 0.10 is gone from 0.11."""
    if hasattr(jax.config, "jax_exec_time_optimization_effort"):
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    else:
        jax.config.update("jax_optimization_level", "O1")


def assumed(config: Any, batch_size: int | None = None) -> Any:
    """The config with COCO's classes, some length and a batch size, resolved without data."""
    changes = {"steps": str(config.steps or STEPS)}
    if batch_size is not None:
        changes["batch_size"] = str(batch_size)
    return resolve(load.override_all(config, changes), classes=config.model.num_classes or CLASSES)


def compile_step(config: Any, bucket: buckets.Bucket, devices: Any) -> Any:
    """Compiles the step that training runs, for a bucket (height, width) and some devices."""
    model = detector.build(config.model)
    optimizer = make_optimizer(config.optimizer, config.model.backbone, config.steps)
    state = jax.eval_shape(lambda: create_state(optimizer, detector.init(model, config.seed)))
    step = parallel.map_step(
        make_step(config, model, optimizer, parallel.sum_over_devices), devices
    )
    options: dict[str, str | bool] | None = None
    if devices[0].platform in ("cuda", "gpu"):
        # Triton's products are chosen by trial on a card; untried, some break the compiler.
        options = {"xla_gpu_enable_triton_gemm": False}
    lowered = step.lower(state, _batch(config, bucket, len(devices)))
    return lowered.compile(compiler_options=options)


def _batch(config: Any, bucket: buckets.Bucket, devices: int) -> Batch:
    """The shapes of a global batch, with a device axis."""
    mixing = config.mixtraining.enabled
    count = config.batch_size // devices // (2 if mixing else 1)
    view = memory_estimate.shapes_of_view((devices, count), bucket, config.data.max_boxes)
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
        rule = rules.bucket_list()
        if not rule.test(tuple(found)):
            raise UserError(f"--bucket={' '.join(chosen)}: {rule.text}")
        return found
    sizes = np.repeat(np.array(list(COCO_LIKE)), list(COCO_LIKE.values()), axis=0)
    chosen_buckets = buckets.for_training(sizes, config.data.train, config.steps)
    return sorted(chosen_buckets, key=lambda bucket: -bucket[0] * bucket[1])


def _rounds(given: Sequence[str]) -> dict[str, float]:
    """--rounds by pattern."""
    found = {}
    for text in given:
        pattern, equals, count = text.rpartition("=")
        if not equals or not re.fullmatch(r"\d+(\.\d+)?", count):
            raise UserError(f"--rounds={text}: write PATTERN=COUNT, such as roi_head=2")
        try:
            re.compile(pattern)
        except re.error as problem:
            raise UserError(f"--rounds={text}: no regular expression: {problem}") from None
        found[pattern] = float(count)
    return found


def _bytes(batch: Batch) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))


def _memory(compiled: Any, batch: int) -> tuple[float, float, float, float]:
    """GiB a device of arguments, temporaries and code, and of all that is held at once.

    Among the arguments are the batches [bytes of one] that wait while this one is worked on.
    """
    found = compiled.memory_analysis()
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    parts = (
        found.argument_size_in_bytes + parallel.AHEAD * batch,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )
    arguments, temporary, code = (part / targets.GIB for part in parts)
    return arguments, temporary, code, arguments + temporary + code + new / targets.GIB


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--target",
        required=True,
        help=f"{', '.join(targets.CARDS)}; of TPUs with their devices, such as v5e:4x4",
    )
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
    parser.add_argument(
        "--rounds",
        action="append",
        metavar="PATTERN=COUNT",
        help="how often loops of unknown length run whose place fits a regular expression; the "
        "first that fits counts (may be repeated); others are taken to run once",
    )
    parser.add_argument("--json", metavar="FILE", help="file to write the numbers to")
    parser.add_argument("--text", metavar="DIR", help="folder for the compiled programs")
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
