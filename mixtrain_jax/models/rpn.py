"""The region proposal network: what it predicts, how proposals come of it, and its losses.

Faster R-CNN, section 3, on the levels of a feature pyramid. Predictions of all levels are joined
into one axis of A anchors, level by level, then by row, column and ratio, so that everything after
the network is plain arithmetic on [B, A] arrays.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixtrain_jax.models.layers import Conv
from mixtrain_jax.ops import anchors as anchor_ops
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.ops import matching, nms, padding
from mixtrain_jax.types import Array, SumOverDevices, Targets

Pyramid = tuple[Array, ...]  # features [B, H / s, W / s, C] for the strides s

STRIDES = (4, 8, 16, 32, 64)


class Predictions(NamedTuple):
    """Outputs of the network for the A anchors of each image.

    Attributes:
      logits: [B, A] float32, objectness before the sigmoid.
      deltas: [B, A, 4] float32, coded against the anchors.
      shapes: height and width of each level, whose cells times ratios add up to A.
    """

    logits: Array
    deltas: Array
    shapes: tuple[tuple[int, int], ...]


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first.

    Attributes:
      boxes: [B, K, 4] float32 in pixels of the view.
      valid: [B, K] bool.
    """

    boxes: Array
    valid: Array


class RPN(nn.Module):
    """One 3x3 convolution shared by all levels, then objectness and deltas for each anchor."""

    channels: int = 256
    ratios: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, size: Array) -> Predictions:
        """Looks at a pyramid of [B, H_l, W_l, C] features of images of `size` [B, 2] pixels."""
        init = nn.initializers.normal(0.01)
        layer = partial(Conv, dtype=self.dtype, kernel_init=init)
        conv = layer(self.channels, 3, name="conv")
        objectness = layer(self.ratios, 1, name="objectness")
        deltas = layer(4 * self.ratios, 1, name="deltas")
        all_logits, all_deltas = [], []
        for level, stride in zip(pyramid, STRIDES, strict=True):
            hidden = nn.relu(conv(padding.mask(level, size, stride)))
            batch = level.shape[0]
            all_logits.append(objectness(hidden).reshape(batch, -1))
            all_deltas.append(deltas(hidden).reshape(batch, -1, 4))
        return Predictions(
            jnp.concatenate(all_logits, axis=1).astype(jnp.float32),
            jnp.concatenate(all_deltas, axis=1).astype(jnp.float32),
            tuple((level.shape[1], level.shape[2]) for level in pyramid),
        )


def all_anchors(shapes: tuple[tuple[int, int], ...], config: Any) -> np.ndarray:
    """Returns the anchors of all levels, float32 [A, 4] in pixels of the view."""
    return anchor_ops.pyramid_anchors(
        shapes, STRIDES, config.anchor_scale, tuple(config.anchor_ratios)
    )


def propose(predictions: Predictions, size: Array, config: Any, *, training: bool) -> Proposals:
    """Picks the best boxes of each image: top of each level, NMS in each level, best of all.

    Args:
      predictions: what the network says of B images.
      size: [B, 2] int32 height and width of the images, which proposals are clipped to.
      config: `config.model.rpn`.
      training: whether to keep as many proposals as in training, or as in testing.

    Returns:
      Proposals without gradient, K of them an image.
    """
    candidates = config.train_candidates if training else config.test_candidates
    count = config.train_proposals if training else config.test_proposals
    cells = [height * width for height, width in predictions.shapes]
    borders = np.cumsum(cells)[:-1] * len(config.anchor_ratios)
    levels = np.split(all_anchors(predictions.shapes, config), borders)

    most = [min(candidates, len(anchors)) for anchors in levels]
    count = min(count, sum(most))

    def of_level(
        logits: Array, deltas: Array, anchors: np.ndarray, size: Array
    ) -> tuple[Array, Array]:
        scores = jnp.where(anchor_ops.inside(anchors, size), nn.sigmoid(logits), -jnp.inf)
        scores, index = jax.lax.top_k(scores, min(candidates, len(anchors)))
        boxes = box_ops.decode(jnp.asarray(anchors)[index], deltas[index], size=size)
        missing = max(most) - len(scores)
        return (
            jnp.pad(boxes, ((0, missing), (0, 0))),
            jnp.pad(scores, (0, missing), constant_values=-jnp.inf),
        )

    def of_image(logits: Array, deltas: Array, size: Array) -> Proposals:
        parts = zip(jnp.split(logits, borders), jnp.split(deltas, borders), levels, strict=True)
        boxes, scores = map(jnp.stack, zip(*(of_level(*part, size) for part in parts)))
        # All levels at once: on accelerators each suppression on its own has its own waits.
        keep = jax.vmap(nms.sorted_nms, (0, 0, None))(boxes, jnp.isfinite(scores), config.nms_iou)
        boxes, scores = boxes.reshape(-1, 4), jnp.where(keep, scores, -jnp.inf).reshape(-1)
        best, index = jax.lax.top_k(scores, count)
        valid = jnp.isfinite(best)
        return Proposals(jnp.where(valid[:, None], boxes[index], 0), valid)

    logits, deltas = jax.lax.stop_gradient((predictions.logits, predictions.deltas))
    return jax.vmap(of_image)(logits, deltas, size)


def losses(
    predictions: Predictions,
    size: Array,
    targets: Targets,
    keys: Array,
    config: Any,
    sum_over_devices: SumOverDevices,
) -> dict[str, Array]:
    """Binary cross-entropy of objectness and L1 of deltas on sampled anchors.

    Both are summed over the batch and divided by the sum over all images of max(positives, 1) +
    max(negatives, 1), as the released detectors do.

    Args:
      predictions: what the network says of B images.
      size: [B, 2] int32 height and width of the images.
      targets: the boxes to be found.
      keys: [B] PRNG keys, one per image, for sampling anchors.
      config: `config.model.rpn`.
      sum_over_devices: sums arrays over all devices.

    Returns:
      `rpn_objectness` and `rpn_boxes`: this device's share of each loss.
    """
    constant = all_anchors(predictions.shapes, config)
    anchors = jnp.asarray(constant)

    def of_image(
        logits: Array, deltas: Array, size: Array, targets: Targets, key: Array
    ) -> tuple[Array, Array, Array]:
        match = matching.match(
            anchors,
            targets.boxes,
            targets.valid,
            valid=anchor_ops.inside(constant, size, config.border),
            positive=config.positive_iou,
            negative=config.negative_iou,
            low_quality=config.negative_iou,
        )
        sample = matching.sample(
            key,
            match.kind == 1,
            match.kind == 0,
            config.samples,
            int(config.samples * config.positive_share),
        )
        chosen = sample.index
        objectness = optax.sigmoid_binary_cross_entropy(
            logits[chosen], sample.positive.astype(jnp.float32)
        )
        target_deltas = box_ops.encode(anchors[chosen], targets.boxes[match.gt_index[chosen]])
        distance = jnp.abs(deltas[chosen] - target_deltas).sum(-1)
        positives = sample.positive.sum()
        negatives = sample.valid.sum() - positives
        return (
            jnp.where(sample.valid, objectness, 0).sum(),
            jnp.where(sample.positive, distance, 0).sum(),
            jnp.maximum(positives, 1) + jnp.maximum(negatives, 1),
        )

    objectness, distance, count = jax.vmap(of_image)(
        predictions.logits, predictions.deltas, size, targets, keys
    )
    norm = sum_over_devices(count.sum()).astype(jnp.float32)
    return {"rpn_objectness": objectness.sum() / norm, "rpn_boxes": distance.sum() / norm}
