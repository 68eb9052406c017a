"""Slow, obvious twins of the kernels: loops over single boxes and samples, in NumPy."""

import math
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "ops.npz"


def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def random_boxes(rng: np.random.Generator, shape: tuple[int, ...], size: float = 100) -> np.ndarray:
    """Boxes with float corners, some of them reaching out of a square of that size."""
    corner = rng.uniform(-0.1 * size, size, (*shape, 2))
    return np.concatenate([corner, corner + rng.exponential(0.3 * size, (*shape, 2))], -1).astype(
        np.float32
    )


def grid_boxes(rng: np.random.Generator, shape: tuple[int, ...], cells: int = 8) -> np.ndarray:
    """Boxes with small integer corners: ties, copies, empty ones; only a division can round IoU."""
    corners = np.sort(rng.integers(0, cells + 1, (*shape, 2, 2)), axis=-2)
    return corners.reshape(*shape, 4).astype(np.float32)


def iou(a: np.ndarray, b: np.ndarray) -> np.float32:
    """IoU of two boxes, in the precision of its arguments."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), a.dtype.type(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), a.dtype.type(0))
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / max(union, a.dtype.type(1e-6))


def greedy_nms(boxes, scores, valid, threshold, groups) -> np.ndarray:
    keep = np.zeros(len(boxes), bool)
    for i in np.argsort(-scores, kind="stable"):
        rivals = [k for k in np.flatnonzero(keep) if groups[k] == groups[i]]
        keep[i] = valid[i] and all(iou(boxes[k], boxes[i]) <= np.float32(threshold) for k in rivals)
    return keep


def match(anchors, gt, gt_valid, valid, positive, negative, low_quality):
    """The kind of each anchor, and for positives the box they belong to, as the released code."""
    overlaps = np.array([[iou(a, g) if ok else -1 for a in anchors] for g, ok in zip(gt, gt_valid)])
    overlaps = np.where(valid, overlaps, -1).astype(np.float32)
    kind, index = np.full(len(anchors), -1), np.zeros(len(anchors), int)
    for a in range(len(anchors)):
        best = overlaps[:, a].max()
        if best < np.float32(negative):
            kind[a] = 0
        if best >= np.float32(positive):
            kind[a], index[a] = 1, int(np.flatnonzero(overlaps[:, a] == best)[0])
    if low_quality is not None:
        for g in np.flatnonzero(gt_valid):
            best = overlaps[g].max()
            if best >= np.float32(low_quality):
                kind[overlaps[g] == best], index[overlaps[g] == best] = 1, g
    kind[~valid] = -1
    return kind, index


def roi_level(box: np.ndarray, levels: int = 4) -> int:
    width, height = np.float32(box[2] - box[0]), np.float32(box[3] - box[1])
    scale = np.sqrt(width * height) / np.float32(56)
    return int(np.clip(np.floor(np.log2(scale + np.float32(1e-6))), 0, levels - 1))


def roi_taps(box, stride, height, width, output=7):
    """Yields (bin row, bin column, row, column, weight) of each bilinear tap, in float64."""
    x1, y1, x2, y2 = np.asarray(box, np.float64) / stride - 0.5
    rows, columns = math.ceil((y2 - y1) / output), math.ceil((x2 - x1) / output)

    def taps(at, limit):
        if not -1 <= at <= limit:
            return []
        at = min(max(at, 0), limit - 1)
        low = int(at)
        return [(low, low + 1 - at), (min(low + 1, limit - 1), at - low)]

    for i in range(output):
        for j in range(output):
            for p in range(rows):
                for q in range(columns):
                    y = y1 + (i + (p + 0.5) / rows) * (y2 - y1) / output
                    x = x1 + (j + (q + 0.5) / columns) * (x2 - x1) / output
                    for row, down in taps(y, height):
                        for column, right in taps(x, width):
                            yield i, j, row, column, down * right / (rows * columns)
