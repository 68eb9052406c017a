"""Which anchors or proposals belong to which human box, and which of them a training step looks at.

Everything here is about one image; callers vmap.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from mixtrain_jax.ops import boxes as box_ops


@flax.struct.dataclass
class Match:
    """The verdict on each of A anchors.

    Attributes:
      gt_index: [A] int32, the human box it belongs to, if positive; else the one of best overlap.
      kind: [A] int32, 1 positive, 0 negative, -1 ignored.
    """

    gt_index: Array
    kind: Array


@flax.struct.dataclass
class Sample:
    """A fixed number of anchors to train on: positives, then negatives, then padding.

    Attributes:
      index: [count] int32 into the anchors; 0 for padding.
      positive: [count] bool.
      valid: [count] bool, False for padding.
    """

    index: Array
    positive: Array
    valid: Array


def match(
    anchors: Array,
    gt: Array,
    gt_valid: Array,
    *,
    positive: float,
    negative: float,
    low_quality: float | None,
    valid: Array | None = None,
) -> Match:
    """Matches anchors to human boxes by overlap (Faster R-CNN, section 3.1.2).

    An anchor is positive where its best IoU is at least `positive`, negative where it is below
    `negative`, and ignored between. With `low_quality`, each human box also takes every anchor that
    ties its own best IoU, if that is at least `low_quality`; where several boxes claim an anchor,
    the last one gets it. Without any valid human box all valid anchors are negative.

    Args:
      anchors: [A, 4] boxes, in pixels.
      gt: [N, 4] human boxes in the same pixels.
      gt_valid: [N] bool, False for padding.
      positive: least IoU of a positive.
      negative: IoU below which an anchor is negative.
      low_quality: least IoU for the rule above; None: no such rule.
      valid: [A] bool; an anchor that is not valid is ignored and counts for no box's best IoU.
        None: all are valid.
    """
    gt, gt_valid = jnp.asarray(gt), jnp.asarray(gt_valid)
    usable = jnp.ones(len(anchors), bool) if valid is None else valid
    nobody = jnp.full(len(anchors), -1, jnp.int32)

    def look_at(n: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        best, gt_index, claimed_by = state
        overlap = jnp.where(gt_valid[n] & usable, box_ops.iou(gt[n, None], anchors)[0], -1.0)
        if low_quality is not None:
            # The barrier keeps one copy of the overlaps: of two, ties could differ in the last bit.
            overlap = jax.lax.optimization_barrier(overlap)
            most = jnp.max(overlap)
            claimed_by = jnp.where((overlap == most) & (most >= low_quality), n, claimed_by)
        gt_index = jnp.where(overlap > best, n, gt_index)
        return jnp.maximum(best, overlap), gt_index, claimed_by

    # One human box at a time: all overlaps at once would be the largest array of a training step,
    # and an image has far fewer boxes than there is room for.
    count = jnp.max(jnp.where(gt_valid, jnp.arange(1, len(gt) + 1), 0))
    state = (jnp.full(len(anchors), -1.0), jnp.zeros_like(nobody), nobody)
    best, gt_index, claimed_by = jax.lax.fori_loop(0, count, look_at, state)
    kind = jnp.where(best >= positive, 1, jnp.where(best < negative, 0, -1))
    claimed = claimed_by >= 0
    gt_index = jnp.where(claimed, claimed_by, gt_index)
    kind = jnp.where(claimed, 1, kind)
    if valid is not None:
        kind = jnp.where(valid, kind, -1)
    return Match(gt_index, kind)


def sample(key: Array, positive: Array, negative: Array, count: int, max_positive: int) -> Sample:
    """Draws anchors to train on, uniformly and without replacement.

    At most `max_positive` positives are drawn; negatives fill up to `count`.

    Args:
      key: a jax PRNG key.
      positive: [A] bool, the anchors that may be drawn as positives.
      negative: [A] bool, the anchors that may be drawn as negatives.
      count: how many to draw; what cannot be filled is padding.
      max_positive: most positives among them.
    """
    # The barrier keeps TPUs' compiler from joining the random numbers to both rankings below, which
    # takes it seven times as long.
    priority = jax.lax.optimization_barrier(jax.random.uniform(key, positive.shape))
    from_positive = _ranked(priority, positive, max_positive)
    from_negative = _ranked(priority, negative, count)
    positives = jnp.minimum(jnp.sum(positive), max_positive)
    drawn = positives + jnp.minimum(jnp.sum(negative), count - positives)

    slot = jnp.arange(count)
    index = jnp.where(
        slot < positives,
        from_positive[jnp.minimum(slot, max(max_positive - 1, 0))],
        from_negative[jnp.maximum(slot - positives, 0)],
    )
    return Sample(jnp.where(slot < drawn, index, 0), slot < positives, slot < drawn)


def _ranked(priority: Array, mask: Array, count: int) -> Array:
    """The indices of the highest priorities under a mask, at least one; junk past its sum."""
    count = max(count, 1)
    _, index = jax.lax.top_k(jnp.where(mask, priority, -1), min(count, len(priority)))
    return jnp.pad(index, (0, count - len(index)))
