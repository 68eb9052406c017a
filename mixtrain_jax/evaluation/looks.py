"""Looks at a labelled data set: what a detector finds, and what it thinks of the human boxes.

The audit compares several: the image as it is and mirrored, the teacher and the student, one
checkpoint and an earlier one. Each is a `Look` in pixels of the original images.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.labels import Detections, Labels
from mixtrain_jax.data.input import batches
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.sources.ragged import Ragged
from mixtrain_jax.models import detector, pixels
from mixtrain_jax.runtime import parallel
from mixtrain_jax.types import Array, Params, View
from mixtrain_jax.types import Detections as Found

Rate = Callable[[Params, View], tuple[Found, Array, Array]]


def rater(model: Any, data: Any, dtype: str) -> Rate:
    """Returns the compiled detector that also rates the human boxes of a view, over devices.

    Args:
      model: `config.model`, `num_classes` set.
      data: `config.data`; its mean and std are used.
      dtype: of the network's arithmetic.

    Returns:
      A function of (parameters, view with a device axis) that gives detections, probabilities
      [B, N, classes + 1] of the view's N human boxes, and these boxes refined [B, N, 4]; boxes come
      in pixels of the view.
    """
    network = detector.build(model, dtype)

    def rate(params: Params, view: View) -> tuple[Found, Array, Array]:
        with detector.precise(network):
            bound = detector.bind(network, params)
            pyramid = bound.features(pixels.normalise(view, data.mean, data.std).image, view.size)
            found, _ = bound.detect(pyramid, view.size)
            probabilities, refined = bound.score_and_refine(pyramid, view.size, view.boxes)
        return found, probabilities, refined

    return parallel.map_predict(rate)


def with_all_boxes(dataset: Dataset, human: Labels) -> Dataset:
    """The data set with just these boxes, whatever was left out for training."""
    order = np.argsort(human.image, kind="stable")
    counts = np.bincount(human.image, minlength=len(dataset))
    return dataclasses.replace(
        dataset,
        boxes=Ragged.of(human.boxes[order].astype(np.float32), counts),
        labels=Ragged.of(human.labels[order].astype(np.int32), counts),
    )


def look(
    rate: Rate,
    params: Params,
    dataset: Dataset,
    data: Any,
    batch_size: int,
    *,
    mirrored: bool = False,
    rows: np.ndarray | None = None,
) -> dict[int, tuple[np.ndarray, ...]]:
    """Looks at images once.

    Args:
      rate: what `rater` returned.
      params: parameters, replicated on all devices.
      dataset: the images and their human boxes.
      data: `config.data`; its val scale and buckets are used.
      batch_size: images at once.
      mirrored: look at the mirror image; boxes come back as they are in the original.
      rows: only these rows; all if None.

    Returns:
      By row: boxes [n, 4], scores [n], labels [n] of what was found, probabilities [h, classes + 1]
      and refined boxes [h, 4] of the human boxes, in pixels of the original image.
    """
    by_row: dict[int, tuple[np.ndarray, ...]] = {}
    views = batches.eval_batches(dataset, data, batch_size, rows=rows)
    if mirrored:
        views = map(mirror, views)
    for view, placed in parallel.prefetch(views):
        found, probabilities, refined = parallel.gather(rate(params, placed))
        for i, row in enumerate(view.index.tolist()):
            if row < 0:
                continue
            scale = np.array([view.matrix[i, 0, 0], view.matrix[i, 1, 1]])
            width = view.size[i, 1]

            def original(
                boxes: np.ndarray, scale: np.ndarray = scale, width: float = width
            ) -> np.ndarray:
                return (_mirrored(boxes, width) if mirrored else boxes) / np.tile(scale, 2)

            keep, human = np.asarray(found.valid[i]), slice(len(dataset.boxes[row]))
            by_row[row] = (
                original(np.asarray(found.boxes[i])[keep]),
                np.asarray(found.scores[i])[keep],
                np.asarray(found.labels[i])[keep],
                np.asarray(probabilities[i])[human],
                original(np.asarray(refined[i])[human]),
            )
    return by_row


def joined(by_row: dict[int, tuple[np.ndarray, ...]], images: int) -> Look:
    """One `Look` of what `look` returned, which must cover all of so many images."""
    parts = [by_row[row] for row in range(images)]
    boxes, scores, labels, probabilities, refined = (
        np.concatenate([part[column] for part in parts]) for column in range(5)
    )
    image = np.repeat(np.arange(images), [len(part[1]) for part in parts]).astype(np.int32)
    found = Detections(
        image, boxes.astype(np.float32), labels.astype(np.int32), scores.astype(np.float32)
    )
    return Look(found, probabilities.astype(np.float32), refined.astype(np.float32))


def mirror(view: View) -> View:
    """The same evaluation views seen in a mirror, with their boxes; matrices stay.

    What is shown is all within `size`, on either side of the mirror.
    """
    image, boxes = view.image.copy(), np.asarray(view.boxes).copy()
    for i, width in enumerate(np.asarray(view.size)[:, 1]):
        image[i, :, :width] = view.image[i, :, :width][:, ::-1]
        boxes[i] = np.where(view.valid[i][:, None], _mirrored(boxes[i], width), 0)
    fields: dict[str, Any] = {"image": image, "boxes": boxes}
    mirrored: View = dataclasses.replace(view, **fields)
    return mirrored


def _mirrored(boxes: np.ndarray, width: float) -> np.ndarray:
    """Boxes [n, 4] in an image so wide, as they are in its mirror image."""
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    return np.stack([width - x2, y1, width - x1, y2], axis=-1)
