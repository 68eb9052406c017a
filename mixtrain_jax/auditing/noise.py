"""Errors planted into good labels, seeded, with the truth kept beside.

Three protocols of the field, each a function from a clean table to a damaged one: label errors of
four kinds in equal shares (Schubert et al., "Identifying Label Errors in Object Detection Datasets
by Loss Inspection", WACV 2024), universal noise (UNA, arXiv 2312.13822), and noisy boxes (OA-MIL,
ECCV 2022). Every damaged box names the clean box it came from, so the truth about each error can
be read off: a clean box that no row names was dropped, a row that names none was spawned, and the
rest differ from their clean box in class, in place, or not at all.
"""

import dataclasses

import numpy as np

from mixtrain_jax.auditing.labels import Bools, Floats, Ints, Labels
from mixtrain_jax.ops.numpy_boxes import clip, paired_iou

SHIFT_IOU = (0.4, 0.7)  # of a shifted box with the clean one, Schubert et al., section 4
SHIFT_SPREAD = 0.15  # of a shifted box's centre and sides, in sides
ROUNDED = 0.02  # pixels: files hold hundredths
MIN_SIDE = 1.0  # pixels, of any box that is drawn here


@dataclasses.dataclass(frozen=True)
class Planted:
    """Damaged labels and where each of them came from.

    Attributes:
      labels: the damaged table of N rows, sorted by image.
      source: [N] int32, the row of the clean table each one came from; -1 for a spawned one.
    """

    labels: Labels
    source: Ints

    def dropped(self, clean: Labels) -> Ints:
        """Returns the rows of the clean table that are missing here, ascending."""
        return np.setdiff1d(np.arange(len(clean)), self.source)

    def flipped(self, clean: Labels) -> Bools:
        """Returns [N] bool: the class is not the clean box's."""
        return np.asarray((self.source >= 0) & (self.labels.labels != clean.labels[self.source]))

    def moved(self, clean: Labels) -> Bools:
        """Returns [N] bool: the box is not the clean box, but for what a file rounds."""
        differs = np.abs(self.labels.boxes - clean.boxes[self.source]).max(axis=1) > ROUNDED
        return np.asarray((self.source >= 0) & differs)

    def spawned(self) -> Bools:
        """Returns [N] bool: no clean box stands behind it."""
        return self.source < 0


def plant(clean: Labels, sizes: Ints, classes: int, share: float, seed: int) -> Planted:
    """Plants the four errors of Schubert et al., each into `share` of the boxes.

    No box suffers two errors. Flipped classes are uniform over the other classes. A spawned box is
    a copy of a random box in another image, drawn until it fits there.

    Args:
      clean: good labels.
      sizes: [I, 2] height and width of the images in pixels.
      classes: the number of classes.
      share: of the boxes for each kind of error, at most 0.33.
      seed: the same seed plants the same errors.

    Raises:
      ValueError: the share is out of range, or there are fewer than two classes or images.
    """
    if not 0 <= share <= 1 / 3:
        raise ValueError(f"share is {share}, expected 0 to 0.33: no box suffers two errors")
    if share and (classes < 2 or len(sizes) < 2):
        raise ValueError("flipped and spawned boxes need two classes and two images at least")
    rng = np.random.default_rng(seed)
    count = round(share * len(clean))
    dropped, flipped, shifted, _ = np.split(
        rng.permutation(len(clean)), [count, 2 * count, 3 * count]
    )
    boxes, labels = clean.boxes.copy(), clean.labels.copy()
    labels[flipped] = (labels[flipped] + rng.integers(1, max(classes, 2), count)) % classes
    boxes[shifted] = _shift(boxes[shifted], sizes[clean.image[shifted]], rng)
    kept = np.setdiff1d(np.arange(len(clean)), dropped)
    spawned = _spawn(clean, sizes, count, rng)
    return _join(Labels(clean.image, boxes, labels).take(kept), kept, spawned)


def una(clean: Labels, sizes: Ints, classes: int, ratio: float, seed: int) -> Planted:
    """Plants universal noise (UNA, arXiv 2312.13822) of the given ratio.

    In this order: `ratio` of the boxes are dropped, as many of the rest are relocated (both corners
    uniform in the box doubled about its centre), as many get a class drawn anew over all classes,
    and ratio / (1 - ratio) as many bogus boxes are added (both corners uniform in a random image,
    any class; the authors' code deals them out to the images in turn). A box may be both
    relocated and relabelled.

    Args:
      clean, sizes, classes, seed: as in `plant`.
      ratio: at most 0.5.

    Raises:
      ValueError: the ratio is out of range.
    """
    if not 0 <= ratio <= 0.5:
        raise ValueError(f"ratio is {ratio}, expected 0 to 0.5")
    rng = np.random.default_rng(seed)
    count = round(ratio * len(clean))
    kept = np.sort(rng.permutation(len(clean))[count:])
    boxes, labels, image = clean.boxes[kept].copy(), clean.labels[kept].copy(), clean.image[kept]
    moved = rng.permutation(len(kept))[:count]
    center = (boxes[moved, :2] + boxes[moved, 2:]) / 2
    side = boxes[moved, 2:] - boxes[moved, :2]
    boxes[moved] = _between(center - side, center + side, sizes[image[moved]], rng)
    anew = rng.permutation(len(kept))[:count]
    labels[anew] = rng.integers(0, classes, len(anew))
    bogus = round(ratio / (1 - ratio) * len(clean)) if len(sizes) else 0
    where = rng.integers(0, max(len(sizes), 1), bogus)
    whole = sizes[where][:, ::-1].astype(np.float32)
    added = Labels(
        where.astype(np.int32),
        _between(np.zeros_like(whole), whole, sizes[where], rng),
        rng.integers(0, classes, bogus).astype(np.int32),
    )
    return _join(Labels(image, boxes, labels), kept, added)


