"""The data page: what a data set holds, and what is odd about it, before any training."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mixtrain_jax.ops.boxes import COCO_SIZES
from mixtrain_jax.pages import charts, crops, render

FOLDER = "samples"
SAMPLES = 12  # images shown
COLORS = ((240, 140, 46), (63, 195, 220), (116, 196, 147), (179, 154, 222), (229, 138, 128))


def write(
    folder: str | os.PathLike[str],
    *,
    title: str,
    about: str,
    class_names: Sequence[str],
    sizes: npt.NDArray[Any],
    image: npt.NDArray[Any],
    boxes: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    file_names: Sequence[str],
    problems: Sequence[dict[str, Any]],
    read: Callable[[str], Image.Image],
    samples: Sequence[int] | None = None,
) -> pathlib.Path:
    """Writes check.html and sample images.

    Args:
      folder: where to; created if need be.
      title: of the page.
      about: a line on where the data comes from.
      class_names: of the K classes.
      sizes: [I, 2] height and width in pixels.
      image, boxes, labels: [N], [N, 4], [N]: the boxes, x1 y1 x2 y2 in pixels, as a flat table.
      file_names: of the images.
      problems: {"what", "count", "where", "done"}: what is odd, how often, an example, and what
        will be done about it.
      read: returns the image of a file name.
      samples: rows of images to show; spread evenly over the data set if None.

    Returns:
      The page's path.
    """
    folder = pathlib.Path(folder)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    shown = []
    count = len(sizes)
    if samples is None:
        spread = np.linspace(0, max(count - 1, 0), min(SAMPLES, count)).round()
        samples = [int(row) for row in spread]
    for row in samples:
        mine = np.flatnonzero(image == row)
        drawn = [(boxes[n], COLORS[labels[n] % len(COLORS)], class_names[labels[n]]) for n in mine]
        crops.picture(read(file_names[row]), folder / FOLDER / f"{row}.jpg", drawn)
        shown.append((file_names[row], f"{FOLDER}/{row}.jpg", len(mine)))
    side = boxes[:, 2:] - boxes[:, :2] if len(boxes) else np.zeros((0, 2))
    area = side[:, 0] * side[:, 1]
    rows = []
    for label, name in enumerate(class_names):
        mine = labels == label
        by_size = {
            size: int((mine & (area >= low) & (area < high)).sum())
            for size, (low, high) in COCO_SIZES.items()
        }
        rows.append(
            {"name": name, "boxes": int(mine.sum()), "images": len(np.unique(image[mine]))}
            | {"sizes": by_size}
        )
    an_image = np.bincount(image, minlength=count) if count else np.zeros(0, int)
    return render.write(
        "check.html",
        folder / "check.html",
        title=title,
        about=about,
        numbers={
            "images": f"{count:,}",
            "boxes": f"{len(boxes):,}",
            "classes": f"{len(class_names):,}",
            "boxes per image": f"{len(boxes) / max(count, 1):.1f}",
            "images without boxes": f"{int((an_image == 0).sum()):,}",
        },
        rows=rows,
        problems=problems,
        boxes_an_image=_histogram(an_image, whole=True),
        widths=_histogram(sizes[:, 1]),
        heights=_histogram(sizes[:, 0]),
        box_sides=_histogram(np.sqrt(area)),
        samples=shown,
        sizes=list(COCO_SIZES),
    )


def _histogram(values: npt.NDArray[Any], whole: bool = False) -> tuple[list[float], list[int]]:
    """Returns the edges and the counts of at most 30 bins; `whole` numbers get a bin each."""
    if not len(values):
        return [0.0, 1.0], []
    low, high = float(values.min()), float(values.max())
    if whole and high - low < 60:
        edges = np.arange(low - 0.5, high + 1)
    elif charts.level(low, high):
        edges = low + np.arange(-1.5, 2)
    else:
        edges = np.linspace(low, high, 31)
    counts, edges = np.histogram(values, edges)
    return [float(edge) for edge in edges], [int(count) for count in counts]
