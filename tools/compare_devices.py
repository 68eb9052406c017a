"""Compares what a training step computes on two machines, such as a CPU and a GPU.

python tools/compare_devices.py --config=configs/cascade.py --write=cpu.json      # on the one
python tools/compare_devices.py --config=configs/cascade.py --compare=cpu.json    # on the other

Add --config.model.dtype=float32 or bfloat16; the two may differ in it alone.

The step is a whole one of MixTraining, from random weights on random images; the thresholds are so
low that a teacher of random weights keeps and adds boxes. Of every array (the features, the RPN's
outputs, the gradient of each parameter) the file keeps the norm and sums with random signs: from
these the norm of a difference follows, to about a tenth. Decisions (which boxes survive NMS, which
RoIs are drawn) may fall otherwise where two numbers are nearly equal, and then the losses behind
them and their gradients differ by more than rounding.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from mixtrain_jax import cli
from mixtrain_jax.config import load, saved
from mixtrain_jax.config.compare import differences
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.errors import UserError
from mixtrain_jax.mixtraining.metrics import as_numbers
from mixtrain_jax.mixtraining.step import compute_gradients
from mixtrain_jax.models import detector, pixels
from mixtrain_jax.runtime import storage
from mixtrain_jax.types import Batch
from tools.benchmarks import models

CLASSES = 8
PARTS = 128  # of an array, whose sums are kept
SEEN = {
    "model.roi_head.score_threshold": "0.02",
    "mixtraining.pseudo_score_threshold": "0.15",
    "mixtraining.gt_score_threshold": "0.1",
    "mixtraining.enabled": "true",
    "steps": "100",
}

Sketch = list[float]  # the norm, then the sums of PARTS parts with random signs


def sketch(name: str, array: Any) -> Sketch:
    """Returns the norm of an array, and sums of its parts with signs that its name decides."""
    flat = np.asarray(array, np.float64).ravel()
    signs = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 2, flat.size) * 2 - 1
    signed = np.pad(flat * signs, (0, -flat.size % PARTS))
    return [float(np.linalg.norm(flat)), *signed.reshape(-1, PARTS).sum(axis=0).tolist()]


def difference(names: list[str], one: Mapping[str, Sketch], two: Mapping[str, Sketch]) -> float:
    """The norm of the difference of two sets of arrays over the norm of the first, estimated.

    A sum of independent numbers with random signs is as large, in the mean of squares, as their
    norm: so are the differences of two arrays' sums.
    """
    a, b = (np.array([sketches[name] for name in names]) for sketches in (one, two))
    return float(np.linalg.norm(a[:, 1:] - b[:, 1:]) / np.linalg.norm(a[:, 0]))


def compute(asked: ConfigDict, size: tuple[int, int], batch: int) -> dict[str, Any]:
    """Computes a step's numbers on JAX's first device.

    Args:
      asked: a recipe's config.
      size: height and width of the images.
      batch: images of each half.

    Returns:
      `arrays`, sketches by name, and `metrics`, numbers by name.
    """
    config = resolve(asked, classes=CLASSES)
    model = detector.build(config.model)
    student = detector.init(model, 0)
    teacher = jax.tree.map(lambda p: p * 1.01, student)
    views = [models.view(size, batch, config.data.max_boxes, seed) for seed in range(2)]
    weak = dataclasses.replace(views[0], labels=views[0].labels % CLASSES)
    strong = dataclasses.replace(weak, image=views[1].image)  # the same boxes and matrix
    seen = pixels.normalise(Batch(weak, weak, strong), config.data.mean, config.data.std)

    @jax.jit
    def forward(student: Any, seen: Batch) -> Any:
        bound = detector.bind(model, student)
        with detector.precise(model):
            pyramid = bound.features(seen.normal.image, seen.normal.size)
            return {"features": pyramid, "RPN": bound.rpn(pyramid, seen.normal.size)}

    @jax.jit
    def gradients(student: Any, teacher: Any, seen: Batch) -> Any:
        with detector.precise(model):  # where training itself takes TF32 on GPUs
            found, metrics, _ = compute_gradients(
                student, teacher, seen, jax.random.key(0),
                model=model, config=config.mixtraining, sum_over_devices=lambda tree: tree,
            )  # fmt: skip
        return {"gradient": found}, metrics

    found, metrics = gradients(student, teacher, seen)
    named = jax.tree_util.tree_leaves_with_path(forward(student, seen) | found)
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in named}
    return {
        "arrays": {
            name: sketch(name, jnp.asarray(leaf, jnp.float32)) for name, leaf in arrays.items()
        },
        "metrics": {name: float(value) for name, value in as_numbers(metrics).items()},
    }


def table(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines of a Markdown table: how far the parts of a step lie apart, and its metrics."""
    lines = ["| | relative difference |", "|---|---|"]
    parts: dict[str, list[str]] = {}
    for name in before["arrays"]:
        words = name.split("/")
        parts.setdefault(" ".join(words[:2] if words[0] == "gradient" else words[:1]), []).append(
            name
        )
    for part, names in parts.items():
        found = difference(names, before["arrays"], now["arrays"])
        lines.append(f"| {part} | {found:.1e} |")
    lines += ["", "| metric | before | now |", "|---|---|---|"]
    return lines + [
        f"| {name} | {value:.7g} | {now['metrics'][name]:.7g} |"
        for name, value in before["metrics"].items()
    ]


def main(flags: argparse.Namespace) -> int:
    """Writes or compares; returns the exit code."""
    if not flags.write and not flags.compare:
        raise UserError("give --write=FILE, or --compare=FILE that another machine has written")
    config = load.override_all(flags.config, SEEN)
    size, batch = (flags.size, flags.size), flags.batch
    asked = {"config": config.to_dict(), "size": size, "batch": batch}
    before = read(flags.compare, asked) if flags.compare else None
    now = compute(config, size, batch)
    here = f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {config.model.dtype}"
    if flags.write:
        storage.write_json(flags.write, {"where": here, **asked, **now})
    if before:
        print(f"{here}, beside {before['where']}; {batch} + {batch} images of {size}\n")
        print("\n".join(table(before, now)))
    return 0


def read(path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what --write has written of the same step.

    Raises:
      UserError: it is of another one, or no such file.
    """
    try:
        found = json.loads(storage.read(path))
        differ = differences(saved.config_from(found["config"]), saved.config_from(asked["config"]))
        others = [each for each in differ if each.name != "model.dtype"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--compare={path}: {storage.reason(error)}") from error
    if others or found["size"] != list(asked["size"]) or found["batch"] != asked["batch"]:
        what = str(others[0]) if others else f"--size={found['size'][0]} --batch={found['batch']}"
        raise UserError(f"--compare={path} is of another step: {what}")
    return found


def parse() -> argparse.ArgumentParser:
    """Returns the program's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--write", metavar="FILE", help="keep what is computed here")
    parser.add_argument("--compare", metavar="FILE", help="that --write has written elsewhere")
    parser.add_argument("--size", type=int, default=512, help="side of the images")
    parser.add_argument("--batch", type=int, default=1, help="images of each half")
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
