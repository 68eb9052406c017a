"""What chance decides about a view: its size, matrix, colour operation and holes.

A view is decided here from random numbers, and rendered from pixels and these parameters alone
(`render`), so it is a deterministic function of file and seed. The order of operations is
MixTraining's: colour, resize, flip, geometry, normalise, one warp, cut-out, pad.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mixtrain_jax.data.views import color, geometry


class ViewParameters(NamedTuple):
    """Everything that chance decides about one view.

    Attributes:
      size: [2] int32, height and width of the view.
      matrix: [3, 3] float32, image to view.
      color: [] int32, an index into color.NAMES.
      level: [] int32 of the colour operation.
      holes: [K, 4] int32, y1 x1 y2 x2 of the holes cut out; empty ones have no area.
    """

    size: np.ndarray
    matrix: np.ndarray
    color: np.ndarray
    level: np.ndarray
    holes: np.ndarray


def sample(
    rng: np.random.Generator,
    kind: str,
    size: np.ndarray,
    scale: tuple[int, Sequence[int] | np.ndarray],
    augment: Any,
) -> ViewParameters:
    """Samples the parameters of a training view.

    Args:
      rng: the source of chance.
      kind: 'normal', 'weak' or 'strong'.
      size: height and width of the image.
      scale: the longest long side, and the short sides to choose from.
      augment: the config's `data.augment`.
    """
    long, shorts = scale
    new_size = geometry.resized(size, long, int(rng.choice(np.asarray(shorts))))
    matrix = geometry.scale(size, new_size)
    if rng.random() < augment.flip:
        matrix = geometry.flip(new_size[1]) @ matrix
    op, level = 0, 1
    if kind in ("normal", "strong"):
        op = int(rng.integers(len(color.NAMES)))
        level = int(rng.integers(1, color.LEVELS + 1))
    holes = np.zeros([augment.cutout_holes[1], 4], np.int32)
    if kind == "strong":
        moved = geometry.geometric(
            int(rng.integers(len(geometry.NAMES))),
            int(rng.integers(1, geometry.LEVELS + 1)),
            int(rng.choice([-1, 1])),
            new_size,
        )
        matrix = moved @ matrix
        low, high = augment.cutout_holes
        count = rng.integers(low, high + 1)
        corner = rng.integers(0, new_size, [count, 2])
        ratio = rng.choice(augment.cutout_ratios, [count, 1])
        end = np.minimum(corner + (new_size * ratio).astype(np.int64), new_size)
        holes[:count] = np.concatenate([corner, end], axis=1)
    return _parameters(new_size, matrix, op, level, holes)


def evaluation_view(size: np.ndarray, new_size: np.ndarray) -> ViewParameters:
    """The view that is only resized, as in evaluation."""
    return _parameters(new_size, geometry.scale(size, new_size), 0, 1, np.zeros([0, 4]))


def _parameters(size: Any, matrix: Any, op: int, level: int, holes: Any) -> ViewParameters:
    return ViewParameters(
        np.asarray(size, np.int32),
        np.asarray(matrix, np.float32),
        np.asarray(op, np.int32),
        np.asarray(level, np.int32),
        np.asarray(holes, np.int32),
    )


def padded_boxes(
    boxes: np.ndarray, labels: np.ndarray, parameters: ViewParameters, max_boxes: int
) -> dict[str, np.ndarray]:
    """The boxes of a view, padded to N = max_boxes; box k is the image's k-th in every view.

    Args:
      boxes: [n, 4] in the image, n <= N.
      labels: [n] int32.
      parameters: of the view.
      max_boxes: N.

    Returns:
      boxes [N, 4] float32, labels [N] int32, valid [N] bool: False too where no area is left in the
      view.
    """
    moved, has_area = geometry.transform_boxes(boxes, parameters.matrix, parameters.size)
    fields = {
        "boxes": np.zeros([max_boxes, 4], np.float32),
        "labels": np.zeros([max_boxes], np.int32),
        "valid": np.zeros([max_boxes], bool),
    }
    count = len(boxes)
    fields["boxes"][:count] = np.where(has_area[:, None], moved, 0)
    fields["labels"][:count] = labels
    fields["valid"][:count] = has_area
    return fields
