import pathlib

import jax
import numpy as np
import pytest
import tensorflow as tf

from mixtrain_jax.config import load
from mixtrain_jax.data.input.single import single_view
from mixtrain_jax.data.views import color, geometry, parameters, render
from mixtrain_jax.data.views.parameters import ViewParameters
from mixtrain_jax.errors import UserError
from mixtrain_jax.models import pixels
from tests.mixtraining import small

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "pipeline.npz")
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def _render(image, sampled, bucket, config):
    """The view as a network sees it."""
    sampled = ViewParameters(*map(tf.constant, sampled))
    image, shown = render.render(tf.constant(image), sampled, *bucket, config.data)
    assert image.dtype == shown.dtype == np.uint8
    view = small.view(0, 1).replace(image=image.numpy(), shown=shown.numpy())
    return np.asarray(pixels.normalise(view, config.data.mean, config.data.std).image)


def _plain(size, new_size, matrix=None, op=0, level=1, holes=((0, 0, 0, 0),)):
    sampled = parameters.evaluation_view(size, new_size)
    return sampled._replace(
        matrix=sampled.matrix if matrix is None else np.asarray(matrix, np.float32),
        color=np.int32(op),
        level=np.int32(level),
        holes=np.array(holes, np.int32),
    )


def test_an_evaluation_view_is_normalised_and_padded(config):
    view = _render(IMAGE, parameters.evaluation_view((40, 60), (40, 60)), (64, 96), config)
    assert view.shape == (64, 96, 3)
    assert view.dtype == np.float32
    np.testing.assert_allclose(view[:40, :60], (IMAGE - MEAN) / STD, atol=1e-6)
    assert (view[40:] == 0).all()
    assert (view[:, 60:] == 0).all()


def test_bgr(config):
    config.data.channels, config.data.mean, config.data.std = (
        "bgr",
        (103.53, 116.28, 123.675),
        (1.0,) * 3,
    )
    view = _render(IMAGE, parameters.evaluation_view((40, 60), (40, 60)), (64, 96), config)
    np.testing.assert_allclose(view[:40, :60], (IMAGE - MEAN)[..., ::-1], atol=1e-4)


def test_bucket_changes_only_padding(config):
    rng = np.random.default_rng(3)
    sampled = parameters.sample(rng, "strong", np.array([40, 60]), (96, [50]), config.data.augment)
    small = _render(IMAGE, sampled, (64, 96), config)
    large = _render(IMAGE, sampled, (96, 128), config)
    np.testing.assert_array_equal(large[:64, :96], small)
    assert not large[64:].any()
    assert not large[:, 96:].any()


def test_holes_and_outside_are_zero(config):
    sampled = _plain((40, 60), (40, 60), geometry.translate(10, 0), holes=[(5, 20, 9, 30)])
    view = _render(IMAGE, sampled, (64, 64), config)
    expected = np.zeros((64, 64, 3))
    expected[:40, 10:60] = ((IMAGE - MEAN) / STD)[:, :50]
    expected[5:9, 20:30] = 0
    np.testing.assert_allclose(view, expected, atol=1e-6)


def test_order_of_operations(config):
    """Colour acts on the image, before it is resized."""
    op, level = color.NAMES.index("equalize"), 1
    coloured = color.apply(tf.constant(IMAGE), tf.constant(op), tf.constant(level)).numpy()
    sampled = _plain((40, 60), (60, 90), op=op, level=level)
    plain = _plain((40, 60), (60, 90))
    np.testing.assert_array_equal(
        _render(IMAGE, sampled, (64, 96), config), _render(coloured, plain, (64, 96), config)
    )


