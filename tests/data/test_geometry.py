import pathlib

import cv2
import numpy as np
import pytest
import tensorflow as tf

from mixtrain_jax.data.views import color, geometry
from mixtrain_jax.data.views.warp import warp

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "pipeline.npz")
IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


def _warp(image, matrix, size):
    pixels, inside = warp(
        tf.constant(image), tf.constant(matrix, tf.float32), tf.constant(size, tf.int32)
    )
    return pixels.numpy(), inside.numpy()


def _reference(image, matrix, size):
    """The convention in float64: pixels, and how far inside the source each comes from."""
    height, width = image.shape[:2]
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    q = np.linalg.inv(matrix) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    # rounding may put a pixel centre that is exactly on the border to either side
    margin = np.minimum(np.minimum(q[0], width - q[0]), np.minimum(q[1], height - q[1]))
    column, row = np.clip(q[0] - 0.5, 0, width - 1), np.clip(q[1] - 0.5, 0, height - 1)
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    u, v = (column - left)[:, None], (row - top)[:, None]
    upper = image[top, left] * (1 - u) + image[top, right] * u
    lower = image[bottom, left] * (1 - u) + image[bottom, right] * u
    return (upper * (1 - v) + lower * v).reshape(*size, 3), margin.reshape(size)


def _matrices():
    rng = np.random.default_rng(1)
    yield np.eye(3), (37, 53)
    for height, width in ((37, 53), (80, 91), (20, 33), (74, 27)):
        scaled = geometry.scale(IMAGE.shape[:2], (height, width))
        yield scaled, (height, width)
        yield geometry.flip(width) @ scaled, (height, width)
        for op in range(5):
            for sign in (-1, 1):
                flipped = geometry.flip(width) @ scaled if rng.random() < 0.5 else scaled
                moved = geometry.geometric(op, int(rng.integers(1, 10)), sign, (height, width))
                yield moved @ flipped, (height, width)


@pytest.mark.parametrize(("matrix", "size"), list(_matrices()))
def test_warp_against_float64(matrix, size):
    pixels, inside = _warp(IMAGE, matrix, size)
    expected, margin = _reference(IMAGE.astype(np.float64), matrix, size)
    clear = np.abs(margin) > 1e-4
    np.testing.assert_array_equal(inside[clear], margin[clear] > 0)
    assert np.abs(pixels - expected)[inside & clear].max() < 0.02


