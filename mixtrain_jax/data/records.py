"""A data set as plain numbers, checked once at start-up, and the one door from a file's bytes to
pixels.

Every source (COCO files, TensorFlow Datasets) ends in one `Dataset`; what follows it knows no
formats.
"""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held


@dataclasses.dataclass(frozen=True)
class Dataset:
    """N photographs and the boxes people drew on them.

    Attributes:
      name: a short name for messages, such as 'train'.
      image_ids: [N] int64, the source's own ids.
      sizes: [N, 2] int32, declared height and width in pixels.
      boxes: N arrays [n, 4] float32, x1 y1 x2 y2 in pixels of the photograph, inside it.
      labels: N arrays [n] int32, 0-based and contiguous.
      categories: {'id', 'name'} of each label, in label order; the ids are the source's own.
      read: the encoded bytes of a row's image file.
      names: a row's file name, for messages.
      ground_truth: the annotations in COCO format, crowds included, for scoring.
      report: what was found at start-up and what was left out, for the log.
    """

    name: str
    image_ids: np.ndarray
    sizes: np.ndarray
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    categories: list[dict[str, Any]]
    read: Callable[[int], bytes]
    names: Callable[[int], str]
    ground_truth: dict[str, Any]
    report: str

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclasses.dataclass
class Targets:
    """Sorts annotations into training targets and what is left out, and why.

    Attributes:
      max_boxes: how many boxes of one photograph are kept.
      left_out: annotation ids by reason.
    """

    max_boxes: int
    left_out: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def select(
        self,
        size: tuple[int, int],
        boxes: np.ndarray,
        labels: np.ndarray,
        crowd: np.ndarray,
        ids: Sequence[int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Chooses the boxes of one photograph to train on.

        Args:
          size: height and width.
          boxes: [n, 4] float64 x1 y1 x2 y2 as annotated.
          labels: [n] int.
          crowd: [n] bool, groups of objects in one box (or otherwise to be ignored).
          ids: n annotation ids.

        Returns:
          boxes [m, 4] float32, clipped to the photograph, and labels [m] int32.
        """
        height, width = size
        with np.errstate(invalid="ignore", over="ignore"):
            wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
            inside = np.clip(boxes, 0, (width, height, width, height))
            outside = (inside[:, 2] <= inside[:, 0]) | (inside[:, 3] <= inside[:, 1])
            reasons = (
                ("boxes with NaN or infinite coordinates", ~np.isfinite(boxes).all(axis=1)),
                ("boxes with negative width or height", (wide < 0) | (high < 0)),
                ("boxes of zero area", (wide == 0) | (high == 0)),
                ("boxes outside their image", outside),
                ("crowd boxes", crowd),
                ("boxes narrower or lower than one pixel", (wide < 1) | (high < 1)),
            )
        keep = np.ones(len(boxes), bool)
        for reason, hit in reasons:
            self._note(reason, hit & keep, ids)
            keep &= ~hit
        excess = keep & (np.cumsum(keep) > self.max_boxes)
        self._note(f"boxes beyond the first {self.max_boxes} of an image", excess, ids)
        keep &= ~excess
        return inside[keep].astype(np.float32), labels[keep].astype(np.int32)

    def _note(self, reason: str, hit: np.ndarray, ids: Sequence[int]) -> None:
        if hit.any():
            self.left_out.setdefault(reason, []).extend(np.asarray(ids)[hit].tolist())


def report(
    name: str,
    source: str,
    labels: list[np.ndarray],
    categories: list[dict[str, Any]],
    left_out: dict[str, list[int]],
) -> str:
    """Writes the start-up report: counts, the class map, what is not trained on and why."""
    counts = np.bincount(
        np.concatenate([np.zeros(0, np.int32), *labels]), minlength=len(categories)
    )
    empty = sum(len(each) == 0 for each in labels)
    lines = [
        f"{name}: {len(labels)} images, {counts.sum()} boxes, {len(categories)} classes ({source})",
        "  classes as label=id name (boxes): "
        + ", ".join(
            f"{label}={c['id']} {c['name']} ({counts[label]})" for label, c in enumerate(categories)
        ),
    ]
    if empty:
        lines.append(f"  {empty} images without boxes")
    for reason, ids in left_out.items():
        some = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
        lines.append(f"  not trained on: {len(ids)} {reason} (annotation ids {some})")
    return "\n".join(lines)


class Unreadable(Exception):
    """An image file that cannot be used; the message says why."""


def decode(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes an image file of any kind that Pillow knows to [h, w, 3] uint8 RGB.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB, alpha is dropped. The rotation that EXIF
    asks for is done, unless only the picture as stored has the declared size.

    Args:
      data: the file's bytes.
      size: declared height and width; None accepts any.

    Raises:
      Unreadable: the file is damaged, or of another size than declared.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            orientation = image.getexif().get(_ORIENTATION, 1)
            upright = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
            if size is not None and size not in (upright, (height, width)):
                raise Unreadable(
                    f"it is {upright[1]}x{upright[0]} pixels, declared {size[1]}x{size[0]}"
                )
            pixels = _rgb(image)
    except Unreadable:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    if size is None or size == upright:
        pixels = _turned(pixels, orientation)
    return np.ascontiguousarray(pixels)


def _rgb(image: Image.Image) -> np.ndarray:
    """Pixels [h, w, 3] uint8; deep grey is scaled, which Pillow would clip."""
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image), 0, 65535) // 257
    elif image.mode == "F":
        grey = np.clip(np.nan_to_num(np.asarray(image)), 0, 255)
    else:
        return np.asarray(image.convert("RGB"))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes the mirroring and rotation that an EXIF orientation of 1 to 8 describes."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
