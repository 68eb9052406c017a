import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.ops import anchors as anchor_ops
from tests.ops import reference

STRIDES = (4, 8, 16, 32, 64)


def shapes(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


@pytest.mark.golden
def test_levels_equal_released_code():
    golden = reference.golden()
    levels = zip([(7, 10), (4, 5), (2, 3), (1, 2), (1, 1)], STRIDES)
    for level, ((height, width), stride) in enumerate(levels):
        got = anchor_ops.level_anchors(height, width, stride)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, golden[f"anchors_l{level}"], rtol=1e-6, atol=1e-4)


def test_order_area_and_ratio():
    ratios = (0.25, 1.0, 3.0)
    got = anchor_ops.level_anchors(3, 4, 16, scale=5, ratios=ratios).reshape(3, 4, 3, 4)
    width, height = got[..., 2] - got[..., 0], got[..., 3] - got[..., 1]
    np.testing.assert_allclose(width * height, (16 * 5) ** 2, rtol=1e-5)
    np.testing.assert_allclose(height / width, np.broadcast_to(ratios, (3, 4, 3)), rtol=1e-5)
    x, y = got[..., 0] + width / 2, got[..., 1] + height / 2
    np.testing.assert_allclose(x, np.broadcast_to(16 * np.arange(4)[:, None], x.shape), atol=1e-4)
    np.testing.assert_allclose(
        y, np.broadcast_to(16 * np.arange(3)[:, None, None], y.shape), atol=1e-4
    )


def test_pyramid_is_level_after_level():
    got = anchor_ops.pyramid_anchors(shapes(96, 128), STRIDES)
    start = 0
    for (height, width), stride in zip(shapes(96, 128), STRIDES):
        stop = start + 3 * height * width
        want = anchor_ops.level_anchors(height, width, stride)
        np.testing.assert_array_equal(got[start:stop], want)
        start = stop
    assert start == len(got)


@pytest.mark.golden
def test_inside_with_border_equals_released_code():
    golden = reference.golden()
    got = anchor_ops.inside(golden["assign_anchors"], jnp.array([100, 150]), border=0)
    np.testing.assert_array_equal(got, golden["anchor_inside_border0_100x150"])


@pytest.mark.parametrize("border", [-1, 0, 20])
@pytest.mark.parametrize("size", [(1, 1), (64, 96), (65, 97), (90, 250), (256, 256)])
def test_inside_equals_loop_over_cells(size, border):
    bucket = (256, 256)
    got = anchor_ops.inside(
        anchor_ops.pyramid_anchors(shapes(*bucket), STRIDES), jnp.array(size), border
    )
    height, width = (-(-side // 32) * 32 for side in size)
    want = []
    for (rows, columns), stride in zip(shapes(*bucket), STRIDES):
        for y in range(rows):
            for x in range(columns):
                cell = y < -(-height // stride) and x < -(-width // stride)
                for ratio in (0.5, 1, 2):
                    h, w = 4 * stride * np.sqrt(ratio), 4 * stride / np.sqrt(ratio)
                    cy, cx = y * stride, x * stride
                    fits = (
                        min(cy - h, cx - w) >= -border
                        and cy + h < size[0] + border
                        and cx + w < size[1] + border
                    )
                    want.append(cell and (border < 0 or fits))
    np.testing.assert_array_equal(got, want)
    assert got.any() or border >= 0


def test_inside_does_not_depend_on_the_bucket():
    size = jnp.array([70, 100])
    small = anchor_ops.level_anchors(24, 32, 4)
    large = anchor_ops.level_anchors(40, 48, 4)
    got = anchor_ops.inside(large, size).reshape(40, 48, 3)
    np.testing.assert_array_equal(got[:24, :32], anchor_ops.inside(small, size).reshape(24, 32, 3))
    assert got[:24, :32].all()
    assert got.sum() == 24 * 32 * 3
