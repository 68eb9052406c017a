"""Pictures for people: boxes with names and scores, and sheets of many pictures.

Pictures are NumPy arrays [H, W, 3] of uint8 RGB. Lines and letters grow with the picture, and a
small picture can be enlarged first, so that every name can be read.
"""

import colorsys
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mixtrain_jax.pages import fonts

Color = tuple[int, int, int]

# What became of a box in the eyes of the teacher; readable without red and green alike.
ORIGIN_COLORS: dict[str, Color] = {
    "human": (80, 200, 120),  # drawn by a person and kept
    "replaced": (255, 190, 40),  # drawn by a person, its coordinates now the teacher's
    "missing": (90, 160, 255),  # found by the teacher where nobody drew one
    "dropped": (230, 60, 110),  # drawn by a person, and not believed
}
SMALLEST_SIDE = 240  # pixels; smaller pictures are enlarged
LONGEST = 16_000  # pixels of a side, beyond which none is enlarged; JPEG ends at 65,535
_SMALLEST_LETTERS = 11  # pixels


def class_color(label: int) -> Color:
    """Returns the colour of a class, the same in every picture; neighbours differ clearly."""
    hue = (0.07 + label * 0.618034) % 1.0  # the golden ratio never comes back to a hue
    color = colorsys.hsv_to_rgb(hue, 0.65 + 0.2 * (label % 2), 1.0 - 0.12 * (label % 3))
    light = max(0.0, 0.45 - _brightness(color)) / (1 - _brightness(color))  # lifts blue and violet
    red, green, blue = (round(255 * (c + light * (1 - c))) for c in color)
    return red, green, blue


def _brightness(color: Sequence[float]) -> float:
    return float(np.dot(color, (0.299, 0.587, 0.114)))


def draw_boxes(
    picture: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colors: Sequence[Color],
    min_side: int = 0,
) -> np.ndarray:
    """Draws boxes with a line of text each; the picture given stays as it is.

    Args:
      picture: [H, W, 3] uint8 RGB.
      boxes: [n, 4] x1 y1 x2 y2 in pixels of the picture, best first: those are drawn on top.
      texts: what to write at each box, such as "star 0.98"; "" writes nothing.
      colors: of each box.
      min_side: a picture with a shorter side than this is enlarged by a whole factor, at most 4,
        and not beyond a side of LONGEST.

    Returns:
      [h, w, 3] uint8 RGB, as large as the picture or enlarged.
    """
    factor = min(4, max(1, math.ceil(min_side / min(picture.shape[:2]))))
    factor = max(1, min(factor, LONGEST // max(picture.shape[:2])))
    image = Image.fromarray(np.ascontiguousarray(picture))
    if factor > 1:
        enlarged = (image.width * factor, image.height * factor)
        image = image.resize(enlarged, Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(image)
    limits = (image.width - 1, image.height - 1) * 2
    line = max(1, round(min(image.size) / 220))
    corners = np.clip(
        np.asarray(boxes, np.float64).reshape(-1, 4) * factor - (0, 0, 1, 1), 0, limits
    )
    frames = [(x1, y1, max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in np.rint(corners).tolist()]
    for frame, color in reversed(list(zip(frames, colors, strict=True))):
        around = np.clip(np.add(frame, (-1, -1, 1, 1)), 0, limits).tolist()
        canvas.rectangle(around, outline=(0, 0, 0))
        canvas.rectangle(frame, outline=color, width=line)

    font = fonts.load(max(_SMALLEST_LETTERS, round(min(image.size) / 36)), "".join(texts))
    tags: list[_Tag] = []
    for frame, text in zip(frames, texts, strict=True):
        tags.append(_tag(canvas, font, frame, text, image.size, [t for t in tags if t.text]))
    for tag, color in reversed(list(zip(tags, colors, strict=True))):
        if tag.text:
            canvas.rectangle(tag.area, fill=color)
            ink = (0, 0, 0) if _brightness(color) > 110 else (255, 255, 255)
            canvas.text(tag.origin, tag.text, fill=ink, font=font)
    return np.asarray(image)


def draw_detections(
    picture: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
) -> np.ndarray:
    """Draws detections, best first, on an image [H, W, 3] uint8 RGB; boxes in its pixels."""
    texts = [f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    colors = [class_color(int(label)) for label in labels]
    return draw_boxes(picture, boxes, texts, colors, min_side=SMALLEST_SIDE)


class _Tag(NamedTuple):
    """Text beside a box: its background in pixels (last ones included), and where letters start."""

    text: str
    area: tuple[int, int, int, int]
    origin: tuple[int, int]


def _tag(
    canvas: ImageDraw.ImageDraw,
    font: fonts.Font,
    frame: tuple[float, float, float, float],
    text: str,
    size: tuple[int, int],
    others: list[_Tag],
) -> _Tag:
    """Finds a place for a box's text: inside the picture and, if possible, clear of the others."""
    width, height = size
    pad, text = 2, " ".join(text.split())
    while len(text) > 1 and canvas.textlength(text, font) + 2 * pad > width:
        text = text[:-2] + "…"
    left, top, right, bottom = canvas.textbbox((0, 0), text, font)
    # The height of all letters of the font, so that tags of one picture are alike.
    top, bottom = canvas.textbbox((0, 0), "Ây", font)[1::2]
    wide, high = math.ceil(right - left) + 2 * pad, math.ceil(bottom - top) + 2 * pad
    x1, y1, _, y2 = (round(v) for v in frame)
    x = max(0, min(x1, width - wide))
    places = []
    for y in (y1 - high, y1, y2 + 1, y2 - high + 1):
        y = max(0, min(y, height - high))
        area = (x, y, x + wide - 1, y + high - 1)
        places.append(_Tag(text, area, (round(x + pad - left), round(y + pad - top))))
    free = (p for p in places if not any(_overlap(p.area, other.area) for other in others))
    return next(free, places[0])


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def contact_sheet(
    pictures: Sequence[np.ndarray], columns: int | None = None, gap: int = 4
) -> np.ndarray:
    """Lays pictures of any sizes side by side, row by row, each centred in a cell of a dark sheet.

    Args:
      pictures: at least one [H, W, 3] uint8 RGB.
      columns: pictures in a row; None makes the sheet about square.
      gap: pixels between the cells and around them.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    high = max(p.shape[0] for p in pictures)
    wide = max(p.shape[1] for p in pictures)
    sheet = np.full((rows * (high + gap) + gap, columns * (wide + gap) + gap, 3), 24, np.uint8)
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        top = gap + number // columns * (high + gap) + (high - height) // 2
        left = gap + number % columns * (wide + gap) + (wide - width) // 2
        sheet[top : top + height, left : left + width] = picture
    return sheet
