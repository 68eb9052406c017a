"""Each operation alone, at the sizes of an 800x1216 picture."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.models import rpn
from mixtrain_jax.ops import anchors, matching, nms, roi_align
from tools.benchmarks import measure

SIZE = (800, 1216)
LEVELS = 5
CHANNELS = 256


def run(budget: float) -> list[measure.Row]:
    """Measures every operation, each for `budget` seconds."""
    rows = []
    for title, function, arguments in _cases():
        call = partial(jax.jit(function), *jax.device_put(arguments))
        rows.append({"case": title} | measure.seconds(call, budget))
    return rows


def _cases() -> Iterator[tuple[str, Callable, tuple[Any, ...]]]:
    rng = np.random.default_rng(0)
    boxes, scores = crowd(rng, LEVELS * 2000)
    alive = np.ones((LEVELS, 2000), bool)
    yield (
        f"NMS of 2000 boxes on {LEVELS} levels",
        lambda *levels: [nms.nms(b, s, a, 0.7) for b, s, a in zip(*levels, strict=True)],
        (boxes.reshape(LEVELS, -1, 4), scores.reshape(LEVELS, -1), alive),
    )
    classes = 80
    logits = rng.normal(size=(1000, classes + 1)).astype(np.float32) * 2
    yield (
        f"class-wise NMS of 1000 boxes x {classes} classes",
        partial(nms.class_nms, score_threshold=0.05, iou_threshold=0.5, count=100, candidates=2000),
        (boxes[:1000], np.asarray(jax.nn.softmax(logits))[:, :-1], np.ones(1000, bool)),
    )
    pyramid = features(rng)
    size = np.array([SIZE], np.int32)
    for count in (512, 1000):
        rois = rois_of_all_sizes(rng, count)[None]
        pool = partial(_pool, size=size)
        yield f"RoIAlign of {count} RoIs, forward", pool, (pyramid, rois)
        weights = rng.normal(size=(1, count, 7, 7, CHANNELS)).astype(np.float32)

        def loss(pyramid, rois, weights, pool=pool):
            return jnp.vdot(pool(pyramid, rois), weights)

        yield (
            f"RoIAlign of {count} RoIs, forward and backward",
            jax.value_and_grad(loss),
            (pyramid, rois, weights),
        )
    shapes = tuple((-(-SIZE[0] // s), -(-SIZE[1] // s)) for s in rpn.STRIDES)
    grid = anchors.pyramid_anchors(shapes, rpn.STRIDES, 8.0, (0.5, 1.0, 2.0))
    truths = rois_of_all_sizes(rng, 100)
    match = partial(matching.match, positive=0.7, negative=0.3, low_quality=0.3)
    yield (
        f"matching {len(grid)} anchors to 20 boxes in 100 slots",
        match,
        (grid, truths, np.arange(100) < 20),
    )
    yield (
        f"sampling 256 of {len(grid)} anchors",
        lambda seed, yes, no: matching.sample(jax.random.key(seed), yes, no, 256, 128),
        (np.int32(0), rng.random(len(grid)) < 0.001, rng.random(len(grid)) < 0.9),
    )


def _pool(pyramid, rois, size):
    return roi_align.roi_align(pyramid, rois, size, strides=rpn.STRIDES[:4])


def crowd(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [count, 4] in clusters, as an RPN proposes them, and their scores."""
    centers = rng.uniform(0, SIZE[::-1], (count // 20 + 1, 2))
    sides = np.exp(rng.uniform(np.log(16), np.log(400), (len(centers), 2)))
    which = rng.integers(len(centers), size=count)
    center = centers[which] + rng.normal(0, 0.15, (count, 2)) * sides[which]
    side = sides[which] * np.exp(rng.normal(0, 0.15, (count, 2)))
    boxes = np.concatenate([center - side / 2, center + side / 2], axis=1)
    return (
        np.clip(boxes, 0, [*SIZE[::-1]] * 2).astype(np.float32),
        rng.random(count).astype(np.float32),
    )


def rois_of_all_sizes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes [count, 4] within the picture, the logarithm of their sides uniform from 16 to 600."""
    side = np.exp(rng.uniform(np.log(16), np.log(600), (count, 2)))
    corner = rng.random((count, 2)) * (np.array(SIZE[::-1]) - side)
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def features(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A pyramid of one picture, strides 4 to 32; bfloat16 on accelerators."""
    dtype = jnp.bfloat16 if measure.accelerator() else jnp.float32
    return tuple(
        rng.normal(size=(1, SIZE[0] // s, SIZE[1] // s, CHANNELS)).astype(dtype)
        for s in rpn.STRIDES[:4]
    )
