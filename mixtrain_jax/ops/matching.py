"""Matches anchors or proposals to target boxes by IoU, and samples those that a step trains on.

Everything here is about one image; callers vmap.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from mixtrain_jax.ops import boxes as box_ops

_AT_ONCE = 20  # target boxes, on accelerators


@flax.struct.dataclass
class Match:
    """The verdict on each of A anchors.

    Attributes:
      gt_index: [A] int32, the target box it belongs to, if positive; else the one of best overlap.
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
    """Matches anchors to target boxes by overlap (Faster R-CNN, section 3.1.2).

    An anchor is positive where its best IoU is at least `positive`, negative where it is below
    `negative`, and ignored between. With `low_quality`, each target box also takes every anchor
    that ties its own best IoU, if that is at least `low_quality`; where several boxes claim an
    anchor, the last one gets it. Without any valid target box all valid anchors are negative.

    Args:
      anchors: [A, 4] boxes, in pixels.
      gt: [N, 4] target boxes in the same pixels.
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

    def match_some(numbers: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Takes some more target boxes [n] into account, in ascending order."""
        best, gt_index, claimed_by = state
        overlap = jnp.where(
            gt_valid[numbers, None] & usable, box_ops.iou(gt[numbers], anchors), -1.0
        )
        # The barrier keeps one copy of the overlaps: of two, ties could differ in the last bit.
        overlap = jax.lax.optimization_barrier(overlap)
        if low_quality is not None:
            most = jnp.max(overlap, axis=1, keepdims=True)
            claims = (overlap == most) & (most >= low_quality)
            claimed = jnp.max(jnp.where(claims, numbers[:, None], -1), axis=0)
            claimed_by = jnp.maximum(claimed_by, claimed)
        highest = jnp.max(overlap, axis=0)
        first = jnp.min(jnp.where(overlap == highest, numbers[:, None], len(gt)), axis=0)
        gt_index = jnp.where(highest > best, first, gt_index)
        return jnp.maximum(best, highest), gt_index, claimed_by

    # A few target boxes at a time: all overlaps at once would be the largest array of a training
    # step. On CPU one by one, for an image has far fewer boxes than there is room for; elsewhere to
    # the end, for a loop whose length the data decides makes the host wait.
    def one_by_one(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count = jnp.max(jnp.where(gt_valid, jnp.arange(1, len(gt) + 1), 0))
        return jax.lax.fori_loop(0, count, lambda n, found: match_some(n[None], found), state)

    def to_the_end(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        def match_part(
            part: Array, found: tuple[Array, Array, Array]
        ) -> tuple[Array, Array, Array]:
            numbers = part * _AT_ONCE + jnp.arange(_AT_ONCE)
            # Past the end the last one is taken again, which changes nothing.
            return match_some(jnp.minimum(numbers, len(gt) - 1), found)

        return jax.lax.fori_loop(0, -(-len(gt) // _AT_ONCE), match_part, state)

    state = (jnp.full(len(anchors), -1.0), jnp.zeros_like(nobody), nobody)
    if len(gt):
        ways = {"cpu": one_by_one, "default": to_the_end}
        state = jax.lax.platform_dependent(state, **ways)
    best, gt_index, claimed_by = state
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
