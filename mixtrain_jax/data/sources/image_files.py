"""The only way from an image file's bytes to pixels: any kind that Pillow knows, to 8-bit RGB.

How the images of one set are to be read (turned as EXIF asks or not, which value is white in images
of more than 8 bits) is a `Reading`; headers.py finds it out.
"""

import dataclasses
import io
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

_ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held
QUARTER = (5, 6, 7, 8)  # orientations that exchange height and width
BACK = {6: 8, 8: 6}  # what undoes an orientation; the others undo themselves
TURNED = "TIFF"  # the format that Pillow itself turns as EXIF asks, size and pixels
Exif = Literal["auto", "upright", "stored"]


class UnreadableImage(Exception):
    """An image file that cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the images of a set are read.

    Attributes:
      exif: "upright": turned as EXIF asks; "stored": not turned; "auto": upright, unless only the
        image as stored has the declared size.
      white: of grey images of more than 8 bits, the value that becomes 255.
      white_float: the same of images of floating-point numbers.
      one_white: the one of these two that the set needs; None: it needs none, or both.
    """

    exif: Exif = "auto"
    white: int = 65535
    white_float: float = 255.0
    one_white: float | None = None


def decode(
    data: bytes, size: tuple[int, int] | None = None, reading: Reading | None = None
) -> np.ndarray:
    """Decodes an image file of any kind that Pillow knows to [h, w, 3] uint8 RGB.

    Grey, palette, CMYK and deep images become 8-bit RGB, alpha is dropped.

    Args:
      data: the file's bytes.
      size: declared height and width; None accepts any.
      reading: how the set's images are read.

    Raises:
      UnreadableImage: the file is damaged, or of another size than declared.
    """
    reading = reading or Reading()
    if not data:
        raise UnreadableImage("an empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = orientation(image)
            stored = stored_size(image)
            upright = stored[::-1] if turned in QUARTER else stored
            already = image.format == TURNED
            accepted = {"auto": (upright, stored), "upright": (upright,), "stored": (stored,)}
            here = accepted[reading.exif]
            if size is not None and size not in here:
                raise UnreadableImage(
                    f"it is {here[0][1]}x{here[0][0]} pixels, declared {size[1]}x{size[0]}"
                )
            pixels = _rgb(image, reading)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UnreadableImage(why(error)) from error
    wanted = reading.exif != "stored" and size in (None, upright)
    if wanted != already:
        pixels = _turned(pixels, turned if wanted else BACK.get(turned, turned))
    return np.ascontiguousarray(pixels)


def why(error: Exception) -> str:
    """What an exception of Pillow's means, in a few words that hold no memory addresses."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of any known kind"
    if "truncated" in str(error):
        return f"cut short: {error}"
    return " ".join(f"{type(error).__name__}: {error}".split(" <_io")[0].split())


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an open image, from what stands before its pixels: 1 to 8."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode all pixels to look for it behind them
    found = image.getexif().get(_ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an open image's pixels as they are in the file."""
    if image.format == TURNED and orientation(image) in QUARTER:
        return image.width, image.height
    return image.height, image.width


def _rgb(image: Image.Image, reading: Reading) -> np.ndarray:
    """Pixels [h, w, 3] uint8; deep grey is scaled, which Pillow would clip."""
    if image.mode.startswith("I"):
        deep = np.clip(np.asarray(image).astype(np.int64), 0, reading.white)
        grey = deep * 255 // reading.white
    elif image.mode == "F":
        numbers = np.nan_to_num(np.asarray(image, np.float64))
        shares = np.clip(numbers, 0, reading.white_float) / reading.white_float
        grey = np.floor(shares * 255 + 1e-6).astype(np.int64)
    else:
        return np.asarray(image.convert("RGB"))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes the mirroring and rotation that an EXIF orientation of 1 to 8 describes."""
    if orientation in QUARTER:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
