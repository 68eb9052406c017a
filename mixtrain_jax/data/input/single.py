"""The evaluation view of one image in memory."""

from typing import Any

import numpy as np

from mixtrain_jax.data.input import buckets
from mixtrain_jax.data.tensorflow import tf
from mixtrain_jax.data.views import geometry, parameters, render
from mixtrain_jax.data.views.parameters import ViewParameters
from mixtrain_jax.types import View


def single_view(image: np.ndarray, data: Any, count: int = 1, row: int = 0) -> View:
    """The evaluation view of one image, as a batch without boxes.

    Args:
      image: [h, w, 3] uint8 RGB.
      data: `config.data`; its val scale and buckets are used.
      count: images of the batch; those after the first are fillers, the same again.
      row: of the image in its data set.

    Raises:
      UserError: no bucket is large enough.
    """
    size = np.array(image.shape[:2])
    sampled = parameters.evaluation_view(size, geometry.resized(size, *data.val.scale))
    sizes = buckets.of_any(data.val)
    bucket = buckets.fitting(sampled.size, sizes)
    if bucket < 0:
        raise buckets.too_small(sampled.size, "val")
    height, width = sizes[int(bucket)]
    tensors = ViewParameters(*map(tf.constant, sampled))
    pixels, shown = render.render(tf.constant(image), tensors, height, width, data)
    fields: dict[str, Any] = dict(
        image=pixels.numpy(),
        shown=shown.numpy(),
        size=sampled.size,
        matrix=sampled.matrix,
        place=np.zeros([], np.int32),
        **parameters.padded_boxes(np.zeros([0, 4]), np.zeros([0]), sampled, data.max_boxes),
    )
    repeated: dict[str, Any] = {
        key: np.repeat(value[None], count, axis=0) for key, value in fields.items()
    }
    repeated["index"] = np.array([row, *[-1] * (count - 1)], np.int32)
    return View(**repeated)