def _samples(kind, config, count=400, size=(40, 60), scale=(96, range(40, 61))):
    return [
        parameters.sample(
            np.random.default_rng([0, i]), kind, np.array(size), scale, config.data.augment
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_flips_can_be_turned_off(config, chance):
    changed = load.override_all(config, {"data.augment.flip": str(chance)})
    for kind in ("normal", "weak", "strong"):
        samples = _samples(kind, changed, count=50)
        straight = [d.matrix[0, 0] < 0 for d in samples if d.matrix[0, 1] == 0]
        assert set(straight) == {chance == 1}


def test_samples_of_each_kind(config):
    for kind in ("normal", "weak", "strong"):
        samples = _samples(kind, config)
        flips = np.array([d.matrix[0, 0] < 0 for d in samples if d.matrix[0, 1] == 0])
        assert 0.4 < flips.mean() < 0.6
        ops = np.bincount([d.color for d in samples], minlength=9)
        if kind == "weak":
            assert ops[0] == len(samples)
        else:
            assert ops.min() > 20
            assert {int(d.level) for d in samples} == set(range(1, 10))
        straight = [d.matrix[0, 1] == d.matrix[1, 0] == 0 for d in samples]
        holes = [(d.holes[:, 2:] > d.holes[:, :2]).all(axis=1).sum() for d in samples]
        if kind == "strong":
            assert 0.5 < np.mean(straight) < 0.7  # rotation and shear are two of five
            assert max(holes) == 5
        else:
            assert all(straight)
            assert max(holes) == 0
        for d in samples:
            height, width = d.size
            centre = np.linalg.inv(d.matrix) @ [width / 2, height / 2, 1]
            assert 0 <= centre[0] <= 60  # no operation moves the image's middle out of it
            assert 0 <= centre[1] <= 40


def test_short_sides_are_uniform(config):
    shorts = [min(d.size) for d in _samples("weak", config, 2100)]
    counts = np.bincount(shorts, minlength=61)[40:]
    assert counts.sum() == 2100
    assert ((counts - 100) ** 2 / 100).sum() < 45  # chi-square, 20 degrees: 0.1% is 45.3


def test_hole_sizes(config):
    config.data.augment.cutout_holes = (2, 3)
    config.data.augment.cutout_ratios = (0.1,)
    for d in _samples("strong", config, 100, scale=(96, [60])):
        assert d.holes.shape == (3, 4)
        assert d.size.tolist() == [60, 90]
        extent = d.holes[:, 2:] - d.holes[:, :2]
        assert (extent <= [6, 9]).all()
        inner = (d.holes[:, 2:] < d.size).all(axis=1) & (extent > 0).any(axis=1)
        assert (extent[inner] == [6, 9]).all()
        assert (extent[:2] > 0).any(axis=1).all()


def test_targets_keep_their_slots(config):
    sampled = _plain((40, 60), (40, 60), geometry.translate(-30, 0))
    fields = parameters.padded_boxes(
        np.array([[0, 0, 20, 20], [40, 5, 50, 15.0]]), np.array([4, 2]), sampled, 4
    )
    np.testing.assert_array_equal(
        fields["boxes"], [[0, 0, 0, 0], [10, 5, 20, 15], [0, 0, 0, 0], [0, 0, 0, 0]]
    )
    assert fields["valid"].tolist() == [False, True, False, False]
    assert fields["labels"].tolist() == [4, 2, 0, 0]


def test_fillers_accompany_a_single_view(config):
    alone, three = single_view(IMAGE, config.data), single_view(IMAGE, config.data, 3)
    np.testing.assert_array_equal(three.index, [0, -1, -1])
    for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(three), strict=True):
        assert one.dtype == many.dtype and many.shape == (3, *one.shape[1:])
        np.testing.assert_array_equal(many[:1], one)


def test_single_view(config):
    view = single_view(IMAGE, config.data)
    assert view.image.shape == (1, 64, 96, 3)
    assert view.size.tolist() == [[48, 72]]
    np.testing.assert_allclose(view.matrix, [np.diag([1.2, 1.2, 1])], rtol=1e-6)
    assert view.boxes.shape == (1, config.data.max_boxes, 4)
    assert not view.valid.any()
    config.data.val.buckets = ((64, 64),)
    with pytest.raises(
        UserError, match=r"height 48 and width 72 fits in none of config.data.val.buck"
    ):
        single_view(IMAGE, config.data)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("seed", "op", "level"),
    [(0, "autocontrast", 1), (1, "solarize", 6), (2, "solarize", 7), (3, "identity", 1)],
)
def test_golden_normal_view(seed, op, level, config):
    """Within one grey level of the released view: OpenCV resizes in fixed point."""
    size = GOLDEN[f"sup{seed}_size"]
    matrix = geometry.scale((220, 300), size)
    if GOLDEN[f"sup{seed}_flip"]:
        matrix = geometry.flip(size[1]) @ matrix
    sampled = _plain((220, 300), size, matrix, color.NAMES.index(op), level)
    ours = _render(GOLDEN["input"], sampled, (256, 352), config)[: size[0], : size[1]][1::4, 2::4]
    error = np.abs(ours - GOLDEN[f"sup{seed}_image"]) * STD
    assert error.max() < 1.001
    assert (error > 0.5).mean() < 0.15


def test_each_transform_goes_both_ways(config):
    """Rotation, shear and translation have a fair sign, seen before the flip."""
    size = np.array([40, 60])
    ways = {"rotate": [], "shear": [], "right": [], "down": []}
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        matrix = parameters.sample(rng, "strong", size, (60, [40]), config.data.augment).matrix
        flip = geometry.flip(60) if np.linalg.det(matrix) < 0 else np.eye(3)
        moved = matrix @ np.linalg.inv(flip)
        if abs(moved[1, 0]) > 1e-3:
            ways["rotate"].append(moved[1, 0] > 0)
        elif abs(moved[0, 1]) > 1e-3:
            ways["shear"].append(moved[0, 1] > 0)
        elif abs(moved[0, 2]) > 1e-3:
            ways["right"].append(moved[0, 2] > 0)
        elif abs(moved[1, 2]) > 1e-3:
            ways["down"].append(moved[1, 2] > 0)
    for name, signs in ways.items():
        assert len(signs) > 200, name
        assert 0.4 < np.mean(signs) < 0.6, name