@pytest.mark.parametrize("size", [(37, 53), (80, 91), (20, 33), (74, 27), (36, 52)])
def test_resize_equals_opencv(size):
    pixels, inside = _warp(IMAGE, geometry.scale(IMAGE.shape[:2], size), size)
    theirs = cv2.resize(IMAGE, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert inside.all()
    assert np.abs(np.round(pixels) - theirs).max() <= 1


def test_flips_and_whole_shifts_are_exact():
    flipped, inside = _warp(IMAGE, geometry.flip(53), (37, 53))
    np.testing.assert_array_equal(flipped, IMAGE[:, ::-1])
    assert inside.all()
    for x, y in ((5, 0), (-7, 0), (0, 3), (0, -4)):
        moved, inside = _warp(IMAGE, geometry.translate(x, y), (37, 53))
        expected = np.roll(IMAGE, (y, x), (0, 1))
        np.testing.assert_array_equal(moved[inside], expected[inside])
        assert inside.sum() == (37 - abs(y)) * (53 - abs(x))


def test_transform_boxes_takes_edge_middles():
    boxes = np.array([[10.0, 10, 30, 20], [0, 0, 50, 40], [48, 1, 50, 2]])
    turned, valid = geometry.transform_boxes(boxes, geometry.rotate(90, (40, 50)), (40, 50))
    # a quarter turn about (25, 20), counter-clockwise as seen: (x, y) goes to (5 + y, 45 - x)
    np.testing.assert_allclose(turned[0], [15, 15, 25, 35], atol=1e-5)
    np.testing.assert_allclose(turned[1], [5, 0, 45, 40], atol=1e-5)
    assert valid.tolist() == [True, True, False]
    tilted, _ = geometry.transform_boxes(boxes, geometry.rotate(45, (40, 50)), (40, 50))
    middles = np.array([[20, 10], [30, 15], [20, 20], [10, 15]]) - (25, 20)
    around = middles @ np.array([[1, -1], [1, 1]]) / np.sqrt(2) + (25, 20)
    np.testing.assert_allclose(tilted[0], [*around.min(0), *around.max(0)], atol=1e-5)


def test_transform_boxes_round_trip():
    rng = np.random.default_rng(0)
    corner, extent = rng.uniform(100, 200, (50, 2)), rng.uniform(5, 60, (50, 2))
    boxes = np.concatenate([corner, corner + extent], axis=1)
    size = (1000, 1000)
    for matrix in (
        geometry.flip(700) @ geometry.scale((400, 400), (800, 700)),
        geometry.translate(31.5, -40) @ geometry.flip(700),
        geometry.rotate(180, (400, 400)),
    ):
        there, _ = geometry.transform_boxes(boxes, matrix, size)
        back, valid = geometry.transform_boxes(there, np.linalg.inv(matrix), size)
        np.testing.assert_allclose(back, boxes, atol=1e-3)
        assert valid.all()


def test_no_boxes():
    boxes, valid = geometry.transform_boxes(np.zeros([0, 4]), np.eye(3), (10, 10))
    assert boxes.shape == (0, 4)
    assert valid.shape == (0,)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("level", [2, 6, 9])
@pytest.mark.parametrize("op", range(5))
def test_boxes_stay_on_their_objects(op, level, sign):
    """Draws a textured diamond, moves picture and box together, and finds the diamond in its box.

    A diamond touches its box at the edge mid-points, the points that boxes are moved by, so that
    its box stays exactly tight.
    """
    rng = np.random.default_rng(level)
    size, box = np.array([120, 160]), np.array([[60.0, 40, 100, 80]])
    y, x = np.mgrid[:120, :160] + 0.5
    diamond = np.abs(x - 80) + np.abs(y - 60) <= 20
    picture = np.zeros([120, 160, 3], np.uint8)
    picture[diamond] = rng.integers(128, 256, (diamond.sum(), 3))
    new_size = np.array([180, 240])
    matrix = geometry.geometric(op, level, sign, new_size) @ (
        geometry.flip(240) @ geometry.scale(size, new_size)
    )
    pixels, inside = _warp(picture, matrix, new_size)
    rows, columns = np.nonzero((pixels.max(axis=-1) > 64) & inside)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    moved, valid = geometry.transform_boxes(box, matrix, new_size)
    assert valid.all()
    np.testing.assert_allclose(found, moved[0], atol=2.5)


@pytest.mark.golden
@pytest.mark.parametrize("seed", range(10))
def test_golden_boxes(seed):
    for view in ("strongfix", "sup"):
        size, flipped = GOLDEN[f"{view}{seed}_size"], GOLDEN[f"{view}{seed}_flip"]
        if view == "sup":
            matrix = geometry.scale((220, 300), size)
            matrix = geometry.flip(size[1]) @ matrix if flipped else matrix
        else:
            matrix = GOLDEN[f"{view}{seed}_matrix"]
        boxes, valid = geometry.transform_boxes(GOLDEN["boxes"], matrix, size)
        np.testing.assert_allclose(boxes[valid], GOLDEN[f"{view}{seed}_boxes"], atol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("seed", range(10))
def test_golden_matrices(seed):
    """Every strong matrix of the released code is one of ours.

    It turns about the middle of the pixel centres, in coordinates that call the first centre 0;
    ours about the same point in coordinates that call it 0.5.
    """
    size, released = GOLDEN[f"strongfix{seed}_size"], GOLDEN[f"strongfix{seed}_matrix"]
    matrix = geometry.scale((220, 300), size)
    if GOLDEN[f"strongfix{seed}_flip"]:
        matrix = geometry.flip(size[1]) @ matrix
    to_centres = geometry.translate(-0.5, -0.5)
    errors = []
    for op in range(5):
        for level in range(1, 10):
            for sign in (-1, 1):
                moved = geometry.geometric(op, level, sign, size)
                if geometry.NAMES[op] == "rotate":
                    moved = to_centres @ moved @ np.linalg.inv(to_centres)
                errors.append(np.abs(moved @ matrix - released).max())
    assert min(errors) < 1e-4


@pytest.mark.golden
@pytest.mark.parametrize(
    ("view", "seed", "op", "level"),
    [("weak", seed, "identity", 1) for seed in range(4)]
    + [
        ("strong", 0, "autocontrast", 1),
        ("strong", 1, "solarize", 6),
        ("strong", 2, "solarize", 7),
        ("strong", 3, "identity", 1),
    ],
)
def test_golden_warp(view, seed, op, level):
    """The released warp, to which pixel centres are whole numbers, is ours half a pixel off."""
    key = f"{'strongfix' if view == 'strong' else 'weak'}{seed}"
    centre = geometry.translate(0.5, 0.5)
    matrix = centre @ GOLDEN[f"{key}_matrix"] @ np.linalg.inv(centre)
    image = color.apply(
        tf.constant(GOLDEN["input"]), tf.constant(color.NAMES.index(op)), tf.constant(level)
    )
    pixels, inside = _warp(image, matrix, GOLDEN[f"{key}_size"])
    pixels = (pixels - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    pixels, inside = pixels[1::4, 2::4], inside[1::4, 2::4]
    released = GOLDEN[f"{view}{seed}_image"]
    shown = inside & (released != 0).any(axis=-1)  # neither cut out nor beyond the rim
    shown[:1], shown[-1:], shown[:, :1], shown[:, -1:] = False, False, False, False
    assert shown.mean() > 0.1
    error = np.abs(pixels - released).max(axis=-1)[shown]
    # at an oblique rim the released warp blends with the fill
    assert (error > 2e-4).mean() <= (0.01 if view == "strong" else 0)
