import io

import cv2
import numpy as np
import pytest
from PIL import Image

from mixtrain_jax.data.sources import image_files

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
    np.testing.assert_array_equal(image_files.decode(_encode(image), (6, 9)), expected)


def test_palette_and_one_bit():
    palette = Image.fromarray(PIXELS).quantize(256, dither=0)
    np.testing.assert_array_equal(
        image_files.decode(_encode(palette)), np.asarray(palette.convert("RGB"))
    )
    bits = PIXELS[..., 0] > 100
    np.testing.assert_array_equal(image_files.decode(_encode(bits))[..., 1], bits * 255)


def test_sixteen_bits_are_scaled():
    deep = PIXELS[..., 0].astype(np.uint16) * 257
    decoded = image_files.decode(_encode(deep))
    np.testing.assert_array_equal(decoded, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_sixteen_bit_colour():
    deep = PIXELS.astype(np.uint16) * 257
    data = cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(image_files.decode(data, (6, 9)), PIXELS)


def test_cmyk_jpeg():
    smooth = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    data = _encode(Image.fromarray(smooth).convert("CMYK"), format="JPEG", quality=95)
    assert np.abs(image_files.decode(data, (16, 16)).astype(int) - smooth).max() <= 6


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif(orientation, format):
    """Pillow turns TIFF by itself, and no other format."""
    from PIL import ImageOps

    lossless = {"lossless": True} if format == "WEBP" else {}
    data = _encode(PIXELS, format=format, exif=_exif(orientation), **lossless)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(image_files.decode(data), upright)
    np.testing.assert_array_equal(image_files.decode(data, upright.shape[:2]), upright)
    if orientation >= 5:  # annotated on the picture as it is stored
        np.testing.assert_array_equal(image_files.decode(data, (6, 9)), PIXELS)


def test_other_size_than_declared():
    with pytest.raises(image_files.UnreadableImage, match="it is 9x6 pixels, declared 6x9"):
        image_files.decode(_encode(PIXELS), (9, 6))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "^an empty file$"),
        (b"not an image", "^not an image of any known kind$"),
        (_encode(PIXELS)[:-40], "cut short: "),
    ],
)
def test_damaged(data, reason):
    with pytest.raises(image_files.UnreadableImage, match=reason):
        image_files.decode(data)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("exif", ["upright", "stored"])
def test_one_exif_rule_for_a_set(exif, format):
    reading = image_files.Reading(exif)
    data = _encode(PIXELS, format=format, exif=_exif(6))
    with Image.open(io.BytesIO(data)) as image:
        assert image_files.stored_size(image) == (6, 9)
    size = (9, 6) if exif == "upright" else (6, 9)
    expected = np.rot90(PIXELS, -1) if exif == "upright" else PIXELS
    np.testing.assert_array_equal(image_files.decode(data, size, reading), expected)
    with pytest.raises(image_files.UnreadableImage, match="declared"):
        image_files.decode(data, size[::-1], reading)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_set_that_is_labelled_as_stored_is_not_turned(orientation, format):
    data = _encode(PIXELS, format=format, exif=_exif(orientation))
    decoded = image_files.decode(data, (6, 9), image_files.Reading("stored"))
    np.testing.assert_array_equal(decoded, PIXELS)


def test_truncated_jpeg():
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with pytest.raises(image_files.UnreadableImage, match="truncated"):
        image_files.decode(_encode(big, format="JPEG")[:1500], (64, 64))
