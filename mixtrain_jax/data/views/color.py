"""The nine colour operations of the normal and strong views, on uint8 RGB images in TensorFlow.

Each is a function of (image [h, w, 3] uint8, level) and returns another such image; the level is an
integer from 1 to 9, its magnitude level / 10 (MixTraining, appendix; the families of RandAugment).
Equalise, auto-contrast, posterise and solarise are Pillow's `ImageOps`; contrast and the grey blend
use the grey of ITU-R 601.
"""

from collections.abc import Callable

from mixtrain_jax.data.tensorflow import tf

NAMES = (
    "identity",
    "contrast",
    "brightness",
    "sharpness",
    "equalize",
    "autocontrast",
    "posterize",
    "grey",
    "solarize",
)
LEVELS = 9


def apply(
    image: tf.Tensor,
    op: tf.Tensor,
    level: tf.Tensor,
    *,
    min_posterize_bits: int = 0,
    released: bool = False,
) -> tf.Tensor:
    """Applies the operation `NAMES[op]` at the given level.

    Args:
      image: [h, w, 3] uint8 RGB.
      op: [] int32, an index into NAMES.
      level: [] int32 in 1..9.
      min_posterize_bits: posterise keeps at least so many bits (0: a level of 8 or 9 gives black).
      released: contrast, brightness and sharpness do nothing, as in the released code.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    jitter = (contrast, brightness, sharpness)
    branches = [
        lambda: image,
        *((lambda f=f: image if released else f(image, level)) for f in jitter),
        lambda: equalize(image),
        lambda: autocontrast(image),
        lambda: posterize(image, level, min_posterize_bits),
        lambda: grey(image, level),
        lambda: solarize(image, level),
    ]
    return tf.ensure_shape(tf.switch_case(op, branches), image.shape)


def contrast(image: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Blends with the image's mean grey."""
    mean = tf.round(tf.reduce_mean(tf.cast(_grey(image), tf.float32)))
    factor = _factor(level)
    return _uint8(tf.cast(image, tf.float32) * factor + mean * (1 - factor))


def brightness(image: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Blends with black."""
    return _uint8(tf.cast(image, tf.float32) * _factor(level))


def sharpness(image: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Blends with the image's Laplacian, black where flat; "hue" in the released code."""
    pixels = tf.cast(image, tf.float32)
    height, width = tf.unstack(tf.shape(image)[:2])
    laplacian = (
        tf.gather(pixels, _mirrored(tf.range(height) - 1, height))
        + tf.gather(pixels, _mirrored(tf.range(height) + 1, height))
        + tf.gather(pixels, _mirrored(tf.range(width) - 1, width), axis=1)
        + tf.gather(pixels, _mirrored(tf.range(width) + 1, width), axis=1)
        - 4 * pixels
    )
    factor = _factor(level)
    return _uint8(tf.round(pixels * (1 - factor) + laplacian * factor))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Makes the histogram of each channel flat, as Pillow does."""

    def table(counts: tf.Tensor) -> tf.Tensor:
        used = tf.boolean_mask(counts, counts > 0)
        step = (tf.reduce_sum(used) - used[-1]) // 255
        flat = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
        return tf.where(step > 0, tf.minimum(flat, 255), tf.range(256))

    return _by_tables(image, table)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0..255, as Pillow does."""

    def table(counts: tf.Tensor) -> tf.Tensor:
        used = tf.where(counts > 0)[:, 0]
        low, high = used[0], used[-1]
        scale = 255.0 / tf.cast(tf.maximum(high - low, 1), tf.float64)
        offset = -tf.cast(low, tf.float64) * scale
        stretched = tf.cast(tf.range(256, dtype=tf.float64) * scale + offset, tf.int32)
        return tf.where(high > low, tf.clip_by_value(stretched, 0, 255), tf.range(256))

    return _by_tables(image, table)


def posterize(image: tf.Tensor, level: tf.Tensor, min_bits: int = 0) -> tf.Tensor:
    """Keeps the highest int(4 - 4 * magnitude) bits of each value."""
    bits = tf.maximum((40 - 4 * level) // 10, min_bits)
    mask = 256 - tf.bitwise.left_shift(1, 8 - bits)
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def grey(image: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Blends with the grey image; "color" in the released code."""
    factor = _factor(level)
    blend = tf.cast(image, tf.float32) * factor
    return _uint8(tf.round(blend + tf.cast(_grey(image), tf.float32)[..., None] * (1 - factor)))


def solarize(image: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Inverts values of at least 256 - 256 * magnitude."""
    threshold = tf.cast((2569 - 256 * level) // 10, tf.uint8)  # rounded up
    bright = tf.cast(image >= threshold, tf.uint8) * 255
    return tf.bitwise.bitwise_xor(image, bright)  # 255 - value is its bits turned over


def _factor(level: tf.Tensor) -> tf.Tensor:
    """The blend factor of a level, 0.28 to 1.72."""
    return 0.18 * tf.cast(level, tf.float32) + 0.1


def _uint8(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(values, 0, 255), tf.uint8)


def _mirrored(index: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Indices just beyond 0..count-1 reflected at the outermost pixels' centres."""
    index = count - 1 - tf.abs(count - 1 - tf.abs(index))
    return tf.clip_by_value(index, 0, count - 1)


def _grey(image: tf.Tensor) -> tf.Tensor:
    """[h, w] int32 luma, rounded, in 15-bit fixed point as OpenCV's."""
    red, green, blue = tf.unstack(tf.cast(image, tf.int32), axis=-1)
    return tf.bitwise.right_shift(9798 * red + 19235 * green + 3735 * blue + 16384, 15)


def _by_tables(image: tf.Tensor, table: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Maps each channel through a table of 256 values made from its histogram [256] int32."""
    channels = []
    for channel in tf.unstack(tf.cast(image, tf.int32), axis=-1):
        counts = tf.math.bincount(tf.reshape(channel, [-1]), minlength=256, maxlength=256)
        channels.append(tf.gather(tf.cast(table(counts), tf.uint8), channel))
    return tf.transpose(tf.stack(channels), [1, 2, 0])  # stacking them last takes longer
