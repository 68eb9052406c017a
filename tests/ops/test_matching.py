from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.ops import matching
from tests.ops import reference

RPN = {"positive": 0.7, "negative": 0.3, "low_quality": 0.3}
ROI = {"positive": 0.5, "negative": 0.5, "low_quality": None}
LOOSE = {"positive": 0.6, "negative": 0.4, "low_quality": 0.0}


@pytest.mark.parametrize("rule", [RPN, ROI, LOOSE], ids=["rpn", "roi", "loose"])
@pytest.mark.parametrize("where", ["cpu", "accelerator"])
def test_match_equals_loop_on_boxes_full_of_ties(rule, where, monkeypatch):
    if where == "accelerator":  # its branch, run here; fewer at once than there are boxes
        branch = lambda *given, cpu, default: default(*given)  # noqa: E731
        monkeypatch.setattr(jax.lax, "platform_dependent", branch)
        monkeypatch.setattr(matching, "_AT_ONCE", 2)
    rng = np.random.default_rng(0)
    cases = 400
    anchors = reference.grid_boxes(rng, (cases, 24))
    gt = reference.grid_boxes(rng, (cases, 5))
    gt_valid = rng.uniform(size=(cases, 5)) < rng.uniform(size=(cases, 1))
    valid = rng.uniform(size=(cases, 24)) < 0.8
    run = jax.jit(jax.vmap(lambda a, g, v, m: matching.match(a, g, v, valid=m, **rule)))
    got = run(anchors, gt, gt_valid, valid)
    for case in range(cases):
        kind, index = reference.match(anchors[case], gt[case], gt_valid[case], valid[case], **rule)
        np.testing.assert_array_equal(got.kind[case], kind)
        positive = kind == 1
        np.testing.assert_array_equal(got.gt_index[case][positive], index[positive])
    assert {-1, 0, 1} <= set(np.unique(got.kind))


@pytest.mark.golden
def test_match_equals_released_code():
    golden = reference.golden()
    gt, everyone = golden["assign_gts"], np.ones(6, bool)

    def released(match):
        kind = np.asarray(match.kind)
        return np.where(kind == 1, match.gt_index + 1, kind)

    got = matching.match(golden["assign_anchors"], gt, everyone, **RPN)
    np.testing.assert_array_equal(released(got), golden["assign_rpn_gt_inds"])
    for iou in (0.5, 0.6, 0.7):
        rule = {"positive": iou, "negative": iou, "low_quality": None}
        got = matching.match(golden["assign_props"], gt, everyone, **rule)
        np.testing.assert_array_equal(released(got), golden[f"assign_rcnn_{iou}_gt_inds"])


def test_ties_hold_on_float_boxes_far_from_the_origin():
    # Shifted copies of one shape tie only if all overlaps are computed alike.
    y, x = np.mgrid[0:3000:7, 0:40:8].astype(np.float32)
    anchors = np.stack([x, y, x + 23.7, y + 31.3], -1).reshape(-1, 4)
    gt = np.array([[3.1, 2000.25, 25.4, 2001.75]] * 3, np.float32)
    got = jax.jit(partial(matching.match, positive=0.99, negative=0.0, low_quality=0.0))(
        anchors, gt, np.array([True, True, False])
    )
    overlaps = np.array([reference.iou(a, gt[0]) for a in anchors])
    np.testing.assert_array_equal(got.kind == 1, overlaps >= overlaps.max() - 1e-9)
    assert (got.kind == 1).sum() > 1
    assert (got.gt_index[got.kind == 1] == 1).all()


@pytest.mark.parametrize("rule", [RPN, ROI], ids=["rpn", "roi"])
def test_match_without_boxes_is_all_negative(rule):
    anchors = reference.grid_boxes(np.random.default_rng(1), (30,))
    valid = np.arange(30) % 3 > 0
    got = matching.match(anchors, anchors[:4], np.zeros(4, bool), valid=valid, **rule)
    np.testing.assert_array_equal(got.kind, np.where(valid, 0, -1))


@pytest.mark.parametrize("rule", [RPN, ROI], ids=["rpn", "roi"])
def test_padding_is_inert(rule):
    rng = np.random.default_rng(2)
    anchors, gt = reference.grid_boxes(rng, (200,)), reference.grid_boxes(rng, (6,))
    want = matching.match(anchors, gt, np.ones(6, bool), **rule)
    # Padding that would win everything, were it looked at.
    got = matching.match(
        np.concatenate([anchors, gt]),
        np.concatenate([gt, anchors[:50]]),
        np.arange(56) < 6,
        valid=np.arange(206) < 200,
        **rule,
    )
    np.testing.assert_array_equal(got.kind[:200], want.kind)
    np.testing.assert_array_equal(got.gt_index[:200], want.gt_index)
    assert (got.kind[200:] == -1).all()


def draw(positive, negative, count, max_positive, draws):
    keys = jax.random.split(jax.random.key(0), draws)
    run = jax.vmap(lambda key: matching.sample(key, positive, negative, count, max_positive))
    return jax.jit(run)(keys)


@pytest.mark.parametrize("positives", [0, 3, 20])
@pytest.mark.parametrize("negatives", [0, 4, 60])
@pytest.mark.parametrize(("count", "most"), [(16, 8), (16, 0), (16, 16), (120, 30)])
def test_sample_counts_order_and_membership(positives, negatives, count, most):
    kind = np.full(100, -1)
    kind[np.random.default_rng(3).permutation(100)[: positives + negatives]] = 0
    kind[np.flatnonzero(kind == 0)[:positives]] = 1
    got = draw(jnp.array(kind == 1), jnp.array(kind == 0), count, most, 3)
    taken = min(positives, most)
    total = taken + min(negatives, count - taken)
    for index, positive, valid in zip(got.index, got.positive, got.valid):
        np.testing.assert_array_equal(positive, np.arange(count) < taken)
        np.testing.assert_array_equal(valid, np.arange(count) < total)
        assert len(set(index[valid].tolist())) == total
        assert (kind[index[positive]] == 1).all()
        assert (kind[index[valid & ~positive]] == 0).all()
        assert (index[~valid] == 0).all()


def test_sample_is_uniform():
    draws = 4000
    kind = np.array([1] * 10 + [0] * 30 + [-1] * 10)
    got = draw(jnp.array(kind == 1), jnp.array(kind == 0), 12, 4, draws)
    times = np.bincount(np.asarray(got.index).ravel(), minlength=50)
    for members, share in ((kind == 1, 4 / 10), (kind == 0, 8 / 30)):
        deviation = np.sqrt(draws * share * (1 - share))
        assert np.abs(times[members] - draws * share).max() < 5 * deviation
    assert times[kind == -1].sum() == 0


def test_sample_is_a_function_of_the_key():
    everyone = jnp.ones(500, bool)
    first, again, other = (
        matching.sample(jax.random.key(k), everyone, ~everyone, 50, 50).index for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
