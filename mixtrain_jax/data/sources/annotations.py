"""What every reader makes of its files: the images of one split and their annotations, as arrays.

Nothing is left out here that a box filter could judge: the boxes are as the files have them. From
`Annotations` a `Dataset` is made (dataset.py), or other files are written (writers.py).
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mixtrain_jax.data.sources.file_names import SUFFIXES
from mixtrain_jax.data.sources.report import LEFT_OUT, MENDED, NOTE, Findings
from mixtrain_jax.data.sources.text_files import read_lines
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

LARGEST_ID = 2**53  # ids pass through float64 when detections are scored


@dataclasses.dataclass(frozen=True)
class Annotations:
    """N images and the M boxes people drew on them.

    Attributes:
      source: where they come from, for messages.
      files: N file names, as results have them.
      paths: N paths or URLs of the image files; empty where images are not files.
      image_ids: [N] int64.
      sizes: [N, 2] int32, declared height and width in pixels; 0 where none is declared.
      categories: {'id', 'name'} of each label, in label order.
      ids: M annotation ids, for messages; an array where all are integers, or a list.
      rows: [M] int, each box's image.
      labels: [M] int32, 0-based.
      boxes: [M, 4] float64 x, y, width, height: pixels from the image's left upper corner, or
        shares of the image's width and height.
      areas: [M] float64 in pixels, of the object; NaN where only the box tells.
      crowd: [M] bool, groups of objects in one box, or otherwise to be ignored.
      shares: whether the boxes are shares of the image's sides.
      read: the bytes of a row's image file; None: of its path.
      findings: what the reader has to say.
      original_ids: of each image as the file has it, where that is no number to work with.
      original_categories: the same of each label.
    """

    source: str
    files: Sequence[str]
    paths: Sequence[str]
    image_ids: np.ndarray
    sizes: np.ndarray
    categories: list[dict[str, Any]]
    ids: Sequence[Any] | np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    shares: bool = False
    read: Callable[[int], bytes] | None = None
    findings: Findings = dataclasses.field(default_factory=Findings)
    original_ids: Sequence[Any] | None = None
    original_categories: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def content(self, row: int) -> bytes:
        """The encoded bytes of a row's image file."""
        if self.read is not None:
            return self.read(row)
        return storage.read(self.paths[row])

    def take(self, rows: np.ndarray) -> "Annotations":
        """Only the images [n] of these rows, in this order, with their boxes."""
        new_row = np.full(len(self), -1)
        new_row[rows] = np.arange(len(rows))
        chosen = self.boxes_at(np.flatnonzero(new_row[self.rows] >= 0))
        listed, read = rows.tolist(), self.read
        return dataclasses.replace(
            chosen,
            rows=new_row[chosen.rows],
            files=[self.files[row] for row in listed],
            paths=[self.paths[row] for row in listed] if self.paths else (),
            image_ids=self.image_ids[rows],
            sizes=self.sizes[rows],
            read=None if read is None else lambda row: read(listed[row]),
            original_ids=self.original_ids and [self.original_ids[row] for row in listed],
        )

    def boxes_at(self, places: np.ndarray) -> "Annotations":
        """The same images with only the boxes at these places, in this order."""
        return dataclasses.replace(
            self,
            ids=self.ids_at(places),
            rows=self.rows[places],
            labels=self.labels[places],
            boxes=self.boxes[places],
            areas=self.areas[places],
            crowd=self.crowd[places],
        )

    def ids_at(self, places: np.ndarray) -> Sequence[Any] | np.ndarray:
        """The ids of the boxes at these places."""
        if isinstance(self.ids, np.ndarray):
            return self.ids[places]
        return [self.ids[place] for place in places.tolist()]

    def by_image(self) -> "Annotations":
        """The same with the boxes of an image together, in the order of the images."""
        if (np.diff(self.rows) >= 0).all():
            return self
        return self.boxes_at(np.argsort(self.rows, kind="stable"))

    def listed(self, path: str) -> "Annotations":
        """Only the images that a text file names, one a line, with or without extension.

        A line with folders names the image of these folders only, as far as both tell of them.

        Raises:
          UserError: the list cannot be read, or names no image that is there.
        """
        rows_of: dict[str, list[int]] = {}
        for row, file in enumerate(self.files):
            rows_of.setdefault(_stem(file), []).append(row)

        def named(line: str) -> list[int]:
            return [row for row in rows_of.get(_stem(line), ()) if _same_end(line, self.files[row])]

        lines, absent = read_lines(path), list[str]()
        keep = np.zeros(len(self), bool)
        for line in lines:
            # In VOC's lists of one class a sign follows: 1 it is there, 0 hardly, -1 not.
            rows = named(line) or named(re.sub(r"\s+(-1|0|1)$", "", line))
            keep[rows] = True
            if not rows:
                absent.append(line)
        if not keep.any():
            raise UserError(f"{path}: none of its {len(lines)} names is an image of {self.source}")
        self.findings.add(LEFT_OUT, absent, f"names of {path} without an image", of="")
        chosen = self.take(np.flatnonzero(keep))
        return dataclasses.replace(chosen, source=f"{self.source}, images of {path}")

    def merged(self) -> "Annotations":
        """Each file once: what is listed again gives its boxes to the first.

        Two lists of one image's objects are each taken for all of them: either would teach that the
        other's objects are background.
        """
        if len(set(map(os.path.normpath, self.paths))) == len(self.paths):
            return self
        first: dict[str, int] = {}
        target = np.arange(len(self))
        for row, path in enumerate(self.paths):
            target[row] = first.setdefault(os.path.normpath(path), row)
        again = target != np.arange(len(self))
        self.findings.add(
            MENDED,
            [self.files[row] for row in np.flatnonzero(again).tolist()],
            "images list a file that another has; their boxes are put together",
            of="",
        )
        moved = dataclasses.replace(self, rows=target[self.rows])
        return moved.take(np.flatnonzero(~again))

    def part(self, share: float, apart: bool) -> "Annotations":
        """The images that are set apart as val, or the others; by hash of their names.

        The hash is of the name without folder and extension, so it does not change when images are
        added, moved or converted; of Roboflow's copies of one image (NAME.rf.HASH.jpg) all go to
        the same side. One image at least is on either side.

        Args:
          share: of the images to set apart.
          apart: whether to return those.

        Raises:
          UserError: there are less than two images.
        """
        names = np.array([original(_stem(file)) for file in self.files])
        places = np.array([_hash(name) for name in names])
        if len(set(names)) < 2:
            raise UserError(f"{self.source}: {len(self)} images cannot be split into train and val")
        chosen = places < share
        if not chosen.any():
            chosen = places == places.min()
        elif chosen.all():
            chosen = places < places.max()
        self.findings.add(
            NOTE,
            [self.files[row] for row in np.flatnonzero(chosen).tolist()],
            f"of {len(self)} images are set apart as val, chosen by their names "
            f"(config.data.val_share = {share:g})",
            of="",
        )
        return self.take(np.flatnonzero(chosen == apart))


