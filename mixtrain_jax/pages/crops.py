"""Small image files beside a page: square crops about boxes, and whole images made smaller.

Boxes are drawn by the page over the crop, so that they stay sharp; where a page shows whole images
they are drawn into the file.
"""

import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from mixtrain_jax.pages import fonts

SIDE = 240  # pixels of a crop
CONTEXT = 1.8  # side of a crop, in the larger side of what it shows
LEAST = 32  # pixels of the image that a crop shows at least
QUALITY = 82
HUMAN, PROPOSED, WRONG = (240, 140, 46), (63, 195, 220), (214, 76, 66)  # of drawn boxes

Box = Sequence[float]  # x1, y1, x2, y2 in pixels of the image


def read(path: str | os.PathLike[str] | bytes) -> Image.Image:
    """Returns an image file, or its bytes, as RGB, turned upright."""
    source = io.BytesIO(path) if isinstance(path, bytes) else path
    with Image.open(source) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def window(boxes: Sequence[Box]) -> tuple[float, float, float]:
    """Returns (left, top, side) of the square that shows the boxes and what is around them."""
    x1, y1 = (min(box[axis] for box in boxes) for axis in (0, 1))
    x2, y2 = (max(box[axis] for box in boxes) for axis in (2, 3))
    side = max(x2 - x1, y2 - y1, LEAST / CONTEXT) * CONTEXT
    return (x1 + x2 - side) / 2, (y1 + y2 - side) / 2, side


def within(box: Box, square: tuple[float, float, float]) -> list[float]:
    """Returns [x, y, width, height] of a box in thousandths of a square window."""
    left, top, side = square
    scale = 1000 / side
    x, y = (box[0] - left) * scale, (box[1] - top) * scale
    numbers = (x, y, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale)
    return [round(number, 1) for number in numbers]


def crop(image: Image.Image, square: tuple[float, float, float], path: pathlib.Path) -> int:
    """Writes a square window of an image, grey beyond its edges; returns the file's bytes."""
    left, top, side = square
    corners: Any = (left, top, left, top + side, left + side, top + side, left + side, top)
    # A window that is far larger than the crop is shrunk first, for the transform does not smooth.
    factor = max(1, int(side / SIDE / 1.5))
    if factor > 1:
        image = image.reduce(factor)
        corners = tuple(c / factor for c in corners)
    made = image.transform(
        (SIDE, SIDE),
        Image.Transform.QUAD,
        corners,
        Image.Resampling.BICUBIC,
        fillcolor=(128, 128, 128),
    )
    made.save(path, "JPEG", quality=QUALITY)
    return path.stat().st_size


def picture(
    image: Image.Image,
    path: pathlib.Path,
    boxes: Sequence[tuple[Box, tuple[int, int, int], str]] = (),
    side: int = 480,
) -> None:
    """Writes a whole image, made smaller, with boxes drawn in.

    Args:
      image: the image.
      path: a JPEG file to write.
      boxes: (box, colour, caption or "").
      side: pixels of its longer side at most.
    """
    scale = min(1.0, side / max(image.size))
    size: Any = tuple(max(1, round(length * scale)) for length in image.size)
    made = image.resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(made)
    for box, color, caption in boxes:
        corners: Any = [number * scale for number in box]
        if corners[2] <= corners[0] or corners[3] <= corners[1]:
            continue
        pen.rectangle(corners, outline=color, width=2)
        if caption:
            place = (corners[0] + 3, max(corners[1] - 12, 0))
            font = fonts.load(10, caption)
            pen.text(place, caption, fill=color, font=font, stroke_width=1, stroke_fill=(0, 0, 0))
    made.save(path, "JPEG", quality=QUALITY)
