import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.ops import padding
from tests.ops import reference

STDS = {
    "rpn": (1, 1, 1, 1),
    "s0": (0.1, 0.1, 0.2, 0.2),
    "s1": (0.05, 0.05, 0.1, 0.1),
    "s2": (0.033, 0.033, 0.067, 0.067),
}


def test_own_pad_is_the_next_multiple_of_32():
    size = jnp.array([[1, 32], [33, 64], [800, 1203]])
    np.testing.assert_array_equal(padding.padded_size(size), [[32, 32], [64, 64], [800, 1216]])


def test_iou_equals_loop():
    rng = np.random.default_rng(0)
    a, b = reference.random_boxes(rng, (40, 7)), reference.grid_boxes(rng, (40, 9))
    got = box_ops.iou(a, b)
    want = [[[reference.iou(x, y) for y in ys] for x in xs] for xs, ys in zip(a, b)]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_iou_of_empty_boxes_is_zero_with_finite_gradient():
    empty = jnp.zeros((2, 4))
    assert (box_ops.iou(empty, empty) == 0).all()
    assert jnp.isfinite(jax.grad(lambda b: box_ops.iou(b, b).sum())(empty)).all()


def test_area_is_zero_where_a_side_is_negative():
    boxes = jnp.array([[0, 0, 3, 4], [3, 0, 0, 4], [3, 4, 0, 0], [1, 1, 1, 9]], jnp.float32)
    np.testing.assert_array_equal(box_ops.area(boxes), [12, 0, 0, 0])


@pytest.mark.golden
def test_iou_equals_released_code():
    golden = reference.golden()
    got = box_ops.iou(golden["assign_gts"], golden["assign_props"])
    np.testing.assert_allclose(got, golden["iou_gt_props"], atol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", STDS)
def test_coding_equals_released_code(name):
    golden = {
        k[len(f"coder_{name}_") :]: v
        for k, v in reference.golden().items()
        if k.startswith(f"coder_{name}_")
    }
    encoded = box_ops.encode(golden["boxes"], golden["gts"], STDS[name])
    np.testing.assert_allclose(encoded, golden["encoded"], rtol=1e-5, atol=1e-5)
    decoded = box_ops.decode(golden["boxes"], golden["deltas"], STDS[name])
    np.testing.assert_allclose(decoded, golden["decoded_noclip"], rtol=1e-5, atol=1e-3)
    decoded = box_ops.decode(golden["boxes"], golden["deltas"], STDS[name], jnp.array([200, 300]))
    np.testing.assert_allclose(decoded, golden["decoded_200x300"], rtol=1e-5, atol=1e-3)


def test_decode_inverts_encode():
    rng = np.random.default_rng(1)
    anchors, targets = reference.random_boxes(rng, (2, 500)) + [0, 0, 4, 4]
    for stds in STDS.values():
        deltas = box_ops.encode(anchors, targets, stds)
        np.testing.assert_allclose(box_ops.decode(anchors, deltas, stds), targets, atol=2e-3)


def test_decode_bounds_the_change_of_size():
    anchors = jnp.array([[10, 10, 20, 30]], jnp.float32)
    width, height = 10 * 1000 / 16, 20 * 16 / 1000
    got = box_ops.decode(anchors, jnp.array([[0, 0, 99, -99]], jnp.float32))
    want = [[15 - width / 2, 20 - height / 2, 15 + width / 2, 20 + height / 2]]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_decode_and_clip_broadcast_over_images_and_classes():
    rng = np.random.default_rng(2)
    boxes = reference.random_boxes(rng, (2, 5))
    deltas = rng.normal(size=(2, 5, 3, 4)).astype(np.float32)
    sizes = np.array([[50, 90], [70, 30]])
    got = box_ops.decode(boxes[..., None, :], deltas, size=sizes)
    for b in range(2):
        for n in range(5):
            for c in range(3):
                want = box_ops.decode(boxes[b, n], deltas[b, n, c])
                height, width = sizes[b]
                want = np.clip(want, 0, [width, height, width, height])
                np.testing.assert_allclose(got[b, n, c], want, rtol=1e-6, atol=1e-5)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_encode_is_finite_on_degenerate_boxes(corners):
    anchors, targets = jnp.array(corners, jnp.float32).reshape(2, 1, 4)
    value, gradients = jax.value_and_grad(
        lambda a, t: box_ops.encode(a, t, STDS["s2"]).sum(), argnums=(0, 1)
    )(anchors, targets)
    assert np.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in gradients)


@pytest.mark.golden
def test_transform_equals_released_code():
    golden = reference.golden()
    got, seen = box_ops.transform(golden["tf_boxes"], golden["tf_M"], jnp.array([400, 500]))
    want = golden["tf_out_400x500"]
    np.testing.assert_allclose(got, want, atol=1e-3)
    np.testing.assert_array_equal(seen, (want[:, 2] > want[:, 0]) & (want[:, 3] > want[:, 1]))
    assert not seen.all()


def test_transform_equals_loop_over_images():
    rng = np.random.default_rng(3)
    boxes = reference.random_boxes(rng, (8, 20))
    matrices = np.tile(np.eye(3, dtype=np.float32), (8, 1, 1))
    matrices[:, :2] += rng.normal(size=(8, 2, 3)) * [0.5, 0.5, 20]
    sizes = rng.integers(20, 200, (8, 2))
    got, seen = box_ops.transform(boxes, matrices, sizes)
    for b in range(8):
        height, width = sizes[b]
        for n, (x1, y1, x2, y2) in enumerate(boxes[b].astype(np.float64)):
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            points = np.array([[x, y1, 1], [x2, y, 1], [x, y2, 1], [x1, y, 1]]) @ matrices[b].T
            low, high = points[:, :2].min(0), points[:, :2].max(0)
            want = np.clip([*low, *high], 0, [width, height, width, height])
            np.testing.assert_allclose(got[b, n], want, atol=1e-3)
            assert seen[b, n] == (want[2] > want[0] and want[3] > want[1])


def test_transform_flip_is_exact():
    flip = jnp.array([[-1, 0, 64], [0, 1, 0], [0, 0, 1]], jnp.float32)
    boxes = jnp.array([[3.5, 2, 10, 20], [0, 0, 0, 0]], jnp.float32)
    got, seen = box_ops.transform(boxes, flip, jnp.array([48, 64]))
    np.testing.assert_array_equal(got[0], [54, 2, 60.5, 20])
    np.testing.assert_array_equal(seen, [True, False])


def test_inverse_of_affine_matrices():
    rng = np.random.default_rng(5)
    matrix = np.concatenate([rng.normal(0, 1, (50, 2, 3)), np.zeros((50, 1, 3))], axis=1)
    matrix[:, :2, 2] *= 500
    matrix[:, 2, 2] = 1
    good = np.abs(np.linalg.det(matrix)) > 0.1
    got = box_ops.inverse(jnp.asarray(matrix[good], jnp.float32))
    np.testing.assert_allclose(got, np.linalg.inv(matrix[good]), rtol=1e-4, atol=1e-3)
    assert got.shape == (good.sum(), 3, 3) and good.sum() > 30
