"""Detects with an archive that tools/export_model.py wrote; needs jax, flatbuffers and this file.

detect = load("model.zip")
boxes, scores, names = detect(image)  # an image [height, width, 3] uint8 RGB
"""

import io
import json
import zipfile

import jax
import numpy as np
from jax import export


def load(path):
    """Returns detect(image, threshold=0.3); the first image of a new shape is compiled for."""
    with zipfile.ZipFile(path) as archive:
        model = json.loads(archive.read("model.json"))
        with np.load(io.BytesIO(archive.read("weights.npz"))) as arrays:
            weights = [jax.device_put(arrays[f"{i}"]) for i in range(len(model["weights"]))]
        programs = [
            (bucket, jax.jit(export.deserialize(bytearray(archive.read(file))).call))
            for file, bucket in model["programs"].items()
        ]

    def detect(image, threshold=0.3):
        """Boxes [n, 4] x1 y1 x2 y2 in pixels of the image, scores [n] and n names, best first."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"{image.dtype}{image.shape}: give [height, width, 3] uint8 RGB")
        long, short = model["scale"]
        factor = min(long / max(image.shape[:2]), short / min(image.shape[:2]))
        size = np.array([max(int(side * factor + 0.5), 1) for side in image.shape[:2]], np.int32)
        fitting = [each for each in programs if (size <= each[0]).all()]
        if not fitting:
            raise ValueError(f"an image of {image.shape[:2]} fits no bucket of this model")
        bucket, program = fitting[0]  # the smallest
        padded = np.zeros((*bucket, 3), np.uint8)
        padded[: size[0], : size[1]] = resize(image, *size)
        scale = (size / image.shape[:2])[::-1].astype(np.float32)
        found = program(weights, padded, size, scale)
        boxes, scores, labels, valid = map(np.asarray, found)
        keep = valid & (scores > threshold)
        return boxes[keep], scores[keep], [model["classes"][label] for label in labels[keep]]

    return detect


def resize(image, height, width):
    """Bilinear with half-pixel centres and no antialiasing, in whole grey levels."""

    def taps(old, new):
        at = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new)
        at -= np.float32(0.5)
        low = np.floor(at)
        ends = np.clip([low, low + 1], 0, old - 1).astype(int)
        return *ends, (at - low)[:, None]

    top, bottom, down = taps(image.shape[0], height)
    left, right, across = taps(image.shape[1], width)
    image = image.astype(np.float32)
    rows = [image[y][:, left] + (image[y][:, right] - image[y][:, left]) * across
            for y in (top, bottom)]  # fmt: skip
    return np.round(rows[0] + (rows[1] - rows[0]) * down[:, None]).astype(np.uint8)
