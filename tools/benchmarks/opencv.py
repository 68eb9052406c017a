"""The same views made the usual way with OpenCV: what the input pipeline is compared with.

Decode, colour, resize, flip, normalise, warp, cut out, pad, one after the other in NumPy and
OpenCV, on a pool of threads. It takes the images, buckets and kinds of views of the real pipeline,
with draws of its own, so that both do the same work on the whole; the boxes are left out.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from mixtrain_jax.data.input import plan
from mixtrain_jax.data.views import color, parameters
from mixtrain_jax.data.views.parameters import ViewParameters


def train_batches(dataset, config) -> Iterator[list[list[np.ndarray]]]:
    """Batches without end: [[normal], [weak, strong]], each [B / 2, height, width, 3] float32."""
    cv2.setNumThreads(1)
    stream = plan.Stream(dataset, config.seed, config.data.train)
    jobs = _jobs(stream, dataset, config)
    size = config.batch_size
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(_views, dataset, config, *next(jobs)) for _ in range(3 * size)]
        while True:
            batch = [future.result() for future in running[:size]]
            fresh = [pool.submit(_views, dataset, config, *next(jobs)) for _ in range(size)]
            running = running[size:] + fresh
            yield [
                [np.stack([made[view] for made in batch[first::2]]) for view in range(count)]
                for first, count in ((0, 1), (1, 2))
            ]


def _jobs(
    stream: plan.Stream, dataset, config
) -> Iterator[tuple[int, list[ViewParameters], tuple[int, int]]]:
    """Row, view parameters and bucket of one image after the other, normal and mixed in turns."""
    switch = plan.first_mixed_step(config.mixtraining)
    for step in plan.steps(stream, config.batch_size, switch):
        bucket = stream.buckets.index(step.bucket)
        for pair in zip(step.normal, step.mixed, strict=True):
            for place, kinds in zip(pair, (("normal",), ("weak", "strong")), strict=True):
                row = stream.row(int(place))
                shorts = stream.shorts_for(row, bucket)
                rng = np.random.default_rng([stream.seed, int(place)])
                size, scale = dataset.sizes[row], (stream.long, shorts)
                augment = config.data.augment
                sampled = [parameters.sample(rng, k, size, scale, augment) for k in kinds]
                yield row, sampled, step.bucket


def _views(dataset, config, row: int, sampled: list[ViewParameters], bucket) -> list[np.ndarray]:
    """All views of an image."""
    encoded = np.frombuffer(dataset.read(row), np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return [_view(image, each, bucket, config.data) for each in sampled]


def _view(image: np.ndarray, sampled: ViewParameters, bucket: tuple[int, int], data) -> np.ndarray:
    height, width = (int(side) for side in sampled.size)
    image = _color(image, color.NAMES[int(sampled.color)], int(sampled.level))
    matrix = sampled.matrix.astype(np.float64)
    resize = np.diag([width / image.shape[1], height / image.shape[0], 1.0])
    pixels = cv2.resize(image, (width, height))
    moved = matrix @ np.linalg.inv(resize)  # what is left: a flip, then a geometric operation
    mirror = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])
    if np.linalg.det(moved[:2, :2]) < 0:
        pixels = cv2.flip(pixels, 1)
        moved = moved @ mirror
    pixels = pixels.astype(np.float32)
    cv2.subtract(pixels, np.array([*data.mean, 0]), pixels)
    cv2.multiply(pixels, 1 / np.array([*data.std, 1]), pixels)
    if not np.allclose(moved, np.eye(3), atol=1e-3):
        to_centers = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        moved = np.linalg.inv(to_centers) @ moved @ to_centers
        pixels = cv2.warpAffine(pixels, moved[:2], (width, height))
    for y1, x1, y2, x2 in sampled.holes:
        pixels[y1:y2, x1:x2] = 0
    down, right = bucket[0] - height, bucket[1] - width
    return cv2.copyMakeBorder(pixels, 0, down, 0, right, cv2.BORDER_CONSTANT)


def _color(image: np.ndarray, name: str, level: int) -> np.ndarray:
    """One of the nine colour operations on [h, w, 3] uint8."""
    factor = 0.18 * level + 0.1
    if name == "contrast":
        mean = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean()
        return cv2.convertScaleAbs(image, alpha=factor, beta=max(mean * (1 - factor), 0))
    if name == "brightness":
        return cv2.convertScaleAbs(image, alpha=factor)
    if name == "sharpness":
        laplacian = cv2.Laplacian(image, cv2.CV_32F)
        mixed = image.astype(np.float32) * (1 - factor) + laplacian * factor
        return np.clip(mixed, 0, 255).astype(np.uint8)
    if name == "equalize":
        return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(image)])
    if name == "autocontrast":
        low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
        slope = 255 / np.maximum(high - low, 1)
        table = np.clip((np.arange(256)[:, None] - low) * slope, 0, 255).astype(np.uint8)
        return cv2.LUT(image, table[None])
    if name == "posterize":
        return image & np.uint8(256 - 2 ** (8 - max((40 - 4 * level) // 10, 0)) & 255)
    if name == "grey":
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return cv2.addWeighted(image, factor, grey, 1 - factor, 0)
    if name == "solarize":
        threshold = (2569 - 256 * level) // 10
        return cv2.LUT(
            image, np.array([v if v < threshold else 255 - v for v in range(256)], np.uint8)
        )
    return image
