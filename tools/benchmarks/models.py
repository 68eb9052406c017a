"""Whole detectors: forward, inference, and training steps."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from mixtrain_jax.config import load as configs
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.models import detector, pixels
from mixtrain_jax.runtime import parallel
from mixtrain_jax.training.optimizer import make_optimizer
from mixtrain_jax.training.update import create_state, make_step
from mixtrain_jax.types import Batch, View
from tools.benchmarks import measure

CLASSES = 80
_BOXES = 10  # an image, of the config's max_boxes slots
_ON_ACCELERATOR = (800, 1344)


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
      title: what it says in the table.
      config: a config file's name.
      kind: forward, inference, plain or mixed.
      size: height and width on CPU.
      gflop: the count that efficiency on CPU is measured by.
      torch: what the released PyTorch code took on CPU where the goals were set: seconds, its
        efficiency there, and peak memory in GB; None: it was not measured.
      goal: efficiency to reach on CPU.
    """

    title: str
    config: str
    kind: str
    size: tuple[int, int]
    gflop: float
    torch: tuple[float, float, float | None] | None = None
    goal: float | None = None

    @property
    def trains(self) -> bool:
        return self.kind in ("plain", "mixed")


CASES = {
    "swin": Case(
        "Swin-S + FPN forward", "cascade", "forward", (800, 1216), 454.5, (3.33, 0.77, None), 0.80
    ),
    "cascade": Case(
        "Cascade Swin-S inference",
        "cascade",
        "inference",
        (800, 1216),
        634.5,
        (6.63, 0.54, 1.3),
        0.75,
    ),
    "faster_r50": Case(
        "Faster ResNet-50 inference",
        "faster_r50",
        "inference",
        (800, 1216),
        384.5,
        (3.36, 0.65, 1.0),
        0.72,
    ),
    "cascade_plain": Case(
        "Cascade Swin-S plain step", "cascade", "plain", (512, 512), 1166.6, (12.7, 0.52, 3.6), 0.65
    ),
    "cascade_mixed": Case(
        "Cascade Swin-S MixTraining step",
        "cascade",
        "mixed",
        (512, 512),
        1445.4,
        (18.1, 0.45, 4.2),
        0.62,
    ),
    "faster_r50_plain": Case(
        "Faster ResNet-50 plain step",
        "faster_r50",
        "plain",
        (512, 512),
        623.4,
        (5.1, 0.69, 1.4),
        0.69,
    ),
    "faster_r50_mixed": Case(
        "Faster ResNet-50 MixTraining step", "faster_r50", "mixed", (512, 512), 773.6
    ),
}


def run(name: str, batch: int, budget: float, folder: Any = None) -> list[measure.Row]:
    """Measures one case.

    On CPU in float32 at the case's own size; on accelerators in bfloat16 at 800x1344.

    Args:
      name: one of CASES.
      batch: images that the student (or the detector) sees in a call; half of a MixTraining
        step's are mixed. 0: one, or two to train on.
      budget: seconds for timed calls.
      folder: where to write a trace of one more call; None: no trace.
    """
    case = CASES[name]
    fast = measure.accelerator()
    size = _ON_ACCELERATOR if fast else case.size
    batch = batch or (2 if case.trains else 1)
    changes = {
        "model.dtype": "bfloat16" if fast else "float32",
        "mixtraining.enabled": str(case.kind == "mixed"),
        "batch_size": str(batch),
        "steps": "1000",
    }
    config = resolve(configs.load(case.config, changes), classes=CLASSES)
    model = detector.build(config.model)
    call, counted = (_step if case.trains else _forward)(model, config, case.kind, size, batch)
    given = not fast and batch == (2 if case.trains else 1)
    of_torch = (given and case.torch) or (None, None, None)
    row = {
        "case": case.title,
        "size": f"{size[0]}x{size[1]}",
        "batch": batch,
        "counted": counted,
        "torch_seconds": of_torch[0],
        "torch_efficiency": of_torch[1],
        "torch_gb": of_torch[2],
        "goal": case.goal if given else None,
    }
    found = measure.efficiency(call, budget, case.gflop if given else counted)
    if folder:
        measure.trace(call, folder)
    return [row | found]


def _forward(model, config, kind: str, size: tuple[int, int], batch: int):
    """A call of the network alone or of the whole detector, and its GFLOP."""
    params = detector.init(model, 0)
    seen = view(size, batch, config.data.max_boxes, seed=0)
    seen = pixels.normalise(seen, config.data.mean, config.data.std)

    def forward(params, image, size):
        bound = detector.bind(model, params)
        pyramid = bound.features(image, size)
        if kind == "forward":
            return pyramid
        return bound.detect(pyramid, size)

    arguments = jax.device_put((params, seen.image, seen.size))
    return partial(jax.jit(forward), *arguments), measure.gflop(forward, *arguments)


def _step(model, config, kind: str, size: tuple[int, int], batch: int):
    """A call that takes one training step, and its GFLOP. Every call starts from the last."""
    optimizer = make_optimizer(config.optimizer, config.model.backbone, config.steps)
    step = partial(make_step, config, model, optimizer)
    fresh = create_state(optimizer, detector.init(model, 0))
    half = batch // 2 if kind == "mixed" else batch
    views = [view(size, half, config.data.max_boxes, seed) for seed in range(3)]
    if kind == "mixed":  # both views of the mixed half have the same boxes and the same matrix
        views[2] = dataclasses.replace(views[1], image=views[2].image)
    seen = Batch(*views) if kind == "mixed" else Batch(views[0])
    counted = measure.gflop(step(lambda tree: tree), fresh, seen)
    mapped = parallel.map_step(step(parallel.sum_over_devices))
    held = [parallel.replicate(fresh)]
    del fresh
    ((_, seen),) = parallel.prefetch(iter([seen]))

    def call() -> Any:
        held[0], metrics, _ = mapped(held[0], seen)
        return metrics

    return call, counted


def view(size: tuple[int, int], batch: int, slots: int, seed: int) -> View:
    """Random images that fill their batch, each with ten random boxes."""
    rng = np.random.default_rng(seed)
    height, width = size
    corner = rng.uniform(0, 0.8, (batch, slots, 2)) * [width, height]
    end = np.minimum(corner + rng.uniform(16, 0.5 * min(size), corner.shape), [width, height])
    fields: dict[str, Any] = dict(
        image=rng.integers(256, size=(batch, height, width, 3), dtype=np.uint8),
        shown=np.full((batch, height, width // 8), 255, np.uint8),
        size=np.tile(np.array(size, np.int32), (batch, 1)),
        matrix=np.tile(np.eye(3, dtype=np.float32), (batch, 1, 1)),
        boxes=np.concatenate([corner, end], axis=-1).astype(np.float32),
        labels=rng.integers(CLASSES, size=(batch, slots)).astype(np.int32),
        valid=np.tile(np.arange(slots) < _BOXES, (batch, 1)),
        index=np.arange(batch, dtype=np.int32),
        place=np.arange(batch, dtype=np.int32),
    )
    return View(**fields)