def box_noise(clean: Labels, sizes: Ints, level: float, seed: int) -> Planted:
    """Moves and resizes every box (OA-MIL's protocol).

    The centre moves by U(-level, level) of width and height, both sides are scaled by
    1 + U(-level, level), and the box is clipped to its image.

    Args:
      clean, sizes, seed: as in `plant`.
      level: 0.1 to 0.4 in the literature, below 1.
    """
    if not 0 <= level < 1:
        raise ValueError(f"level is {level}, expected at least 0 and below 1")
    rng = np.random.default_rng(seed)
    side = clean.boxes[:, 2:] - clean.boxes[:, :2]
    center = (clean.boxes[:, :2] + clean.boxes[:, 2:]) / 2
    center = center + rng.uniform(-level, level, center.shape) * side
    half = side * (1 + rng.uniform(-level, level, side.shape)) / 2
    boxes = clip(np.concatenate([center - half, center + half], axis=1), sizes[clean.image])
    gone = np.any(boxes[:, 2:] - boxes[:, :2] < MIN_SIDE, axis=1)  # a sliver at the edge
    boxes[gone] = clean.boxes[gone]
    rows = np.arange(len(clean))
    return _join(Labels(clean.image, boxes, clean.labels), rows, clean.take(rows[:0]))


def _shift(boxes: Floats, sizes: Ints, rng: np.random.Generator) -> Floats:
    """Draws a place for each box [n, 4] until its IoU with the box lies in `SHIFT_IOU`."""
    shifted, waiting = boxes.copy(), np.arange(len(boxes))
    for _ in range(10_000):
        if not len(waiting):
            break
        old = boxes[waiting]
        side = old[:, 2:] - old[:, :2]
        center = rng.normal((old[:, :2] + old[:, 2:]) / 2, SHIFT_SPREAD * side)
        half = rng.normal(side, SHIFT_SPREAD * side) / 2
        new = clip(np.concatenate([center - half, center + half], axis=1), sizes[waiting])
        overlap = paired_iou(new, old)
        fits = (overlap >= SHIFT_IOU[0]) & (overlap < SHIFT_IOU[1])
        shifted[waiting[fits]] = new[fits]
        waiting = waiting[~fits]
    return shifted


def _spawn(clean: Labels, sizes: Ints, count: int, rng: np.random.Generator) -> Labels:
    """Copies `count` random boxes, each into another image in which it fits."""
    rows = rng.integers(0, max(len(clean), 1), count)
    image, waiting = np.zeros(count, np.int32), np.arange(count)
    for _ in range(1_000):
        if not len(waiting):
            break
        step = rng.integers(1, len(sizes), len(waiting))
        image[waiting] = (clean.image[rows[waiting]] + step) % len(sizes)
        room = sizes[image[waiting]][:, ::-1]
        waiting = waiting[np.any(clean.boxes[rows[waiting], 2:] > room, axis=1)]
    boxes = clip(clean.boxes[rows], sizes[image])  # a box that fits nowhere is cut
    keep = np.all(boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE, axis=1)
    return Labels(image, boxes, clean.labels[rows]).take(keep)


def _between(low: Floats, high: Floats, sizes: Ints, rng: np.random.Generator) -> Floats:
    """Draws boxes with both corners uniform between `low` and `high` [n, 2], inside the image."""
    points = rng.uniform(low[:, None], high[:, None], (len(low), 2, 2))
    boxes = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
    boxes = clip(boxes, sizes)
    boxes[:, :2] = np.maximum(np.minimum(boxes[:, :2], sizes[:, ::-1] - MIN_SIDE), 0)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + MIN_SIDE)
    return boxes


def _join(labels: Labels, source: Ints, spawned: Labels) -> Planted:
    """Puts kept and spawned boxes into one table, sorted by image."""
    table = Labels(
        np.concatenate([labels.image, spawned.image]).astype(np.int32),
        np.concatenate([labels.boxes, spawned.boxes]).astype(np.float32),
        np.concatenate([labels.labels, spawned.labels]).astype(np.int32),
    )
    source = np.concatenate([source, np.full(len(spawned), -1)]).astype(np.int32)
    order = np.argsort(table.image, kind="stable")
    return Planted(table.take(order), source[order])
