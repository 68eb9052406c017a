import io

import cv2
import numpy as np
import pytest
from PIL import Image

from mixtrain_jax.data import records

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def _encode(image, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | options))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PIXELS, PIXELS),
        (PIXELS[..., 0], np.repeat(PIXELS[..., :1], 3, axis=2)),
        (np.dstack([PIXELS, PIXELS[..., 0]]), PIXELS),  # alpha
        (np.dstack([PIXELS[..., 1], PIXELS[..., 0]]), np.repeat(PIXELS[..., 1:2], 3, axis=2)),
    ],
)
def test_modes(image, expected):
    np.testing.assert_array_equal(records.decode(_encode(image), (6, 9)), expected)


def test_palette_and_one_bit():
    palette = Image.fromarray(PIXELS).quantize(256, dither=0)
    np.testing.assert_array_equal(
        records.decode(_encode(palette)), np.asarray(palette.convert("RGB"))
    )
    bits = PIXELS[..., 0] > 100
    np.testing.assert_array_equal(records.decode(_encode(bits))[..., 1], bits * 255)


def test_sixteen_bits_are_scaled():
    deep = PIXELS[..., 0].astype(np.uint16) * 257
    decoded = records.decode(_encode(deep))
    np.testing.assert_array_equal(decoded, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_sixteen_bit_colour():
    deep = PIXELS.astype(np.uint16) * 257
    data = cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(records.decode(data, (6, 9)), PIXELS)


def test_cmyk_jpeg():
    smooth = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    data = _encode(Image.fromarray(smooth).convert("CMYK"), format="JPEG", quality=95)
    assert np.abs(records.decode(data, (16, 16)).astype(int) - smooth).max() <= 6


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif(orientation):
    from PIL import ImageOps

    data = _encode(PIXELS, exif=_exif(orientation))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(records.decode(data), upright)
    np.testing.assert_array_equal(records.decode(data, upright.shape[:2]), upright)
    if orientation >= 5:  # annotated on the picture as it is stored
        np.testing.assert_array_equal(records.decode(data, (6, 9)), PIXELS)


def test_other_size_than_declared():
    with pytest.raises(records.Unreadable, match="it is 9x6 pixels, declared 6x9"):
        records.decode(_encode(PIXELS), (9, 6))


@pytest.mark.parametrize("data", [b"", b"not an image", _encode(PIXELS)[:-40]])
def test_damaged(data):
    with pytest.raises(records.Unreadable):
        records.decode(data)


def test_truncated_jpeg():
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with pytest.raises(records.Unreadable, match="truncated"):
        records.decode(_encode(big, format="JPEG")[:1500], (64, 64))
