"""The pixels of a view, made by TensorFlow from an image and its `ViewParameters`."""

from typing import Any

from mixtrain_jax.data.tensorflow import tf
from mixtrain_jax.data.views import color
from mixtrain_jax.data.views.parameters import ViewParameters
from mixtrain_jax.data.views.warp import warp


def render(
    image: tf.Tensor, parameters: ViewParameters, height: tf.Tensor, width: tf.Tensor, config: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes the pixels of a view.

    Args:
      image: [h, w, 3] uint8 RGB, the image.
      parameters: ViewParameters of tensors.
      height: [] int32, to pad to.
      width: [] int32, to pad to, a multiple of 8.
      config: `config.data`.

    Returns:
      [height, width, 3] uint8 in the order of `config.channels`, 0 in the padding and of no meaning
      in holes or outside the image; and [height, width / 8] uint8, View's `shown`.
    """
    image = color.apply(
        image,
        parameters.color,
        parameters.level,
        min_posterize_bits=config.augment.min_posterize_bits,
        released=config.augment.released_augmentation,
    )
    if config.channels == "bgr":
        image = tf.reverse(image, [2])
    pixels, seen = warp(image, parameters.matrix, parameters.size)
    h, w = parameters.size[0], parameters.size[1]
    y1, x1, y2, x2 = tf.unstack(parameters.holes[..., None], axis=1)
    rows = tf.cast((tf.range(h) >= y1) & (tf.range(h) < y2), tf.float32)
    columns = tf.cast((tf.range(w) >= x1) & (tf.range(w) < x2), tf.float32)
    seen &= tf.matmul(rows, columns, transpose_a=True) == 0
    pixels = tf.reshape(tf.cast(tf.round(pixels), tf.uint8), [h, w * 3])
    pixels = tf.pad(pixels, [[0, height - h], [0, (width - w) * 3]])
    seen = tf.pad(seen, [[0, height - h], [0, width - w]])
    return tf.reshape(pixels, [height, width, 3]), _packed(seen, height, width)


def _packed(bits: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The bytes [height, width / 8] uint8 of [height, width] bool, the leftmost bit highest."""
    eights = tf.reshape(tf.cast(bits, tf.float32), [-1, 8])
    powers = tf.constant([[2.0**bit] for bit in range(7, -1, -1)])
    return tf.reshape(tf.cast(tf.matmul(eights, powers), tf.uint8), [height, width // 8])
