"""A data set, a detector and its ratings made of random numbers, for tests of the audit."""

import numpy as np

from mixtrain_jax.auditing import noise
from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.labels import Detections, Floats, Ints, Labels
from mixtrain_jax.ops.numpy_boxes import clip, iou

CLASSES = 4
SIDE = 200


def truth(seed: int, images: int = 60) -> tuple[Labels, Ints]:
    """Returns clean labels, 3 to 7 boxes per image that hardly overlap, and the images' sizes."""
    rng = np.random.default_rng(seed)
    image, boxes = [], []
    for row in range(images):
        mine: list[Floats] = []
        for _ in range(rng.integers(3, 8)):
            corner, side = rng.uniform(0, SIDE - 60, 2), rng.uniform(20, 60, 2)
            box = np.concatenate([corner, corner + side]).astype(np.float32)
            if not mine or iou(box[None], np.array(mine)).max() < 0.15:
                mine.append(box)
        image += [row] * len(mine)
        boxes += mine
    table = Labels(
        np.array(image, np.int32),
        np.array(boxes, np.float32),
        rng.integers(0, CLASSES, len(boxes)).astype(np.int32),
    )
    return table, np.full((images, 2), SIDE, np.int32)


def look(clean: Labels, human: Labels, sizes: Ints, seed: int, rated: bool = True) -> Look:
    """Returns what a fair detector would say: 9 of 10 objects, some wrong, some out of thin air."""
    rng = np.random.default_rng(seed)
    seen = np.flatnonzero(rng.random(len(clean)) < 0.93)
    boxes = _jitter(clean.boxes[seen], 0.06, sizes[clean.image[seen]], rng)
    confused = rng.random(len(seen)) < 0.05
    labels = np.where(confused, rng.integers(0, CLASSES, len(seen)), clean.labels[seen])
    ghosts, room = noise.box_noise(clean, sizes, 0.9, seed + 1).labels, len(clean) // 4
    extra = rng.permutation(len(ghosts))[:room]
    image = np.concatenate([clean.image[seen], ghosts.image[extra]])
    order = np.argsort(image, kind="stable")
    found = Detections(
        image[order].astype(np.int32),
        np.concatenate([boxes, ghosts.boxes[extra]])[order].astype(np.float32),
        np.concatenate([labels, rng.integers(0, CLASSES, room)])[order].astype(np.int32),
        np.concatenate([rng.beta(6, 2, len(seen)), rng.beta(1, 5, room)])[order].astype(np.float32),
    )
    if not rated:
        return Look(found)
    probabilities = np.full((len(human), CLASSES + 1), 0.02)
    refined = human.boxes.copy()
    for row in range(len(human)):
        there = np.flatnonzero(clean.image == human.image[row])
        overlap = iou(human.boxes[row][None], clean.boxes[there])[0] if len(there) else np.zeros(0)
        if overlap.max(initial=0) > 0.3:
            best = there[overlap.argmax()]
            probabilities[row, clean.labels[best]] = rng.beta(6, 2) * overlap.max() ** 0.5
            refined[row] = clean.boxes[best]
        probabilities[row, -1] = max(1 - probabilities[row, :-1].sum(), 0.02)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    refined = _jitter(refined, 0.06, sizes[human.image], rng)
    return Look(found, probabilities.astype(np.float32), refined)


def _jitter(boxes: Floats, level: float, sizes: Ints, rng: np.random.Generator) -> Floats:
    side = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return clip(boxes + rng.normal(0, level, boxes.shape) * side, sizes)
