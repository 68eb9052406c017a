from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from mixtrain_jax.ops import roi_align as module
from mixtrain_jax.ops import roi_bins, roi_tiles
from mixtrain_jax.ops import rois as rois_module
from mixtrain_jax.ops.roi_align import roi_align
from tests.ops import reference

STRIDES = (4, 8, 16, 32)
BUCKET = (256, 320)
SIZES = np.array([[200, 310], [256, 130]], np.int32)  # own pads 224x320 and 256x160


def in_the_way_of(way, monkeypatch, strides=STRIDES):
    """RoIAlign as on CPUs, on TPUs with tiles that cover little, or on GPUs (default)."""
    monkeypatch.setattr(module, "_ON_TPU", roi_tiles.Size(tile=12, chunk=32))
    ways = module._ways
    monkeypatch.setattr(module, "_ways", lambda *given: {"default": ways(*given)[way]})
    return jax.jit(partial(roi_align, strides=strides))


@pytest.fixture(params=["cpu", "tpu", "default"])
def way(request):
    return request.param


@pytest.fixture
def tiles(way, monkeypatch):
    return in_the_way_of(way, monkeypatch)


def random_pyramid(rng, bucket=BUCKET, channels=3) -> tuple[np.ndarray, ...]:
    shapes = [(2, bucket[0] // stride, bucket[1] // stride, channels) for stride in STRIDES]
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def random_rois(rng, count, way) -> np.ndarray:
    """RoIs [2, count, 4] of all sizes and shapes; a quarter may reach out of the image.

    In the way of GPUs none is larger than the batch's shape.
    """
    height, width = (side[:, None] for side in SIZES.T)
    side = np.exp(rng.uniform(0, np.log(900), (2, count)))
    aspect = np.exp(rng.normal(0, 0.8, (2, count)))
    x, y = rng.uniform(0, width, (2, count)), rng.uniform(0, height, (2, count))
    half_width, half_height = side * aspect / 2, side / aspect / 2
    if way == "default":
        half_width = np.minimum(half_width, BUCKET[1] / 2)
        half_height = np.minimum(half_height, BUCKET[0] / 2)
    boxes = np.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)
    limit = np.concatenate([SIZES[:, ::-1]] * 2, -1)[:, None]
    outside = np.arange(count)[:, None] % 4 == 0
    return np.where(outside, boxes, np.clip(boxes, 0, limit)).astype(np.float32)


def extent(image: int, level: int) -> tuple[int, int]:
    height, width = (-(-int(side) // 32) * 32 for side in SIZES[image])
    return -(-height // STRIDES[level]), -(-width // STRIDES[level])


class OnnxRoiAlign:
    """ONNX's RoIAlign at one stride."""

    def __init__(self, stride: int):
        tensor = onnx.helper.make_tensor_value_info
        node = onnx.helper.make_node(
            "RoiAlign",
            ["x", "rois", "batch"],
            ["y"],
            output_height=7,
            output_width=7,
            sampling_ratio=0,
            spatial_scale=1 / stride,
            mode="avg",
            coordinate_transformation_mode="half_pixel",
        )
        graph = onnx.helper.make_graph(
            [node],
            "roi_align",
            [
                tensor("x", onnx.TensorProto.FLOAT, [1, None, None, None]),
                tensor("rois", onnx.TensorProto.FLOAT, [None, 4]),
                tensor("batch", onnx.TensorProto.INT64, [None]),
            ],
            [tensor("y", onnx.TensorProto.FLOAT, None)],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=8
        )
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def __call__(self, features: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Pools boxes [R, 4] from features [H, W, C] to [R, 7, 7, C]."""
        x = np.ascontiguousarray(features.transpose(2, 0, 1))[None]
        feeds = {"x": x, "rois": boxes, "batch": np.zeros(len(boxes), np.int64)}
        return self.session.run(None, feeds)[0].transpose(0, 2, 3, 1)


def test_equals_onnx(tiles, way):
    sessions = [OnnxRoiAlign(stride) for stride in STRIDES]
    seen = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        pyramid, boxes = random_pyramid(rng), random_rois(rng, 128, way)
        got = tiles(pyramid, boxes, SIZES)
        levels = np.array([[reference.roi_level(box) for box in image] for image in boxes])
        for image in range(2):
            for level in range(4):
                rows, columns = extent(image, level)
                here = levels[image] == level
                if here.any():
                    own = pyramid[level][image, :rows, :columns]
                    want = sessions[level](own, boxes[image][here])
                    np.testing.assert_allclose(got[image][here], want, atol=5e-5)
                    seen.add(level)
    # No RoI is large enough for the coarsest level that is no larger than the batch's shape.
    assert seen == ({0, 1, 2} if way == "default" else {0, 1, 2, 3})


def dense(boxes: np.ndarray) -> list[list[np.ndarray]]:
    """For each image and RoI the matrix [49, rows * columns] that pools its level, float64."""
    matrices = []
    for image, rois in enumerate(boxes):
        matrices.append([])
        for box in rois:
            level = reference.roi_level(box)
            rows, columns = extent(image, level)
            matrix = np.zeros((7, 7, rows, columns))
            for i, j, row, column, weight in reference.roi_taps(box, STRIDES[level], rows, columns):
                matrix[i, j, row, column] += weight
            matrices[-1].append(matrix.reshape(49, -1))
    return matrices


def test_value_and_gradient_equal_float64_loop(tiles, way):
    rng = np.random.default_rng(10)
    pyramid, boxes = random_pyramid(rng), random_rois(rng, 24, way)
    boxes[:, 0] = [20, 99, 300, 100]  # as flat as can be
    boxes[:, 1] = [-50, -50, 250, 200] if way == "default" else [-50, -50, 400, 400]
    gradient = rng.normal(size=(2, 24, 7, 7, 3)).astype(np.float32)
    value, pull = jax.vjp(lambda p, b: tiles(p, b, SIZES), pyramid, boxes)
    got, box_gradient = pull(gradient)
    want = [np.zeros(level.shape) for level in pyramid]
    for image, matrices in enumerate(dense(boxes)):
        for roi, matrix in enumerate(matrices):
            level = reference.roi_level(boxes[image, roi])
            rows, columns = extent(image, level)
            own = pyramid[level][image, :rows, :columns].reshape(-1, 3)
            np.testing.assert_allclose(value[image, roi].reshape(49, 3), matrix @ own, atol=3e-5)
            want[level][image, :rows, :columns] += (
                matrix.T @ gradient[image, roi].reshape(49, 3)
            ).reshape(rows, columns, 3)
    for level in range(4):
        np.testing.assert_allclose(got[level], want[level], atol=3e-5)
    assert (box_gradient == 0).all()


@pytest.mark.golden
def test_one_level_equals_released_code(way, monkeypatch):
    golden = reference.golden()
    features = golden["roi_feat"].transpose(0, 2, 3, 1)
    rois, image = golden["roi_rois"][:, 1:], golden["roi_rois"][:, 0].astype(int)
    boxes = np.stack([np.where((image == i)[:, None], rois, 0) for i in range(2)])
    gradient = golden["roi_grad_out"].transpose(0, 2, 3, 1)
    own = image[:, None, None, None]
    gradient = np.stack([np.where(own == i, gradient, 0) for i in range(2)])
    size = np.array([[100, 132]] * 2, np.int32)
    pool_one = in_the_way_of(way, monkeypatch, strides=(4,))
    value, pull = jax.vjp(lambda x: pool_one((x,), boxes, size), features)
    want = golden["roi_out"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(value[image, np.arange(len(rois))], want, atol=2e-5)
    want = golden["roi_grad_feat"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pull(gradient)[0], want, atol=2e-5)


@pytest.mark.golden
def test_choice_of_level_equals_released_code(tiles):
    golden = reference.golden()
    pyramid = tuple(golden[f"ext_feat{level}"].transpose(0, 2, 3, 1) for level in range(4))
    rois, image = golden["ext_rois"][:, 1:], golden["ext_rois"][:, 0].astype(int)
    got = tiles(pyramid, np.stack([rois, rois]), np.array([[800, 1216]] * 2, np.int32))
    want = golden["ext_out"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got[image, np.arange(len(rois))], want, atol=3e-5)
    assert set(golden["ext_levels"]) == {0, 1, 2, 3}


def test_a_larger_bucket_changes_nothing(tiles, way):
    rng = np.random.default_rng(11)
    small, boxes = random_pyramid(rng), random_rois(rng, 64, way)
    large = tuple(10 * level for level in random_pyramid(rng, (320, 416)))
    for level in range(4):
        for image in range(2):
            rows, columns = extent(image, level)
            large[level][image, :rows, :columns] = small[level][image, :rows, :columns]
    gradient = rng.normal(size=(2, 64, 7, 7, 3)).astype(np.float32)
    value, pull = jax.vjp(lambda p: tiles(p, boxes, SIZES), small)
    large_value, large_pull = jax.vjp(lambda p: tiles(p, boxes, SIZES), large)
    np.testing.assert_allclose(large_value, value, atol=1e-5)
    for level, (a, b) in enumerate(zip(large_pull(gradient)[0], pull(gradient)[0])):
        for image in range(2):
            rows, columns = extent(image, level)
            own = a[image, :rows, :columns]
            np.testing.assert_allclose(own, b[image, :rows, :columns], atol=1e-5)
            assert jnp.abs(a[image]).sum() == pytest.approx(jnp.abs(own).sum())


def test_padded_rois_are_inert_zero_and_finite(tiles, way):
    rng = np.random.default_rng(12)
    pyramid, boxes = random_pyramid(rng), random_rois(rng, 20, way)
    empty = np.array(
        [[0, 0, 0, 0], [30, 40, 30, 90], [30, 40, 60, 40], [90, 90, 40, 40], [np.nan] * 4],
        np.float32,
    )
    padded = np.concatenate([boxes, np.stack([empty, empty])], axis=1)
    value, pull = jax.vjp(lambda p: tiles(p, boxes, SIZES), pyramid)
    padded_value, padded_pull = jax.vjp(lambda p: tiles(p, padded, SIZES), pyramid)
    np.testing.assert_allclose(padded_value[:, :20], value, atol=1e-6)
    assert (padded_value[:, 20:] == 0).all()
    gradient = rng.normal(size=padded_value.shape).astype(np.float32)
    for a, b in zip(padded_pull(gradient)[0], pull(gradient[:, :20])[0]):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_filler_images_have_no_cells(tiles):
    """Their size is 0; nothing is read where nothing is, and the other image's RoIs stay."""
    rng = np.random.default_rng(17)
    pyramid, boxes = random_pyramid(rng), random_rois(rng, 16, "default")
    alone = tiles(pyramid, boxes, SIZES)
    boxes[0] = 0
    beside = tiles(pyramid, boxes, SIZES * np.array([[0], [1]], np.int32))
    assert (beside[0] == 0).all()
    np.testing.assert_allclose(beside[1], alone[1], atol=1e-6)


def test_only_empty_rois(tiles):
    pyramid = random_pyramid(np.random.default_rng(13))
    value, pull = jax.vjp(lambda p: tiles(p, jnp.zeros((2, 8, 4)), SIZES), pyramid)
    assert (value == 0).all()
    assert all((level == 0).all() for level in pull(jnp.ones_like(value))[0])


def assert_rounded_once(value, exact):
    """Float32 sums rounded to bfloat16: half a unit apart, and equal but where a sum's order tells.

    The compiler may add in another order for another dtype; a last bit of float32 then decides
    which of two neighbours some number is rounded to.
    """
    assert value.dtype == jnp.bfloat16
    value, exact = np.asarray(value, np.float32), np.asarray(exact)
    np.testing.assert_array_less(np.abs(value - exact), 2.0**-8 * np.abs(exact) * 1.0001 + 1e-30)
    rounded = np.asarray(jnp.asarray(exact).astype(jnp.bfloat16), np.float32)
    assert (value == rounded).mean() > 0.999


def test_bfloat16_sums_in_float32(tiles, way):
    rng = np.random.default_rng(14)
    pyramid = tuple(jnp.asarray(level, jnp.bfloat16) for level in random_pyramid(rng))
    boxes = random_rois(rng, 64, way)
    value, pull = jax.vjp(lambda p: tiles(p, boxes, SIZES), pyramid)
    exact, exact_pull = jax.vjp(
        lambda p: tiles(p, boxes, SIZES), tuple(level.astype(jnp.float32) for level in pyramid)
    )
    assert_rounded_once(value, exact)
    gradient = jnp.asarray(rng.normal(size=value.shape), jnp.bfloat16)
    for a, b in zip(pull(gradient)[0], exact_pull(gradient.astype(jnp.float32))[0]):
        assert_rounded_once(a, b)


def test_a_roi_larger_than_the_batch_is_never_pooled_wrongly_on_gpus(monkeypatch):
    rng = np.random.default_rng(15)
    pyramid, boxes = random_pyramid(rng), random_rois(rng, 64, "cpu")
    boxes[:, 0] = [-3000, -2000, 3000, 2000]
    exact = jax.jit(partial(roi_align, strides=STRIDES))(pyramid, boxes, SIZES)
    found = in_the_way_of("default", monkeypatch)(pyramid, boxes, SIZES)
    unknown = np.isnan(found).any(axis=(2, 3, 4))
    larger = (boxes[..., 2:] - boxes[..., :2] > BUCKET[::-1]).any(axis=-1)
    assert unknown[0, 0] and not (unknown & ~larger).any()
    np.testing.assert_allclose(found[~unknown], exact[~unknown], atol=5e-5)


def test_no_bin_touches_more_cells_than_gpus_give_it():
    """Random RoIs of all shapes up to the batch's, those on the edge between two levels often."""
    rng, bucket, count = np.random.default_rng(16), np.array([800, 1344]), 200_000
    shapes = [tuple(bucket // stride) for stride in STRIDES]
    most = roi_bins.most_cells(7, shapes, STRIDES)
    area = rng.choice([112, 224, 448, 448 * 2], count) ** 2 * rng.choice(
        [1, 0.9999999, 0.99], count
    )
    width = np.exp(rng.uniform(np.log(1), np.log(bucket[1]), count))
    sides = np.minimum(np.stack([width, area / width], axis=-1), bucket[::-1])
    start = rng.uniform(-20, 1, (count, 2)) * rng.integers(0, 2, (count, 1))
    start += rng.uniform(size=(count, 2)) * (bucket[::-1] - sides)
    boxes = np.concatenate([start, start + sides], axis=-1).astype(np.float32)
    origins = [(0, 0)] * 4
    found = rois_module.locate(boxes[None], bucket[None].astype(np.int32), origins, shapes, STRIDES)
    _, touched = rois_module.cells_of_bins(found, 7)
    cells = np.asarray(touched).max(axis=-1).prod(axis=-1)
    assert 0.8 * most < cells.max() <= most
