"""The pixels of a view, made by TensorFlow from an image and its `ViewParameters`."""

from typing import Any

from mixtrain_jax.data.tensorflow import tf
from mixtrain_jax.data.views import color, geometry
from mixtrain_jax.data.views.parameters import ViewParameters


def render(
    image: tf.Tensor, parameters: ViewParameters, height: tf.Tensor, width: tf.Tensor, config: Any
) -> tf.Tensor:
    """Makes the pixels of a view.

    Args:
      image: [h, w, 3] uint8 RGB, the image.
      parameters: ViewParameters of tensors.
      height: [] int32, to pad to.
      width: [] int32, to pad to.
      config: `config.data`.

    Returns:
      [height, width, 3] float32, normalised, its values from whole grey levels; 0 outside the
      image, in holes and in the padding.
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
    pixels, seen = geometry.warp(image, parameters.matrix, parameters.size)
    h, w = parameters.size[0], parameters.size[1]
    # rows of w * 3 numbers, because broadcasting over a last axis of 3 is slow
    mean = tf.tile(tf.constant(config.mean, tf.float32), [w])
    std = tf.tile(tf.constant(config.std, tf.float32), [w])
    pixels = (tf.round(tf.reshape(pixels, [h, w * 3])) - mean) / std
    y1, x1, y2, x2 = tf.unstack(parameters.holes[..., None], axis=1)
    rows = tf.cast((tf.range(h) >= y1) & (tf.range(h) < y2), tf.float32)
    columns = tf.cast((tf.range(w) >= x1) & (tf.range(w) < x2), tf.float32)
    seen &= tf.matmul(rows, columns, transpose_a=True) == 0
    pixels = tf.cond(
        tf.reduce_all(seen),
        lambda: pixels,
        lambda: tf.where(tf.repeat(seen, 3, axis=1), pixels, 0.0),
    )
    padded = tf.pad(pixels, [[0, height - h], [0, (width - w) * 3]])
    return tf.reshape(padded, [height, width, 3])
