"""What a value of a COCO file means, where writers differ: ids, numbers, flags, boxes, outlines."""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np


def key(value: Any, missing: Any = None) -> Any:
    """An id: an int, also when written as 1.0 or "1"; another text; `missing` if it is neither."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value:
        return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else value
    return missing


def four(value: Any) -> Sequence[float] | None:
    """x, y, width, height; null, which some writers put for NaN, is NaN; None if it is no box."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [math.nan if each is None else number(each, None) for each in value]
    return None if None in numbers else numbers


def outline(value: Any) -> Sequence[float] | None:
    """The box around polygons [[x, y, x, y, ...], ...] or a run-length mask; None without one."""
    if isinstance(value, list) and value:
        try:
            points = np.concatenate([np.asarray(part, np.float64).reshape(-1, 2) for part in value])
        except (ValueError, TypeError):
            return None
        if len(points) < 2 or not np.isfinite(points).all():
            return None
        low, high = points.min(axis=0), points.max(axis=0)
        return [*low.tolist(), *(high - low).tolist()]
    if isinstance(value, dict):
        from pycocotools import mask

        try:
            height, width = (int(side) for side in value["size"])
            runs = value["counts"]
            if isinstance(runs, list):
                value = mask.frPyObjects(value, height, width)
            else:
                value = {"size": [height, width], "counts": str(runs).encode()}
            box = mask.toBbox(value).reshape(-1).tolist()
        except Exception:  # a C library, fed with anything
            return None
        return box if box[2] > 0 and box[3] > 0 else None
    return None


def _is_number(value: Any) -> TypeGuard[int | float | str]:
    """Whether it is a number, or a text that is one."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def number(value: Any, default: Any = math.nan) -> Any:
    if type(value) is float:
        return value
    if not _is_number(value):
        return default
    try:
        return float(value)
    except OverflowError:
        return math.inf


def truth(value: Any) -> bool:
    """Whether a crowd flag is set; "0" and "false" are not."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "0", "0.0", "false", "no", "none", "null")
    return bool(value)