def from_lists(
    *,
    images: Sequence[tuple[str, str, tuple[int, int]]],
    boxes: Iterable[tuple[int, int, Sequence[float], bool, str]],
    names: Sequence[str],
    first_category: int = 1,
    **others: Any,
) -> Annotations:
    """Makes annotations of a source that has no ids of its own.

    Args:
      images: of each image its name, its path, and its declared height and width or (0, 0).
      boxes: of each box its image's row, its label, x, y, width, height, whether it is to be
        ignored, and where it stands.
      names: of the classes.
      first_category: id of the first class.
      **others: further fields of `Annotations`, `source` among them.
    """
    table = list(boxes)
    count = len(table)
    return Annotations(
        files=[name for name, _, _ in images],
        paths=[path for _, path, _ in images],
        image_ids=np.arange(1, len(images) + 1, dtype=np.int64),
        sizes=np.array([size for _, _, size in images], np.int32).reshape(-1, 2),
        categories=[{"id": i, "name": name} for i, name in enumerate(names, first_category)],
        ids=[each[4] for each in table],
        rows=np.array([each[0] for each in table], np.int64),
        labels=np.array([each[1] for each in table], np.int32),
        boxes=np.array([each[2] for each in table], np.float64).reshape(-1, 4),
        areas=np.full(count, np.nan),
        crowd=np.array([each[3] for each in table], bool),
        **others,
    )


def original(file: str) -> str:
    """What an image was called before Roboflow made copies of it (NAME.rf.HASH.jpg)."""
    return re.sub(r"\.rf\.[^/]*$", "", file)


def _stem(file: str) -> str:
    name = file.replace("\\", "/").rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES | {".xml", ".txt"} else name


def _same_end(first: str, second: str) -> bool:
    """Whether the folders of two paths agree, as far as both have some."""
    ours, theirs = (
        [part for part in path.replace("\\", "/").split("/")[:-1] if part not in ("", ".", "..")]
        for path in (first, second)
    )
    shared = min(len(ours), len(theirs))
    return ours[len(ours) - shared :] == theirs[len(theirs) - shared :]


def _hash(name: str) -> float:
    """A number from 0 to 1 that a name always has."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
