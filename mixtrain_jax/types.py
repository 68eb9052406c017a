"""The things that flow through the program: views, batches, targets, detections, the train state.

Files become a data set, its images become views, views of one bucket become a batch, and a step
maps a train state and a batch to the next state. An image is what a data set holds; a picture is
what is drawn for people. Every array below has a fixed shape; what is
padding is marked by a mask and never guessed from coordinates. Boxes are x1 y1 x2 y2 in continuous
pixel coordinates of the view they belong to (the left edge of the first pixel is 0, its right edge
is 1).
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax

Array = jax.Array
Params = Any  # a nested dictionary of arrays
SumOverDevices = Callable[[Any], Any]  # of an array, or of each one in a tree


@flax.struct.dataclass
class View:
    """One view of each of B images, with the boxes people drew on them.

    Attributes:
      image: [B, H, W, 3] uint8 grey levels, as a view is made and travels; float32, normalised
        and 0 where no image is shown, once `pixels.normalise` has seen it.
      size: [B, 2] int32, height and width in pixels before padding.
      matrix: [B, 3, 3] float32, takes homogeneous (x, y, 1) of the original image to this
        view.
      boxes: [B, N, 4] float32, human boxes in pixels of this view.
      labels: [B, N] int32 class of each box, 0-based and contiguous.
      valid: [B, N] bool, False for padding.
      index: [B] int32, the image's row in its data set; -1 for a filler that completes a
        batch.
      shown: [B, H, W / 8] uint8, a bit for each pixel, the leftmost highest: whether it shows the
        image; not in padding, in holes, or what a warp brought in from outside. None once
        normalised.
      place: [B] int32, the place in training's order modulo 2^31, which tells two copies of an
        image in one step apart; None: the row has to do.
    """

    image: Array
    size: Array
    matrix: Array
    boxes: Array
    labels: Array
    valid: Array
    index: Array
    shown: Array | None = None
    place: Array | None = None


@flax.struct.dataclass
class Batch:
    """What one training step sees; all views of a batch share one height and width.

    Attributes:
      normal: the half trained on human boxes as they are.
      weak: the mixed half as the teacher sees it; None in plain training.
      strong: the same images and boxes, in the same order, as the student sees them: box k is one
        object in both views, though a view can cut it away; None in plain training.
    """

    normal: View
    weak: View | None = None
    strong: View | None = None


@flax.struct.dataclass
class Detections:
    """At most K detections in each of B images, best first as the detector scores them.

    Attributes:
      boxes: [B, K, 4] float32 in pixels.
      scores: [B, K] float32 in [0, 1].
      labels: [B, K] int32 class.
      valid: [B, K] bool, False for padding, and for what does not count.
    """

    boxes: Array
    scores: Array
    labels: Array
    valid: Array


@flax.struct.dataclass
class TrainState:
    """Everything training carries from step to step, and everything a checkpoint holds.

    Attributes:
      step: [] int32, the number of steps taken.
      student: parameters trained by gradients.
      teacher: their exponential moving average, float32.
      optimizer: state of the optax optimizer.
    """

    step: Array
    student: Params
    teacher: Params
    optimizer: Any


@flax.struct.dataclass
class Targets:
    """The boxes a detector is trained to find in each of B images.

    Attributes:
      boxes: [B, N, 4] float32 in pixels of the view the detector sees.
      labels: [B, N] int32 class.
      valid: [B, N] bool, False for padding.
    """

    boxes: Array
    labels: Array
    valid: Array
