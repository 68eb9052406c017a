"""Pixels on their way to a network: bytes, and a bit for each that says whether the image is there.

So a view takes a quarter of the memory that normalised float32 takes, and a quarter of the time to
reach a device. The device normalises; what shows no image (padding, holes, what a warp brought in
from outside) is exactly 0 after that, which no byte can say.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.types import Array, View


def normalise(views: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Normalises the images of a View, or of all in a Batch, on the device.

    Args:
      views: a View or Batch of uint8 images, with any leading axes. A View that holds normalised
        images (its `shown` is None) stays as it is.
      mean: grey levels of the three channels, in the order of `config.data.channels`.
      std: likewise.

    Returns:
      The same, its images float32, (image - mean) / std where the image is shown and 0 elsewhere;
      `shown` is None.
    """

    def of_view(view: View) -> View:
        if view.shown is None:
            return view
        image = normalised_image(view.image, unpack(view.shown), mean, std)
        fields: dict[str, Any] = {"image": image, "shown": None}
        normalised: View = dataclasses.replace(view, **fields)
        return normalised

    return jax.tree.map(of_view, views, is_leaf=lambda part: isinstance(part, View))


def normalised_image(image: Any, shown: Any, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Returns [..., H, W, 3] float32 of uint8 pixels, 0 where `shown` [..., H, W] is False."""
    pixels = image.astype(jnp.float32) - jnp.array(mean, jnp.float32)
    return jnp.where(shown[..., None], pixels / jnp.array(std, jnp.float32), 0)


def unpack(shown: Any) -> Any:
    """Returns the bits of bytes [..., W / 8] uint8 as [..., W] bool, each byte's highest first.

    A numpy array gives a numpy array.
    """
    bits = shown[..., None] >> np.arange(7, -1, -1, dtype=np.uint8) & 1
    return bits.reshape(*shown.shape[:-1], -1) == 1
