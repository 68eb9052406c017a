"""Pictures of training batches: views with their targets, and what the teacher made of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixtrain_jax.mixtraining.targets import TeacherOutput
from mixtrain_jax.models import pixels
from mixtrain_jax.pages import draw
from mixtrain_jax.runtime import parallel
from mixtrain_jax.types import Batch, View

IMAGES = 6  # of a batch, at most, in one picture


def of_batch(
    batch: Batch, output: TeacherOutput | None, names: Sequence[str], data: Any
) -> np.ndarray:
    """Draws what a step trained on.

    Plain training: images with the human boxes. MixTraining: for each image of the mixed half the
    weak view with the teacher's boxes, and beside it the strong view with the targets, coloured by
    origin: human, replaced by the teacher's, missing and found, dropped as too hard.

    Args:
      batch: numpy arrays, as they went into the step.
      output: what the step returned, with its device axis.
      names: of the classes.
      data: `config.data`.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    if output is None or batch.weak is None or batch.strong is None:
        view = batch.normal
        pictures = [
            _view(view, i, view.boxes[i][view.valid[i]], view.labels[i][view.valid[i]], names, data)
            for i in range(min(IMAGES, len(view.image)))
        ]
        return draw.contact_sheet(pictures)
    output = parallel.gather(output)
    pictures = []
    for i in range(min(IMAGES, len(batch.weak.image))):
        detections = output.detections
        valid = detections.valid[i]
        scores = detections.scores[i][valid]
        boxes, labels = detections.boxes[i][valid], detections.labels[i][valid]
        pictures.append(_view(batch.weak, i, boxes, labels, names, data, scores))
        pictures.append(_strong(batch.strong, output, i, names, data))
    return draw.contact_sheet(pictures, columns=2 if len(pictures) < 8 else 4)


def _view(
    view: View,
    i: int,
    boxes: Any,
    labels: Any,
    names: Sequence[str],
    data: Any,
    scores: Any = None,
) -> np.ndarray:
    scored = [None] * len(labels) if scores is None else np.asarray(scores).tolist()
    texts = [
        names[label] if score is None else f"{names[label]} {score:.2f}"
        for label, score in zip(labels, scored, strict=True)
    ]
    colors = [draw.class_color(int(label)) for label in labels]
    picture = of_view(view, i, data.mean, data.channels)
    return draw.draw_boxes(picture, boxes, texts, colors, draw.SMALLEST_SIDE)


def _strong(
    view: View, output: TeacherOutput, i: int, names: Sequence[str], data: Any
) -> np.ndarray:
    """The strong view with human and pseudo boxes, each with its class and what became of it."""
    human, assignment = output.human, output.assignment
    pseudo = slice(human.boxes.shape[1], None)
    groups = (
        ("human", assignment.kept[i], output.targets.boxes[i, : pseudo.start], human.labels[i]),
        ("dropped", assignment.dropped[i], human.boxes[i], human.labels[i]),
        (
            "replaced",
            assignment.mending[i],
            output.targets.boxes[i, pseudo],
            output.targets.labels[i, pseudo],
        ),
        (
            "missing",
            assignment.missing[i],
            output.targets.boxes[i, pseudo],
            output.targets.labels[i, pseudo],
        ),
    )
    boxes, texts, colors = [np.zeros((0, 4))], [], []
    for origin, mask, group, labels in groups:
        boxes.append(np.asarray(group[mask]))
        texts += [f"{names[label]} {origin}" for label in labels[mask]]
        colors += [draw.ORIGIN_COLORS[origin]] * int(mask.sum())
    picture = of_view(view, i, data.mean, data.channels)
    return draw.draw_boxes(picture, np.concatenate(boxes), texts, colors, draw.SMALLEST_SIDE)


def of_view(view: View, i: int, mean: Sequence[float], channels: str = "rgb") -> np.ndarray:
    """Turns one image of a view back into a picture, without its padding.

    Args:
      view: of numpy arrays, not normalised.
      i: which of its images.
      mean: of the three channels, in the order of `channels`; drawn where no image is shown.
      channels: "rgb" or "bgr", the order of the image.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    height, width = view.size[i]
    assert view.shown is not None  # not normalised
    shown = pixels.unpack(np.asarray(view.shown[i]))[..., None]
    picture = np.where(shown, view.image[i], np.round(mean).astype(np.uint8))
    return picture[:height, :width, :: -1 if channels == "bgr" else 1]
