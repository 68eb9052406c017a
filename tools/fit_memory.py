"""Compares the estimate of a training step's memory with what XLA says, and fits it anew.

python tools/fit_memory.py [--only=check]

Compiles training steps for the CPU: those of FIT give the constants of
mixtrain_jax/inspection/memory_estimate.py, those of CHECK were not fitted to. For each it prints
the MiB of XLA's memory_analysis (arguments and temporaries, and what outputs need beyond the
donated state), the estimate, and their ratio. Exit code 1 tells that a ratio of CHECK is off by
more than 30%. XLA is asked for its least optimization of machine code, which changes no buffer.
"""

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false --xla_backend_optimization_level=0"
)

import jax

from mixtrain_jax import cli
from mixtrain_jax.config import load
from mixtrain_jax.inspection import memory_estimate
from tools import compile_ahead

MIB = 2**20
LIMIT = 0.3
_SMALL_SWIN = (
    "model.backbone.embed_dim=48",
    "model.backbone.depths=(2,2,4,2)",
    "model.fpn.channels=64",
    "model.rpn.channels=64",
    "model.roi_head.fc_channels=256",
    "model.roi_head.samples=64",
    "model.rpn.train_proposals=128",
    "model.rpn.train_candidates=256",
)
_GROUP = ("model.backbone.norm=group", "model.backbone.style=pytorch")
# Recipe, bucket, and fields that differ; batch_size is of one device.
FIT = (
    ("quickstart:plain", (160, 160), ("batch_size=8",)),
    ("quickstart", (160, 224), ("batch_size=8",)),
    ("quickstart:plain", (256, 256), ("batch_size=4", "model.remat=True")),
    ("faster:plain", (224, 224), ("batch_size=2", "model.dtype=float32", *_SMALL_SWIN)),
    ("faster_r50:plain", (256, 256), ("batch_size=2", "model.dtype=float32", *_GROUP)),
)
CHECK = (
    ("quickstart", (160, 160), ("batch_size=8",)),
    ("quickstart", (160, 224), ("batch_size=16", "accumulate=2")),
    ("faster_r50:plain", (320, 320), ("batch_size=1", "model.dtype=bfloat16", *_GROUP)),
    ("faster", (256, 320), ("batch_size=4", "model.remat=True", *_SMALL_SWIN)),
    ("cascade:plain", (224, 320), ("batch_size=2", "model.dtype=float32", *_SMALL_SWIN)),
)


def main(flags: argparse.Namespace) -> int:
    """Compiles, prints the table, and returns the exit code."""
    worst = 0.0
    for title, group in (("fit", FIT), ("check", CHECK)):
        if flags.only not in (None, title):
            continue
        print(f"{title}: MiB by XLA, estimated, ratio; factor for KEPT", flush=True)
        for name, bucket, changes in group:
            start = time.perf_counter()
            measured, estimate = compare(name, bucket, changes)
            seconds = time.perf_counter() - start
            ratio = estimate.step / measured
            held = measured - estimate.step + estimate.activations
            print(
                f"{measured / MIB:8.0f} {estimate.step / MIB:8.0f} {ratio:6.2f} "
                f"{held / estimate.activations:6.2f}  {name} {bucket[0]}x{bucket[1]} "
                f"{' '.join(changes[:3])}  ({seconds:.0f} s)",
                flush=True,
            )
            if title == "check":
                worst = max(worst, abs(ratio - 1))
    return int(worst > LIMIT)


def compare(
    name: str, bucket: tuple[int, int], changes: tuple[str, ...]
) -> tuple[int, memory_estimate.Estimate]:
    """Bytes that XLA says a compiled step takes, and the estimate."""
    config = compile_ahead.assumed(load.load(name, changes))
    estimate = memory_estimate.of_training(config, bucket, devices=1)
    found = compile_ahead.compile_step(config, bucket, jax.devices()[:1]).memory_analysis()
    new = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
    return found.argument_size_in_bytes + found.temp_size_in_bytes + new, estimate


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__, takes_config=False)
    parser.add_argument("--only", choices=("fit", "check"), help="one of the two groups")
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
