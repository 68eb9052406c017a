"""A detector's view of a labelled data set, in one .npz file that any detector can write.

The file holds flat arrays. `*_image` says which image (row 0..I-1 of `image_ids`) each entry
belongs to; entries are sorted by image. Boxes are float32 x1 y1 x2 y2 in pixels of the original
image, labels are 0..K-1. What is marked "optional" may be left out.

| key | shape, dtype | what |
|---|---|---|
| `image_ids` | [I] int64 | the source's own ids; numbers in their place where these are text |
| `file_names` | [I] str | relative to the folder of images |
| `sizes` | [I, 2] int32 | height and width in pixels |
| `class_names` | [K] str | |
| `fold` | [I] int32, optional | which model looked at the image without having been trained on |
| | | it; -1 for one that was (in-sample); without the key: not known |
| `human_image`, `human_boxes`, `human_labels` | [H], [H, 4], [H] | the labels to audit |
| `human_probabilities` | [H, K + 1] float32, optional | softmax of the RoI head on each human |
| | | box, background last |
| `human_refined` | [H, 4] float32, optional | the same RoIs after regression by the deltas of the |
| | | class that is likeliest there, clipped |
| `human_source` | [H] int32, optional | planted errors: the row of the true box this one came |
| | | from, -1 for a spawned box |
| `truth_image`, `truth_boxes`, `truth_labels` | [T], [T, 4], [T], optional | good labels |
| `truth_known` | [I] bool, optional | images whose good labels are known; all without the key |
| `det_image`, `det_boxes`, `det_scores`, `det_labels` | [N], [N, 4], [N], [N] | detections after |
| | | class-wise non-maximum suppression: score >= 0.05, at most 100 an image |
| `views` | [V] str, optional | names of further looks: a mirrored image, another checkpoint |
| `NAME_image`, `NAME_boxes`, `NAME_scores`, `NAME_labels` | as `det_*` | detections of that look |
| `NAME_human_probabilities`, `NAME_human_refined` | as `human_*`, optional | ratings of that look |
| `note` | str, optional | the command, the seed, what the model was trained on |
"""

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixtrain_jax.auditing.labels import Bools, Detections, Floats, Ints, Labels
from mixtrain_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Look:
    """What a detector says about the images and the human boxes, seen one way.

    Attributes:
      detections: what it finds, in pixels of the original image.
      probabilities: [H, K + 1] float32 of each human box taken as RoI, background last; None if
        human boxes were not rated.
      refined: [H, 4] float32, the human boxes as the detector would draw them; None likewise.
    """

    detections: Detections
    probabilities: Floats | None = None
    refined: Floats | None = None

    def of_human(self, rows: Ints) -> "Look":
        """The same look with the ratings of these human boxes [n] alone."""
        if self.probabilities is None or self.refined is None:
            return self
        if np.array_equal(rows, np.arange(len(self.refined))):
            return self
        return Look(self.detections, self.probabilities[rows], self.refined[rows])


@dataclasses.dataclass(frozen=True)
class Dump:
    """The contents of a dump, checked.

    Attributes:
      image_ids: [I] int64.
      file_names: [I] str.
      sizes: [I, 2] int32 height and width in pixels.
      class_names: the K names.
      human: the labels to audit.
      look: the detector's plain look.
      views: further looks by name, in the dump's order.
      fold: [I] int32; None if the dump does not say.
      truth: good labels; None if they are not known.
      truth_known: [I] bool, the images that have good labels.
      source: [H] int32, for planted errors: the true box of each human box, -1 for a spawned one.
      note: where it all came from.
    """

    image_ids: Ints
    file_names: list[str]
    sizes: Ints
    class_names: list[str]
    human: Labels
    look: Look
    views: dict[str, Look] = dataclasses.field(default_factory=dict)
    fold: Ints | None = None
    truth: Labels | None = None
    truth_known: Bools = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    source: Ints | None = None
    note: str = ""


