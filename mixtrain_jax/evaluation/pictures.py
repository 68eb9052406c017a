"""What training looks like: batches with their targets, the teacher's lesson, detections."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixtrain_jax.evaluation import draw
from mixtrain_jax.mixtraining.step import Lesson
from mixtrain_jax.runtime import parallel
from mixtrain_jax.types import Batch, View

PHOTOGRAPHS = 6  # of a batch, at most, in one picture
SMALLEST_SIDE = 240  # pixels; smaller pictures are enlarged


def of_batch(batch: Batch, lesson: Lesson | None, names: Sequence[str], config: Any) -> np.ndarray:
    """Draws what a step trained on.

    Plain training: photographs with the human boxes. MixTraining: for each photograph of the mixed
    half the weak view with the teacher's boxes, and beside it the strong view with the targets,
    coloured by
    origin: human, replaced by the teacher's, missing and found, dropped as too hard.

    Args:
      batch: numpy arrays, as they went into the step.
      lesson: what the step returned, with its device axis.
      names: of the classes.
      config: the whole config.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    if lesson is None or batch.weak is None or batch.strong is None:
        view = batch.normal
        pictures = [
            _view(
                view, i, view.boxes[i][view.valid[i]], view.labels[i][view.valid[i]], names, config
            )
            for i in range(min(PHOTOGRAPHS, len(view.image)))
        ]
        return draw.contact_sheet(pictures)
    lesson = parallel.gather(lesson)
    pictures = []
    for i in range(min(PHOTOGRAPHS, len(batch.weak.image))):
        seen = lesson.found.valid[i]
        scores = lesson.found.scores[i][seen]
        boxes, labels = lesson.found.boxes[i][seen], lesson.found.labels[i][seen]
        pictures.append(_view(batch.weak, i, boxes, labels, names, config, scores))
        pictures.append(_strong(batch.strong, lesson, i, names, config))
    return draw.contact_sheet(pictures, columns=2 if len(pictures) < 8 else 4)


def of_detections(
    picture: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
) -> np.ndarray:
    """Draws detections, best first, on a photograph [H, W, 3] uint8 RGB; boxes in its pixels."""
    texts = [f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    colors = [draw.class_color(int(label)) for label in labels]
    return draw.draw_boxes(picture, boxes, texts, colors, min_side=SMALLEST_SIDE)


def _pixels(view: View, i: int, config: Any) -> np.ndarray:
    data = config.data
    size = np.asarray(view.size[i])
    return draw.to_uint8(np.asarray(view.image[i]), data.mean, data.std, data.channels, size)


def _view(view, i, boxes, labels, names, config, scores=None) -> np.ndarray:
    scores = [None] * len(labels) if scores is None else scores
    texts = [
        names[label] if score is None else f"{names[label]} {score:.2f}"
        for label, score in zip(labels, scores, strict=True)
    ]
    colors = [draw.class_color(int(label)) for label in labels]
    return draw.draw_boxes(_pixels(view, i, config), boxes, texts, colors, SMALLEST_SIDE)


def _strong(view: View, lesson: Lesson, i: int, names: Sequence[str], config: Any) -> np.ndarray:
    """The strong view with human and pseudo boxes; a rating or a class beside each."""
    human, fate = lesson.human, lesson.fate
    pseudo = slice(human.boxes.shape[1], None)
    groups = (
        ("human", fate.kept[i], human.boxes[i], human.labels[i]),
        ("dropped", fate.dropped[i], human.boxes[i], human.labels[i]),
        (
            "replaced",
            fate.mending[i],
            lesson.targets.boxes[i, pseudo],
            lesson.targets.labels[i, pseudo],
        ),
        (
            "missing",
            fate.missing[i],
            lesson.targets.boxes[i, pseudo],
            lesson.targets.labels[i, pseudo],
        ),
    )
    boxes, texts, colors = [np.zeros((0, 4))], [], []
    for origin, mask, group, labels in groups:
        boxes.append(np.asarray(group[mask]))
        texts += [f"{names[label]} {origin}" for label in labels[mask]]
        colors += [draw.ORIGIN_COLORS[origin]] * int(mask.sum())
    return draw.draw_boxes(
        _pixels(view, i, config), np.concatenate(boxes), texts, colors, SMALLEST_SIDE
    )
