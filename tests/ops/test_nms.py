import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtrain_jax.ops import nms
from tests.ops import reference

THRESHOLDS = (0.3, 0.5, 0.7, 0.95)
run = jax.jit(nms.nms)
run_many = jax.jit(jax.vmap(nms.nms, (0, 0, 0, None, 0)))


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes around a few places, so that chains of suppression happen; some nearly alike."""
    center = rng.uniform(0, 300, (12, 2))[rng.integers(0, 12, count)] + rng.normal(0, 8, (count, 2))
    half = 30 * np.exp(rng.normal(0, 0.25, (count, 2)))
    boxes = np.concatenate([center - half, center + half], -1)
    third = count // 3
    boxes[:third] = boxes[-third:] + rng.normal(0, 0.5, (third, 4))
    return boxes.astype(np.float32)


def onnx_nms(boxes, scores, threshold, score_threshold=-1.0) -> np.ndarray:
    """Rows (class, box) that ONNX keeps of boxes [N, 4] and scores [C, N]."""
    names = ("boxes", "scores", "most", "iou", "score")
    values = (
        boxes[None],
        scores[None],
        np.array([len(boxes)], np.int64),
        np.array([threshold], np.float32),
        np.array([score_threshold], np.float32),
    )
    tensor = onnx.helper.make_tensor_value_info
    types = [onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for value in values]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("NonMaxSuppression", names, ["kept"])],
        "nms",
        [tensor(name, kind, value.shape) for name, kind, value in zip(names, types, values)],
        [tensor("kept", onnx.TensorProto.INT64, None)],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=8
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(zip(names, values)))[0][:, 1:]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_equals_greedy_loop_on_boxes_full_of_ties(threshold):
    rng = np.random.default_rng(0)
    cases, count = 300, 20
    boxes = reference.grid_boxes(rng, (cases, count), cells=5)
    scores = rng.integers(0, 8, (cases, count)).astype(np.float32)
    valid = rng.uniform(size=(cases, count)) < 0.8
    groups = rng.integers(0, 3, (cases, count)) * rng.integers(0, 2, (cases, 1))
    got = run_many(boxes, scores, valid, threshold, groups)
    # Order of the loop: valid boxes first, then by score, then by index.
    ranked = np.where(valid, scores, -1)
    for case in range(cases):
        want = reference.greedy_nms(boxes[case], ranked[case], valid[case], threshold, groups[case])
        np.testing.assert_array_equal(got[case], want)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    st.lists(st.tuples(*[st.integers(0, 4)] * 4, st.integers(0, 3), st.booleans()), max_size=8),
    st.sampled_from([0.3, 0.5, 0.75, 0.95]),
)
def test_equals_greedy_loop_on_degenerate_boxes(rows, threshold):
    boxes, scores, valid = np.zeros((8, 4), np.float32), np.zeros(8, np.float32), np.zeros(8, bool)
    for i, (x1, y1, x2, y2, score, ok) in enumerate(rows):
        boxes[i] = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        scores[i], valid[i] = score, ok
    got = run(boxes, scores, valid, threshold)
    ranked = np.where(valid, scores, -1)
    want = reference.greedy_nms(boxes, ranked, valid, threshold, np.zeros(8))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("threshold", [*THRESHOLDS, 0.4, 0.6])
def test_equals_onnx(threshold):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        boxes, scores = clustered(rng, 300), rng.permutation(300).astype(np.float32)
        want = np.zeros(300, bool)
        want[onnx_nms(boxes, scores[None], threshold)[:, 1]] = True
        got = run(boxes, scores, np.ones(300, bool), threshold)
        np.testing.assert_array_equal(got, want)
        assert 0 < want.sum() < 300


@pytest.mark.golden
def test_equals_released_code():
    # The released CPU kernel suppresses at IoU >= threshold; no pair here is at the threshold.
    golden = reference.golden()
    boxes, scores = golden["nms_boxes"], golden["nms_scores"]
    everyone = np.ones(len(boxes), bool)
    for threshold, groups, want in (
        (0.5, np.zeros(len(boxes)), golden["nms_keep_0.5"]),
        (0.7, golden["nms_ids"].astype(np.int32), golden["batched_nms_keep_0.7"]),
    ):
        got = np.flatnonzero(run(boxes, scores, everyone, threshold, groups))
        np.testing.assert_array_equal(got, np.sort(want))


def test_long_chain_is_followed_to_its_end():
    # Each box suppresses the next one only, so every other box stays.
    left = np.arange(200, dtype=np.float32) * 4
    boxes = np.stack([left, 0 * left, left + 10, 0 * left + 10], -1)
    got = run(boxes, -left, np.ones(200, bool), 0.3)
    np.testing.assert_array_equal(got, np.arange(200) % 2 == 0)


def test_padding_is_inert():
    rng = np.random.default_rng(1)
    boxes, scores = clustered(rng, 100), rng.uniform(size=100).astype(np.float32)
    want = run(boxes, scores, np.ones(100, bool), 0.5)
    place = np.sort(rng.permutation(160)[:100])
    padded_boxes = np.tile(boxes[:1], (160, 1))
    padded_scores = np.full(160, 9, np.float32)
    valid = np.zeros(160, bool)
    padded_boxes[place], padded_scores[place], valid[place] = boxes, scores, True
    got = run(padded_boxes, padded_scores, valid, 0.5)
    np.testing.assert_array_equal(got[place], want)
    assert got.sum() == want.sum()
    assert not run(boxes, scores, np.zeros(100, bool), 0.5).any()


def detections(boxes, scores, valid=None, count=100, candidates=2000, threshold=0.5):
    valid = np.ones(len(boxes), bool) if valid is None else valid
    return jax.jit(
        lambda b, s, v: nms.class_nms(
            b,
            s,
            v,
            score_threshold=0.05,
            iou_threshold=threshold,
            count=count,
            candidates=candidates,
        )
    )(boxes, scores, valid)


@pytest.mark.golden
@pytest.mark.parametrize("columns", [4, 320])
def test_class_nms_equals_released_code(columns):
    golden = reference.golden()
    boxes = golden["mc_boxes4"] if columns == 4 else golden["mc_boxes320"].reshape(-1, 80, 4)
    boxes, scores, labels, valid, exact = detections(boxes, golden["mc_scores"][:, :80])
    assert valid.all()
    assert exact
    np.testing.assert_array_equal(labels, golden[f"mc_labels_{columns}"])
    np.testing.assert_allclose(boxes, golden[f"mc_dets_{columns}"][:, :4], atol=1e-3)
    np.testing.assert_allclose(scores, golden[f"mc_dets_{columns}"][:, 4], rtol=1e-6)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_class_nms_equals_onnx(threshold):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        boxes = clustered(rng, 80)
        scores = (rng.permutation(80 * 6).reshape(80, 6) / 480).astype(np.float32)
        kept = onnx_nms(boxes, np.ascontiguousarray(scores.T), threshold, 0.05)
        order = np.argsort(-scores[kept[:, 1], kept[:, 0]])[:60]
        label, row = kept[order].T
        got = detections(boxes, scores, count=60, candidates=480, threshold=threshold)
        count = len(order)
        np.testing.assert_array_equal(got[3], np.arange(60) < count)
        np.testing.assert_array_equal(got[0][:count], boxes[row])
        np.testing.assert_array_equal(got[1][:count], scores[row, label])
        np.testing.assert_array_equal(got[2][:count], label)
        assert got[4]


def test_class_nms_flag_tells_when_the_prefix_is_too_short():
    rng = np.random.default_rng(2)
    boxes, scores = clustered(rng, 100), rng.uniform(size=(100, 3)).astype(np.float32)
    full = detections(boxes, scores, count=20, candidates=300)
    exact = []
    for candidates in (20, 30, 60, 150):
        got = detections(boxes, scores, count=20, candidates=candidates)
        exact.append(bool(got[4]))
        same = all(np.array_equal(a, b) for a, b in zip(got[:4], full[:4]))
        assert same == exact[-1]
    assert exact[0] is False
    assert exact[-1] is True


def test_class_nms_padding_is_inert_and_zero():
    rng = np.random.default_rng(3)
    boxes, scores = clustered(rng, 30), rng.uniform(size=(30, 4)).astype(np.float32) ** 4
    want = detections(boxes, scores, candidates=120)
    assert not want[3].all()
    for array in want[:3]:
        assert (array[~want[3]] == 0).all()
    valid = np.arange(50) < 30
    junk = (
        np.concatenate([boxes, boxes[:20]]),
        np.concatenate([scores, np.ones((20, 4), np.float32)]),
    )
    got = detections(*junk, valid, candidates=120)
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a, b)
    nothing = detections(boxes, scores, np.zeros(30, bool))
    assert not nothing[3].any()
    assert nothing[4]


def test_class_nms_with_equal_scores_takes_the_lower_row_first():
    boxes = jnp.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]], jnp.float32)
    got = detections(boxes, np.full((3, 2), 0.5, np.float32), count=5, candidates=6)
    np.testing.assert_array_equal(got[3], [True] * 4 + [False])
    np.testing.assert_array_equal(got[2][:4], [0, 1, 0, 1])
    np.testing.assert_array_equal(got[0][:4], boxes[jnp.array([0, 0, 2, 2])])


def test_what_accelerators_run_settles_chains_longer_than_its_blind_rounds(monkeypatch):
    """Each box suppresses the next: to drop every other takes a round for each."""
    branch = lambda *given, cpu, default: default(*given)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", branch)
    left = 3.0 * np.arange(3 * nms._BLIND_ROUNDS)[:, None]
    chain = np.concatenate([left, 0 * left, left + 10, 0 * left + 10], axis=1).astype(np.float32)
    rng = np.random.default_rng(2)
    for boxes in (chain, clustered(rng, 120)):
        scores = np.linspace(1, 0, len(boxes), dtype=np.float32)
        valid = np.ones(len(boxes), bool)
        got = jax.jit(lambda *given: nms.nms(*given))(boxes, scores, valid, 0.5)
        want = reference.greedy_nms(boxes, scores, valid, 0.5, np.zeros(len(boxes), int))
        np.testing.assert_array_equal(got, want)
