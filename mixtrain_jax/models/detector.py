"""The detector: backbone, feature pyramid, region proposals and box heads in one module.

What the method needs are separate calls on shared features. The teacher computes `features`,
`detect` and `score_boxes`; a training student `features` and `losses`; the label audit asks for
`score_and_refine` too. `bind` gives the detector its parameters:
`bind(model, params).features(image, size)`.
"""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from mixtrain_jax.models import rpn
from mixtrain_jax.models.backbones import build_backbone
from mixtrain_jax.models.fpn import FPN
from mixtrain_jax.models.roi_heads import AskTeacher, RoIHead, StageRecord
from mixtrain_jax.models.rpn import Proposals, Pyramid
from mixtrain_jax.types import Array, Detections, Params, SumOverDevices, Targets


class Detector(nn.Module):
    """A two-stage detector on a feature pyramid.

    Attributes:
      num_classes: number of object classes; the background is one more.
      config: `config.model`, frozen.
      dtype: of the network's arithmetic; parameters, losses and boxes are float32.
    """

    num_classes: int
    config: Any
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.backbone = build_backbone(self.config.backbone, self.dtype, self.config.remat)
        self.fpn = FPN(channels=self.config.fpn.channels, dtype=self.dtype)
        self.rpn = rpn.RPN(
            channels=self.config.rpn.channels,
            ratios=len(self.config.rpn.anchor_ratios),
            dtype=self.dtype,
        )
        self.roi_head = RoIHead(self.num_classes, self.config.roi_head, self.dtype)

    def features(self, image: Array, size: Array, keys: Array | None = None) -> Pyramid:
        """Computes the feature pyramid P2 to P6.

        Args:
          image: [B, H, W, 3] float32, normalised; H and W multiples of 32.
          size: [B, 2] int32 height and width of each image before padding.
          keys: [B] PRNG keys for stochastic depth, or None for the deterministic network.

        Returns:
          Five arrays [B, H / s, W / s, channels] for the strides s = 4, 8, 16, 32, 64.
        """
        return self.fpn(self.backbone(image.astype(self.dtype), size, keys), size)

    def proposals(self, pyramid: Pyramid, size: Array) -> Proposals:
        """Returns boxes that may hold an object, as many as for testing."""
        return rpn.propose(self.rpn(pyramid, size), size, self.config.rpn, training=False)

    def detect(
        self, pyramid: Pyramid, size: Array, scale: Array | None = None
    ) -> tuple[Detections, Array]:
        """Finds the objects of B images, proposals first; see `RoIHead.detect`."""
        return self.roi_head.detect(pyramid, size, self.proposals(pyramid, size), scale)

    def score_boxes(
        self, pyramid: Pyramid, size: Array, boxes: Array, stage: int | None = None
    ) -> Array:
        """Returns class probabilities [B, K, classes + 1] of given boxes; see `RoIHead.score`."""
        return self.roi_head.score(pyramid, size, boxes, stage)

    def score_and_refine(self, pyramid: Pyramid, size: Array, boxes: Array) -> tuple[Array, Array]:
        """Returns class probabilities of given boxes, and the boxes refined; see `RoIHead`."""
        return self.roi_head.score_and_refine(pyramid, size, boxes)

    def losses(
        self,
        pyramid: Pyramid,
        size: Array,
        targets: Targets,
        keys: Array,
        sum_over_devices: SumOverDevices,
        ask_teacher: AskTeacher | None = None,
    ) -> tuple[dict[str, Array], list[StageRecord]]:
        """Computes every training loss on the features of B images.

        Args:
          pyramid: what `features` returned.
          size: [B, 2] int32 height and width of the images.
          targets: the boxes to be found.
          keys: [B] PRNG keys, one per image, for sampling anchors and RoIs.
          sum_over_devices: sums arrays over all devices, so that losses do not depend on how many
            there are.
          ask_teacher: what the teacher says of RoIs; see `RoIHead.losses`.

        Returns:
          The losses by name (this device's share; their sum is what to differentiate), and what
          each stage of the RoI head trained on.
        """
        predictions = self.rpn(pyramid, size)
        anchor_keys, roi_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        found = rpn.losses(
            predictions, size, targets, anchor_keys, self.config.rpn, sum_over_devices
        )
        proposals = rpn.propose(predictions, size, self.config.rpn, training=True)
        more, records = self.roi_head.losses(
            pyramid, size, proposals, targets, roi_keys, sum_over_devices, ask_teacher
        )
        return found | more, records

    def __call__(self, image: Array, size: Array) -> Detections:
        """The whole detector in one call, from images to detections."""
        return self.detect(self.features(image, size), size)[0]


def bind(model: Detector, params: Params) -> Detector:
    """Returns the detector with its parameters, so that its methods can be called.

    Inside a function that JAX transforms, bind there and not outside of it.
    """
    return model.bind({"params": params})


def precise(network: Detector) -> AbstractContextManager[Any]:
    """Within it a float32 network's products are of float32 on every device.

    By default GPUs round them to TF32, and TPUs to bfloat16.
    """
    return jax.default_matmul_precision("highest" if network.dtype == jnp.float32 else "default")


def build(config: Any, dtype: Any = None) -> Detector:
    """Builds the detector that `config.model` describes.

    Args:
      config: `config.model` with `num_classes` set.
      dtype: of the network's arithmetic; None takes `config.model.dtype`.
    """
    frozen = FrozenConfigDict(config)
    return Detector(config.num_classes, frozen, jnp.dtype(dtype or config.dtype))


def init(model: Detector, seed: int) -> Params:
    """Returns fresh parameters, a pure function of the seed, as float32 arrays."""
    return _init(jax.random.key(seed), model)


@partial(jax.jit, static_argnames="model")  # traced once in a process
def _init(key: Array, model: Detector) -> Params:
    image = jnp.zeros((1, 64, 64, 3))
    params: Params = model.init(key, image, jnp.full((1, 2), 64, jnp.int32))["params"]
    return params
