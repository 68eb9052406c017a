"""The errors page: where average precision is lost, and the images where it shows."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mixtrain_jax.ops import numpy_boxes
from mixtrain_jax.pages import crops, render

FOLDER = "worst"
WORST = 24  # images shown
CLASSES = 60  # in the table of confusion, and curves: those with the most errors
SAME_IOU = 0.5
EXPLAINED = {
    "classification": "right place, wrong class",
    "localisation": "right class, IoU below 0.5",
    "both": "wrong class and IoU below 0.5",
    "duplicate": "found already by a stronger detection",
    "background": "nothing is there",
    "missed": "no detection comes near",
}


def write(
    folder: str | os.PathLike[str],
    analysis: dict[str, Any],
    *,
    found: Any,
    truth: Any,
    file_names: Sequence[str],
    read: Callable[[str], Image.Image],
    title: str = "Errors",
    about: str = "",
    suffix: str = "",
) -> pathlib.Path:
    """Writes errors.html and the images it shows.

    Args:
      folder: where to; created if need be.
      analysis: what `evaluation.errors.analyse` returned.
      found, truth: the `evaluation.errors.Boxes` it was given.
      file_names: of the images.
      read: returns the image of a file name.
      title: of the page.
      about: a line on what was evaluated: checkpoint, data, number of images.
      suffix: of the names of the page and of the folder of its images.

    Returns:
      The page's path.
    """
    folder = pathlib.Path(folder)
    pictures = f"{FOLDER}{suffix}"
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    names = [row["name"] for row in analysis["per_class"]]
    thresholds = np.array([row["threshold"] for row in analysis["per_class"]])
    worst = []
    for entry in analysis["images"][:WORST]:
        if not (entry["false"] or entry["missed"]):
            break
        image = entry["image"]
        path = folder / pictures / f"{image}.jpg"
        drawn = _drawn(found, truth, image, thresholds, names)
        crops.picture(read(file_names[image]), path, drawn)
        worst.append(entry | {"name": file_names[image], "path": f"{pictures}/{path.name}"})
    shown = _most_wrong(analysis["confusion"])
    others = ["other classes"] if len(shown) < len(names) else []
    return render.write(
        "errors.html",
        folder / f"errors{suffix}.html",
        title=title,
        about=about,
        analysis=analysis,
        kinds=[(kind, EXPLAINED[kind]) for kind in EXPLAINED],
        shown=shown,
        confusion=_merged(analysis["confusion"], shown),
        columns=[*(names[c] for c in shown), *others, "nothing"],
        names=names,
        worst=worst,
    )


def _most_wrong(confusion: Sequence[Sequence[int]]) -> list[int]:
    """The classes whose boxes are confused or missed, or made up, the most; in label order."""
    table = np.array(confusion)
    wrong = table.sum(0) + table.sum(1) - 2 * np.diag(table)
    return sorted(np.argsort(-wrong[:-1], kind="stable")[:CLASSES].tolist())


def _merged(confusion: Sequence[Sequence[int]], shown: Sequence[int]) -> list[list[int]]:
    """The counts of the classes shown, of all others together, if there are, and of nothing."""
    table = np.array(confusion)
    last = len(table) - 1
    rest = [c for c in range(last) if c not in set(shown)]
    groups = [[c] for c in shown] + ([rest] if rest else []) + [[last]]
    columns = np.stack([table[:, group].sum(axis=1) for group in groups], axis=1)
    return [columns[group].sum(axis=0).tolist() for group in groups]


def _drawn(
    found: Any, truth: Any, image: int, thresholds: Any, names: Sequence[str]
) -> list[tuple[Any, tuple[int, int, int], str]]:
    """Returns what to draw: hits in blue, false positives in red, missed boxes in orange."""
    assert found.scores is not None
    seen = np.flatnonzero((found.image == image) & (found.scores >= thresholds[found.labels]))
    seen = seen[np.argsort(-found.scores[seen], kind="stable")]
    there = np.flatnonzero(truth.image == image)
    free = np.ones(len(there), bool)
    drawn = []
    for row in seen:
        overlap = numpy_boxes.iou(found.boxes[row][None], truth.boxes[there])[0]
        overlap = overlap * free * (truth.labels[there] == found.labels[row])
        right = bool(len(there)) and overlap.max() >= SAME_IOU
        if right:
            free[overlap.argmax()] = False
        caption = f"{names[found.labels[row]]} {found.scores[row]:.2f}"
        drawn.append((found.boxes[row], crops.PROPOSED if right else crops.WRONG, caption))
    drawn += [(truth.boxes[row], crops.HUMAN, f"{names[truth.labels[row]]}") for row in there[free]]
    return drawn
