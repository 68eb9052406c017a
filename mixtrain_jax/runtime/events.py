"""TensorBoard's event files: numbers and pictures as records that `tensorboard --logdir` reads.

The format is small enough to write by hand, which spares a dependency on TensorFlow: each record is
an `Event` protocol buffer framed as in a TFRecord (length, its CRC-32C, bytes, their CRC-32C).
"""

import io
import struct
import time
from collections.abc import Mapping

import numpy as np
from PIL import Image


def header(first_step: int) -> bytes:
    """What a file begins with; TensorBoard drops what older files say of later steps."""
    start = _varint_field(1, 1)  # SessionLog.status = START
    return _event(0, _bytes_field(3, b"brain.Event:2")) + _event(first_step, _bytes_field(7, start))


def scalars(step: int, values: Mapping[str, float]) -> bytes:
    """Numbers by tag ("loss", "val/AP"), at a step."""
    summary = b"".join(
        _bytes_field(1, _bytes_field(1, tag.encode()) + _key(2, 5) + struct.pack("<f", value))
        for tag, value in values.items()
    )
    return _event(step, _bytes_field(5, summary))


def picture(step: int, tag: str, pixels: np.ndarray) -> bytes:
    """A picture, [H, W, 3] uint8, at a step; it is stored as PNG."""
    height, width, channels = pixels.shape
    image = (
        _varint_field(1, height)
        + _varint_field(2, width)
        + _varint_field(3, channels)
        + _bytes_field(4, png(pixels))
    )
    value = _bytes_field(1, tag.encode()) + _bytes_field(4, image)
    return _event(step, _bytes_field(5, _bytes_field(1, value)))


def png(pixels: np.ndarray) -> bytes:
    """A picture, [H, W, 3] uint8, as the bytes of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def _event(step: int, what: bytes) -> bytes:
    """One framed Event: wall time, step, and one more field."""
    event = _key(1, 1) + struct.pack("<d", time.time()) + _varint_field(2, step) + what
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def _key(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _varint_field(field: int, number: int) -> bytes:
    return _key(field, 0) + _varint(number)


def _bytes_field(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Base 128, low digits first, the high bit set on all but the last."""
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def _crc_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()


def _checksum(content: bytes) -> bytes:
    """CRC-32C (Castagnoli), rotated and shifted as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
