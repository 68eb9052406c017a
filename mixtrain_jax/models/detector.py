"""The detector: backbone, feature pyramid, region proposals and box heads under one roof.

What the method needs are separate calls on shared features: `features`, `proposals`, `detect`,
`score_boxes` and `losses`. The teacher makes the first four, the student all but `score_boxes`.
`call` runs one of them with given parameters.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from mixtrain_jax.models import rpn
from mixtrain_jax.models.fpn import FPN
from mixtrain_jax.models.resnet import ResNet
from mixtrain_jax.models.roi_heads import RoIHead, Soften, StageRecord
from mixtrain_jax.models.rpn import Proposals
from mixtrain_jax.models.swin import Swin
from mixtrain_jax.types import Array, Detections, Params, Targets

Pyramid = tuple[Array, ...]


def build_backbone(config, dtype) -> nn.Module:
    """Returns the backbone that `config.model` names; a new one is one more line here."""
    options = config.backbone
    if options.name == "swin":
        return Swin(
            embed_dim=options.embed_dim,
            depths=tuple(options.depths),
            num_heads=tuple(options.num_heads),
            window_size=options.window_size,
            drop_path=options.drop_path,
            dtype=dtype,
            remat=config.remat,
        )
    return ResNet(
        depth=options.depth,
        base_channels=options.base_channels,
        style=options.style,
        norm=options.norm,
        frozen_stages=options.frozen_stages,
        dtype=dtype,
        remat=config.remat,
    )


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

    def setup(self):
        self.backbone = build_backbone(self.config, self.dtype)
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
          size: [B, 2] int32 height and width of each picture before padding.
          keys: [B] PRNG keys for stochastic depth, or None for the deterministic network.

        Returns:
          Five arrays [B, H / s, W / s, channels] for the strides s = 4, 8, 16, 32, 64.
        """
        return self.fpn(self.backbone(image.astype(self.dtype), size, keys), size)

    def proposals(self, pyramid: Pyramid, size: Array, training: bool = False) -> Proposals:
        """Returns boxes that may hold an object, as many as for training or for testing."""
        return rpn.propose(self.rpn(pyramid, size), size, self.config.rpn, training=training)

    def detect(
        self,
        pyramid: Pyramid,
        size: Array,
        proposals: Proposals,
        scale: Array | None = None,
    ) -> tuple[Detections, Array]:
        """Finds objects among proposals; see `RoIHead.detect`."""
        return self.roi_head.detect(pyramid, size, proposals, scale)

    def score_boxes(
        self, pyramid: Pyramid, size: Array, boxes: Array, stage: int | None = None
    ) -> Array:
        """Returns class probabilities [B, K, classes + 1] of given boxes; see `RoIHead.score`."""
        return self.roi_head.score(pyramid, size, boxes, stage)

    def losses(
        self,
        pyramid: Pyramid,
        size: Array,
        targets: Targets,
        keys: Array,
        total: Callable[[Array], Array],
        soften: Soften | None = None,
    ) -> tuple[dict[str, Array], list[StageRecord]]:
        """Computes every training loss on the features of B images.

        Args:
          pyramid: what `features` returned.
          size: [B, 2] int32 height and width of the images.
          targets: the boxes to be found.
          keys: [B] PRNG keys, one an image, for sampling anchors and RoIs.
          total: sums a number over all devices, so that losses do not depend on how many there are.
          soften: the teacher's background probabilities; see `RoIHead.losses`.

        Returns:
          The losses by name (this device's share; their sum is what to differentiate), and what
          each stage of the RoI head trained on.
        """
        predictions = self.rpn(pyramid, size)
        anchor_keys, roi_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        found = rpn.losses(predictions, size, targets, anchor_keys, self.config.rpn, total)
        proposals = rpn.propose(predictions, size, self.config.rpn, training=True)
        more, records = self.roi_head.losses(
            pyramid, size, proposals, targets, roi_keys, total, soften
        )
        return found | more, records

    def everything(self, image: Array, size: Array) -> Detections:
        """The whole detector in one call: used to create parameters."""
        pyramid = self.features(image, size)
        return self.detect(pyramid, size, self.proposals(pyramid, size))[0]


def call(model: Detector, params: Params, method: str, *arguments: Any) -> Any:
    """Calls a method of the detector: `call(model, params, "features", image, size)`."""
    return model.apply({"params": params}, *arguments, method=method)


def build(config, dtype: Any = None) -> Detector:
    """Builds the detector that `config.model` describes.

    Args:
      config: `config.model` with `num_classes` set.
      dtype: of the network's arithmetic; None takes `config.model.dtype`.
    """
    frozen = FrozenConfigDict(config)
    return Detector(config.num_classes, frozen, jnp.dtype(dtype or config.dtype))


def init(model: Detector, seed: int, side: int = 64) -> Params:
    """Returns fresh parameters, a pure function of the seed, as float32 arrays."""
    image = jnp.zeros((1, side, side, 3))
    size = jnp.full((1, 2), side, jnp.int32)
    key = jax.random.key(seed)
    return jax.jit(lambda k: model.init(k, image, size, method="everything"))(key)["params"]
