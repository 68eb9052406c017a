"""3x3 matrices, and the boxes and pixels that move with them: the geometry of views.

A matrix takes homogeneous (x, y, 1) of one image to another, in continuous pixel coordinates: the
first pixel spans 0 to 1, its centre is 0.5. Matrices and boxes are NumPy, only `warp` touches
pixels and is TensorFlow.
"""

import numpy as np

from mixtrain_jax.data.tensorflow import tf

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


def warp(image: tf.Tensor, matrix: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws an image moved by an affine matrix, bilinearly.

    A target pixel whose centre comes from inside the source, [0, w] x [0, h], gets the bilinear
    value there, with coordinates clamped to the pixel centres at the rim; any other pixel is
    outside. So a mere resize is the usual half-pixel aligned one, and flips are exact.

    Args:
      image: [h, w, 3] uint8.
      matrix: [3, 3] float32, source to target, its last row (0, 0, 1).
      size: [2] int32 target height and width.

    Returns:
      [H, W, 3] float32 pixels, not rounded and without meaning where outside; [H, W] bool, inside.
    """
    upright = (matrix[0, 1] == 0) & (matrix[1, 0] == 0) & (matrix[1, 1] > 0)
    return tf.cond(
        upright,
        lambda: _stretch(image, matrix, size),
        lambda: _affine(image, matrix, size),
    )


def _stretch(image: tf.Tensor, matrix: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`warp` for matrices that only scale, flip and shift: flips, then resizes separably."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    flipped = matrix[0, 0] < 0
    image = tf.cond(flipped, lambda: tf.reverse(image, [1]), lambda: image)
    left = tf.where(flipped, matrix[0, 2] + matrix[0, 0] * width, matrix[0, 2])
    top = matrix[1, 2]
    factor = tf.stack([matrix[1, 1], tf.abs(matrix[0, 0])])
    pixels = tf.cast(image, tf.float32)[None]

    def resize() -> tf.Tensor:
        return tf.raw_ops.ResizeBilinear(images=pixels, size=size, half_pixel_centers=True)

    def shift() -> tf.Tensor:
        return tf.raw_ops.ScaleAndTranslate(
            images=pixels,
            size=size,
            scale=factor,
            translation=tf.stack([top, left]),
            kernel_type="triangle",
            antialias=False,
        )

    whole = (
        (tf.abs(left) < 1e-3)
        & (tf.abs(top) < 1e-3)
        & (tf.reduce_max(tf.abs(factor * [height, width] - tf.cast(size, tf.float32))) < 1e-3)
    )
    y = (tf.range(tf.cast(size[0], tf.float32)) + 0.5 - top) / factor[0]
    x = (tf.range(tf.cast(size[1], tf.float32)) + 0.5 - left) / factor[1]
    inside = ((y >= 0) & (y <= height))[:, None] & ((x >= 0) & (x <= width))
    return tf.cond(whole, resize, shift)[0], inside


def _affine(image: tf.Tensor, matrix: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`warp` for any affine matrix."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    back = tf.cast(tf.linalg.inv(tf.cast(matrix, tf.float64)), tf.float32)
    a, b, c, d, e, f = tf.unstack(tf.reshape(back, [-1])[:6])
    # the op counts pixel centres as whole numbers, on both sides
    transform = tf.stack(
        [a, b, c + (a + b) / 2 - 0.5, d, e, f + (d + e) / 2 - 0.5, tf.zeros([]), tf.zeros([])]
    )
    pixels = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None],
        transforms=transform[None],
        output_shape=size,
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )[0]
    x = tf.range(tf.cast(size[1], tf.float32)) + 0.5
    y = (tf.range(tf.cast(size[0], tf.float32)) + 0.5)[:, None]
    from_x, from_y = a * x + (b * y + c), d * x + (e * y + f)
    inside = (from_x >= 0) & (from_x <= width) & (from_y >= 0) & (from_y <= height)
    return pixels, inside
