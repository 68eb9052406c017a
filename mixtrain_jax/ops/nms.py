"""Greedy non-maximum suppression with static shapes, exact.

Greedy suppression is the only solution of "a box is kept when no kept box before it suppresses
it", so it is found by iterating that sentence until nothing changes: each round settles at least
one more box, and in practice a handful of rounds settles all. Elsewhere than on the CPU, the host
has to wait for a look at whether anything changed: there some rounds come first without a look.
Everything here is about one image; callers vmap.
"""

import jax
import jax.numpy as jnp
from jax import Array

from mixtrain_jax.ops import boxes as box_ops

_BLIND_ROUNDS = 16  # on accelerators, before the first look


def nms(
    boxes: Array, scores: Array, valid: Array, threshold: float, groups: Array | None = None
) -> Array:
    """Tells which boxes greedy non-maximum suppression keeps.

    Going from the best score down, a box is dropped when its IoU with a kept box is above the
    threshold. Of equal scores the lower index goes first.

    Args:
      boxes: [N, 4] in pixels.
      scores: [N] float.
      valid: [N] bool; other boxes are not kept and suppress nothing.
      threshold: IoU.
      groups: [N] int, boxes of different groups leave each other alone. None: all are of one group.

    Returns:
      [N] bool, in the order of the input.
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    groups = None if groups is None else groups[order]
    keep = sorted_nms(boxes[order], valid[order], threshold, groups)
    return jnp.zeros_like(valid).at[order].set(keep)


def sorted_nms(boxes: Array, valid: Array, threshold: float, groups: Array | None = None) -> Array:
    """Like `nms`, for boxes that come best first, as `jax.lax.top_k` leaves them."""
    index = jnp.arange(len(boxes))
    suppresses = (box_ops.iou(boxes, boxes) > threshold) & (index[:, None] < index)
    if groups is not None:
        suppresses &= groups[:, None] == groups

    def refine(keep: Array) -> Array:
        return valid & ~jnp.any(suppresses & keep[:, None], axis=0)

    def until_settled(keep: Array) -> Array:
        def settle(state: tuple[Array, Array]) -> tuple[Array, Array]:
            refined = refine(state[0])
            return refined, jnp.any(refined != state[0])

        changed = jnp.any(refine(keep) != keep)
        return jax.lax.while_loop(lambda state: state[1], settle, (keep, changed))[0]

    def after_blind_rounds(keep: Array) -> Array:
        keep = jax.lax.fori_loop(0, _BLIND_ROUNDS, lambda _, kept: refine(kept), keep)
        return until_settled(keep)

    settled: Array = jax.lax.platform_dependent(
        valid, cpu=until_settled, default=after_blind_rounds
    )
    return settled


def class_nms(
    boxes: Array,
    scores: Array,
    valid: Array,
    *,
    score_threshold: float,
    iou_threshold: float,
    count: int,
    candidates: int,
) -> tuple[Array, Array, Array, Array, Array]:
    """Returns the best detections after suppression within each class.

    Only the `candidates` best pairs of box and class enter. Greedy decisions never depend on lower
    scores, so the result is exact when all pairs above the score threshold fit or when `count`
    detections survive; a flag says so.

    Args:
      boxes: [N, 4], or [N, C, 4] with a box for each class, in pixels.
      scores: [N, C] float, without background.
      valid: [N] bool, False for padding.
      score_threshold: a detection's score is above it.
      iou_threshold: see `nms`.
      count: detections returned.
      candidates: how many pairs of box and class are looked at, the best ones.

    Returns:
      boxes [count, 4], scores [count], labels [count] int32, valid [count] bool, best first and
      zero where not valid; and exact [] bool.
    """
    classes = scores.shape[-1]
    scores = jnp.where(valid[:, None], scores, -jnp.inf).reshape(-1)
    found = jnp.sum(scores > score_threshold)
    top, index = jax.lax.top_k(scores, min(candidates, scores.size))
    row, label = index // classes, index % classes
    top_boxes = boxes[row] if boxes.ndim == 2 else boxes[row, label]
    keep = sorted_nms(top_boxes, top > score_threshold, iou_threshold, label)

    exact = (found <= candidates) | (jnp.sum(keep) >= count)
    (chosen,) = jnp.nonzero(keep, size=count, fill_value=0)
    kept = jnp.arange(count) < jnp.sum(keep)
    return (
        jnp.where(kept[:, None], top_boxes[chosen], 0),
        jnp.where(kept, top[chosen], 0),
        jnp.where(kept, label[chosen], 0).astype(jnp.int32),
        kept,
        exact,
    )
