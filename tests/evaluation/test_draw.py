import itertools

import numpy as np
import pytest
from PIL import ImageDraw

from mixtrain_jax.pages import draw

RED = (255, 0, 0)


def grey(height=120, width=160):
    return np.full((height, width, 3), 128, np.uint8)


def is_color(picture, color):
    return (picture == np.array(color, np.uint8)).all(axis=-1)


def test_frames_lie_on_the_boxes_and_nothing_else_changes():
    picture = grey()
    drawn = draw.draw_boxes(picture, np.array([[20, 30, 80, 70]]), [""], [RED])
    assert (picture == 128).all()
    assert drawn.shape == picture.shape
    assert drawn.dtype == np.uint8
    frame = is_color(drawn, RED)
    rows, columns = np.nonzero(frame)
    # The box's last pixels are 79 and 69: its edges are between pixels.
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 30, 79, 69)
    assert frame[30, 20:80].all()
    assert frame[69, 20:80].all()
    assert frame[30:70, 20].all()
    assert frame[30:70, 79].all()
    changed = (drawn != 128).any(axis=-1)
    assert not changed[32:67, 23:77].any()
    changed[29:71, 19:81] = False
    assert not changed.any()


def test_a_text_of_two_lines_is_drawn_in_one():
    box = np.array([[20, 30, 80, 70]])
    drawn = [draw.draw_boxes(grey(), box, [text], [RED]) for text in ("a\ncat\n", "a cat")]
    assert (drawn[0] == drawn[1]).all()


def test_without_boxes_the_picture_stays():
    drawn = draw.draw_boxes(grey(), np.zeros((0, 4)), [], [])
    assert (drawn == 128).all()


@pytest.mark.parametrize("size", [(48, 64), (120, 160), (800, 1333)])
def test_text_stays_inside_the_picture(size, monkeypatch):
    """Whichever border the box touches, and even when the text is far too long."""
    height, width = size
    edges_x = ((0, 9), (width / 2, width / 2 + 5), (width - 8, width))
    edges_y = ((0, 7), (height / 2, height / 2 + 5), (height - 6, height), (0, height))
    boxes = [[x1, y1, x2, y2] for (x1, x2), (y1, y2) in itertools.product(edges_x, edges_y)]
    boxes += [[-50, -50, width + 50, height + 50], [width + 5, 3, width + 9, 9], [5, 5, 5, 5]]
    written = []
    original = ImageDraw.ImageDraw.text

    def text(canvas, xy, words, **options):
        written.append((words, canvas.textbbox(xy, words, options["font"])))
        original(canvas, xy, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    for words in ("gyÂ 0.98", "a very long name of a class " * 12):
        for box in boxes:
            draw.draw_boxes(grey(height, width), np.array([box]), [words], [RED])
    assert len(written) == 2 * len(boxes)
    for words, (left, top, right, bottom) in written:
        assert min(left, top) >= 0, words
        assert right <= width, words
        assert bottom <= height, words
    assert written[0][0] == "gyÂ 0.98"
    assert written[-1][0].endswith("…")
    assert len(written[-1][0]) > 5


def test_letters_are_legible_on_a_plate_of_the_class_color():
    for color in (RED, (250, 240, 90), draw.class_color(1)):
        drawn = draw.draw_boxes(grey(), np.array([[40, 50, 100, 90]]), ["star 0.98"], [color])
        above = drawn[30:50, 40:]
        plate = is_color(above, color)
        assert plate.sum() > 300
        rows, columns = np.nonzero(plate)
        plate = above[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        contrast = np.abs((plate - np.array(color, np.float64)) @ (0.299, 0.587, 0.114))
        assert (contrast > 90).sum() > 40


def test_texts_avoid_each_other():
    boxes = np.array([[40, 50, 100, 90], [42, 51, 102, 91]])
    both = draw.draw_boxes(grey(), boxes, ["first", "second"], [RED, (0, 255, 0)])
    alone = draw.draw_boxes(grey(), boxes[:1], ["first"], [RED])
    plate = (slice(32, 49), slice(40, 65))  # above the first box
    assert is_color(alone[plate], RED).sum() > 100
    np.testing.assert_array_equal(is_color(both[plate], RED), is_color(alone[plate], RED))
    assert is_color(both[52:], (0, 255, 0)).sum() > is_color(both[:50], (0, 255, 0)).sum()


def test_the_best_box_is_on_top():
    boxes = np.array([[20, 30, 80, 70]] * 2)
    drawn = draw.draw_boxes(grey(), boxes, ["", ""], [RED, (0, 0, 255)])
    assert is_color(drawn, RED).any()
    assert not is_color(drawn, (0, 0, 255)).any()


@pytest.mark.parametrize(("min_side", "factor"), [(0, 1), (120, 1), (121, 2), (360, 3), (9999, 4)])
def test_small_pictures_are_enlarged_with_their_boxes(min_side, factor):
    box = np.array([[20, 30, 80, 70]])
    drawn = draw.draw_boxes(grey(), box, [""], [RED], min_side=min_side)
    assert drawn.shape == (120 * factor, 160 * factor, 3)
    rows, columns = np.nonzero(is_color(drawn, RED))
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert found == tuple(v * factor for v in (20, 30, 80, 70))


def test_class_colors_are_fixed_and_apart():
    colors = np.array([draw.class_color(label) for label in range(20)])
    assert tuple(colors[3]) == draw.class_color(3)
    assert colors.min() >= 0
    assert colors.max() <= 255
    distance = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(20)
    assert distance.min() > 30
    assert np.abs(np.diff(colors, axis=0)).sum(-1).min() > 150
    assert (colors @ (0.299, 0.587, 0.114)).min() > 100  # seen on dark pictures too


def test_contact_sheet_holds_every_picture_in_order():
    rng = np.random.default_rng(1)
    pictures = [rng.integers(60, 256, (h, w, 3), np.uint8) for h, w in ((8, 9), (5, 12), (8, 3))]
    sheet = draw.contact_sheet(pictures, columns=2, gap=2)
    assert sheet.shape == (2 * 8 + 3 * 2, 2 * 12 + 3 * 2, 3)
    np.testing.assert_array_equal(sheet[2:10, 3:12], pictures[0])
    np.testing.assert_array_equal(sheet[3:8, 16:28], pictures[1])
    np.testing.assert_array_equal(sheet[12:20, 6:9], pictures[2])
    assert (sheet > 24).any(axis=-1).sum() == 8 * 9 + 5 * 12 + 8 * 3
    assert draw.contact_sheet(pictures[:1], gap=0).shape == (8, 9, 3)
    assert draw.contact_sheet([grey()] * 9, gap=0).shape == (360, 480, 3)
