"""The pixels of an image moved by a matrix of `geometry.py`, in TensorFlow."""

from mixtrain_jax.data.tensorflow import tf


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
