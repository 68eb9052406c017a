"""Boxes on the host, in NumPy: area, overlap, clipping; what of `boxes.py` needs no device.

Boxes are x1 y1 x2 y2; overlaps are float64.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def area(boxes: NDArray[Any]) -> NDArray[Any]:
    """Returns [...] areas of boxes [..., 4] in square pixels; 0 for an empty one."""
    sides = np.maximum(np.asarray(boxes, np.float64)[..., 2:] - boxes[..., :2], 0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Returns [N, M] float64 IoU of every box of a [N, 4] with every box of b [M, 4]."""
    return paired_iou(a[:, None], b[None])


def paired_iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Returns the float64 IoU of boxes a [..., 4] with boxes b [..., 4], by broadcasting.

    Two boxes without area have IoU 0.
    """
    overlap = _overlap(a, b)
    return np.asarray(overlap / np.maximum(area(a) + area(b) - overlap, 1e-9))


def covered(boxes: NDArray[Any], areas: NDArray[Any]) -> NDArray[Any]:
    """Returns [N, M] the share of each box [N, 4] that lies in each of other boxes [M, 4]."""
    inside = _overlap(boxes[:, None], areas[None])
    return np.asarray(inside / np.maximum(area(boxes)[:, None], 1e-9))


def _overlap(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Returns the float64 area that boxes a [..., 4] share with boxes b [..., 4]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    sides = np.maximum(sides, 0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def clip(boxes: NDArray[Any], sizes: NDArray[Any]) -> NDArray[Any]:
    """Returns boxes [N, 4] clipped to images of height and width `sizes` [N, 2]."""
    limits = np.asarray(sizes)[:, [1, 0, 1, 0]]
    return np.clip(boxes, 0, limits).astype(np.float32)
