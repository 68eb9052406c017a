"""RoIAlign with adaptive sampling, exact at static shapes, over a whole pyramid at once.

Each RoI is averaged over 7 x 7 bins, and a bin takes ceil(side / 7) bilinear samples each way,
however large the RoI. `rois.py` finds the level and the cells of each RoI and what they weigh;
`roi_tiles.py` brings them together on CPUs and TPUs, `roi_bins.py` on GPUs.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
from jax import Array

from mixtrain_jax.ops import roi_bins, roi_tiles, rois

_ON_CPU = roi_tiles.Size(tile=16, chunk=1)  # one tile at a time stays in cache
_ON_TPU = roi_tiles.Size(tile=32, chunk=512)  # many at once, nearly always one per RoI


def roi_align(
    pyramid: Sequence[Array],
    boxes: Array,
    size: Array,
    *,
    strides: Sequence[int],
    output: int = 7,
) -> Array:
    """Pools each RoI from the level that fits its size (FPN, eq. 1; Mask R-CNN, section 3).

    Coordinates clamp at the image's own extent, its sides padded to multiples of 32, so a larger
    batch shape changes nothing. Samples more than a cell outside add zero, but count. Gradients
    flow to the features only.

    Args:
      pyramid: levels [B, H_l, W_l, C], finest first; float32 or bfloat16.
      boxes: [B, N, 4] in pixels of the view; an empty box gives zeros.
      size: [B, 2] int32 height and width of the images before padding.
      strides: pixels per cell of each level.
      output: bins each way.

    Returns:
      [B, N, output, output, C] in the dtype of the pyramid; sums are float32.
    """
    atlas, origins = rois.pack(pyramid)
    shapes = tuple(level.shape[1:3] for level in pyramid)
    found = rois.locate(jax.lax.stop_gradient(boxes), size, origins, shapes, strides)
    ways = _ways(output, shapes, strides)
    pooled: Array = jax.lax.platform_dependent(atlas, found, **ways)
    return pooled.reshape(*boxes.shape[:2], output, output, -1)


def _ways(
    output: int, shapes: Sequence[tuple[int, ...]], strides: Sequence[int]
) -> dict[str, Callable[[Array, rois.Rois], Array]]:
    """How RoIs are pooled, by platform."""
    return {
        "cpu": partial(roi_tiles.pool, output=output, size=_ON_CPU),
        "tpu": partial(roi_tiles.pool, output=output, size=_ON_TPU),
        "default": partial(roi_bins.pool, output=output, shapes=shapes, strides=tuple(strides)),
    }