def read(path: str | os.PathLike[str]) -> Dump:
    """Reads a dump.

    Raises:
      UserError: the file cannot be read, a key is missing, or an array does not fit the others.
    """
    where = os.fspath(path)
    try:
        with np.load(where, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{where}: cannot be read as .npz ({error})") from error
    return parse(arrays, where)


def parse(arrays: Mapping[str, Any], where: str) -> Dump:
    """Turns the arrays of a dump into a `Dump`; `where` names it in messages.

    Raises:
      UserError: a key is missing, or an array does not fit the others.
    """
    reader = _Reader(arrays, where)
    sizes = reader.get("sizes", (None, 2)).astype(np.int32)
    count = len(sizes)
    class_names = [str(name) for name in reader.get("class_names", (None,))]
    classes = len(class_names)
    human = reader.labels("human", count, classes)
    views = [str(name) for name in arrays.get("views", ())]
    truth = reader.labels("truth", count, classes) if "truth_image" in arrays else None
    known = arrays.get("truth_known", np.full(count, truth is not None))
    source = reader.optional("human_source", (len(human),))
    if source is not None and truth is None:
        raise UserError(f"{where}: human_source names true boxes, but truth_image is not there")
    return Dump(
        image_ids=reader.get("image_ids", (count,)).astype(np.int64),
        file_names=[str(name) for name in reader.get("file_names", (count,))],
        sizes=sizes,
        class_names=class_names,
        human=human,
        look=reader.look("det", "", count, len(human), classes),
        views={n: reader.look(n, f"{n}_", count, len(human), classes) for n in views},
        fold=reader.optional("fold", (count,)),
        truth=truth,
        truth_known=np.asarray(known, bool),
        source=source,
        note=str(arrays.get("note", "")),
    )


def write(path: str | os.PathLike[str], dump: Dump) -> None:
    """Writes a dump, compressed; `read` gives it back."""
    arrays: dict[str, Any] = {
        "image_ids": dump.image_ids,
        "file_names": np.array(dump.file_names, np.str_),
        "sizes": dump.sizes,
        "class_names": np.array(dump.class_names, np.str_),
        "views": np.array(list(dump.views), np.str_),
        "note": np.array(dump.note),
    }
    tables = {"human": dump.human} | ({"truth": dump.truth} if dump.truth is not None else {})
    for name, table in tables.items():
        arrays |= {f"{name}_{key}": getattr(table, key) for key in ("image", "boxes", "labels")}
    for name, prefix, look in [
        ("det", "", dump.look),
        *((name, f"{name}_", look) for name, look in dump.views.items()),
    ]:
        for key in ("image", "boxes", "labels", "scores"):
            arrays[f"{name}_{key}"] = getattr(look.detections, key)
        arrays[f"{prefix}human_probabilities"] = look.probabilities
        arrays[f"{prefix}human_refined"] = look.refined
    arrays |= {"fold": dump.fold, "human_source": dump.source}
    if dump.truth is not None:
        arrays["truth_known"] = dump.truth_known
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})


class _Reader:
    """Takes arrays out of a dump and complains in one line."""

    def __init__(self, arrays: Mapping[str, Any], where: str):
        self.arrays, self.where = arrays, where

    def get(self, key: str, shape: tuple[int | None, ...]) -> Any:
        if key not in self.arrays:
            raise UserError(f"{self.where}: has no {key!r}; see mixtrain_jax/auditing/dump.py")
        array = np.asarray(self.arrays[key])
        fits = len(array.shape) == len(shape) and all(
            expected in (None, length) for expected, length in zip(shape, array.shape)
        )
        if not fits:
            expected = tuple("any" if n is None else n for n in shape)
            raise UserError(f"{self.where}: {key} has shape {array.shape}, expected {expected}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{self.where}: {key} holds numbers that are not finite")
        return array

    def optional(self, key: str, shape: tuple[int | None, ...]) -> Any:
        return self.get(key, shape) if key in self.arrays else None

    def labels(self, name: str, images: int, classes: int) -> Labels:
        image = self.get(f"{name}_image", (None,)).astype(np.int32)
        boxes = self.get(f"{name}_boxes", (len(image), 4)).astype(np.float32)
        labels = self.get(f"{name}_labels", (len(image),)).astype(np.int32)
        for key, numbers, limit in (("image", image, images), ("labels", labels, classes)):
            if len(numbers) and not (numbers.min() >= 0 and numbers.max() < limit):
                raise UserError(f"{self.where}: {name}_{key} has numbers outside 0..{limit - 1}")
        return Labels(image, boxes, labels)

    def look(self, name: str, prefix: str, images: int, humans: int, classes: int) -> Look:
        table = self.labels(name, images, classes)
        scores = self.get(f"{name}_scores", (len(table),)).astype(np.float32)
        return Look(
            Detections(table.image, table.boxes, table.labels, scores),
            self.optional(f"{prefix}human_probabilities", (humans, classes + 1)),
            self.optional(f"{prefix}human_refined", (humans, 4)),
        )
