"""3x3 matrices, and the boxes that move with them: the geometry of views, in NumPy.

A matrix takes homogeneous (x, y, 1) of one image to another, in continuous pixel coordinates: the
first pixel spans 0 to 1, its centre is 0.5. `warp.py` moves the pixels.
"""

import numpy as np

NAMES = ("identity", "translate_x", "translate_y", "rotate", "shear_x")
LEVELS = 9


def resized(sizes: np.ndarray, long: int, short: np.ndarray | int) -> np.ndarray:
    """Sizes after a resize that keeps the aspect.

    Args:
      sizes: [..., 2] height and width.
      long: the longest the long side may become.
      short: [...] what the short side becomes if the long side allows it.

    Returns:
      [..., 2] int64: int(side * factor + 0.5), at least 1.
    """
    sizes = np.asarray(sizes)
    factor = np.minimum(long / sizes.max(axis=-1), np.asarray(short) / sizes.min(axis=-1))
    return np.maximum((sizes * factor[..., None] + 0.5).astype(np.int64), 1)


def scale(size: np.ndarray, new_size: np.ndarray) -> np.ndarray:
    """The matrix [3, 3] of a resize from size to new_size, both (height, width)."""
    return np.diag([new_size[1] / size[1], new_size[0] / size[0], 1.0])


def flip(width: float) -> np.ndarray:
    """The matrix [3, 3] of a horizontal flip of an image so wide."""
    return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])


def translate(x: float, y: float) -> np.ndarray:
    """The matrix [3, 3] of a shift by (x, y) pixels."""
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def rotate(degrees: float, size: np.ndarray) -> np.ndarray:
    """The matrix [3, 3] of a counter-clockwise turn about the centre of a (height, width)."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    x, y = size[1] / 2, size[0] / 2
    return translate(x, y) @ turn @ translate(-x, -y)


def shear(amount: float) -> np.ndarray:
    """The matrix [3, 3] of a horizontal shear about the origin: x + amount * y."""
    return np.array([[1.0, amount, 0], [0, 1, 0], [0, 0, 1]])


def geometric(op: int, level: int, sign: int, size: np.ndarray) -> np.ndarray:
    """The strong view's geometric operation (MixTraining, appendix).

    Args:
      op: an index into NAMES.
      level: 1 to 9; the magnitude is level / 10.
      sign: +1 or -1.
      size: (height, width) of the resized view.

    Returns:
      the matrix [3, 3].
    """
    signed = sign * level / 10
    return (
        lambda: np.eye(3),
        lambda: translate(0.2 * signed * size[1], 0),
        lambda: translate(0, 0.2 * signed * size[0]),
        lambda: rotate(30 * signed, size),
        lambda: shear(0.3 * signed),
    )[op]()


def transform_boxes(
    boxes: np.ndarray, matrix: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Maps boxes by a matrix: the bounds of the four moved edge mid-points, clipped to the target.

    The NumPy twin of `ops.boxes.transform`. Mid-points of edges, not corners, keep boxes tight on
    round objects under rotation and shear.

    Args:
      boxes: [N, 4] x1 y1 x2 y2.
      matrix: [3, 3].
      size: (height, width) of the target.

    Returns:
      boxes [N, 4] float32, and [N] bool, which of them have an area.
    """
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).T
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    points = np.stack(
        [
            np.stack([middle_x, x2, middle_x, x1]),
            np.stack([y1, middle_y, y2, middle_y]),
            np.ones([4, len(boxes)]),
        ]
    )
    x, y, w = np.tensordot(np.asarray(matrix, np.float64), points, axes=1)
    x, y = np.clip(x / w, 0, size[1]), np.clip(y / w, 0, size[0])
    moved = np.stack([x.min(axis=0), y.min(axis=0), x.max(axis=0), y.max(axis=0)], axis=-1)
    moved = moved.astype(np.float32)
    return moved, (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
