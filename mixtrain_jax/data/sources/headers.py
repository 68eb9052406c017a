"""What the image files of a set say of themselves, looked at once at the start.

Their headers give sizes where the annotations have none, tell whether declared sizes are right,
whether EXIF's turns belong to the set's boxes (one rule for all of it), and how deep images are
scaled. Of sets larger than `LOOKED_AT` that many images are looked at, spread evenly; all of them
where declared sizes are those of images that EXIF turns, as they were before turning.
"""

import concurrent.futures
import dataclasses
import functools
import io
import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from mixtrain_jax.data.sources import image_files
from mixtrain_jax.data.sources.annotations import Annotations
from mixtrain_jax.data.sources.image_files import Exif, Reading
from mixtrain_jax.data.sources.report import MENDED, NOTE, WARNING
from mixtrain_jax.errors import UserError

LOOKED_AT = 4000
UNREADABLE = "image files that cannot be read"  # what is said of them
TURNED = "images are turned by EXIF"  # likewise
_DEEP_LOOKED_AT = 50
_WHITES = (255, 1023, 4095, 16383, 65535)
_SLACK = 1.5  # pixels that a box may reach out of its image by rounding
_THREADS = 16


class Header(NamedTuple):
    """What one image file says.

    Attributes:
      size: height and width as stored.
      orientation: of EXIF, 1 to 8.
      mode: Pillow's.
      error: why it cannot be read; empty if it can.
    """

    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    mode: str = ""
    error: str = ""


def complete(
    table: Annotations, exif: Exif, name: str, white: float | None = None
) -> tuple[Annotations, Reading]:
    """Looks at a set's image files, and completes what depends on them.

    Args:
      table: as a reader made it.
      exif: `config.data.exif`.
      name: of the split, for messages.
      white: `config.data.white`; None: found in the images.

    Returns:
      The annotations with a size for every image and boxes in pixels, and how to read the images.

    Raises:
      UserError: no image can be read, or most have another size than declared.
    """
    if len(table) == 0:
        return table, Reading()
    unsized = table.sizes.min(axis=1) <= 0
    spread = np.linspace(0, len(table) - 1, min(len(table), LOOKED_AT)).astype(int)
    rows = np.union1d(spread, np.flatnonzero(unsized))
    headers = dict(zip(rows.tolist(), _headers(table, rows), strict=True))
    broken = {row: header for row, header in headers.items() if header.error}
    if len(broken) == len(headers):
        row, header = next(iter(broken.items()))
        raise UserError(
            f"{name}: none of the {len(headers)} images looked at can be read; "
            f"{table.files[row]}: {header.error}"
        )
    table.findings.add(
        WARNING,
        [f"{table.files[row]}: {header.error}" for row, header in broken.items()],
        UNREADABLE,
        of="",
    )
    good = {row: header for row, header in headers.items() if not header.error}
    exif = _exif(table, good, exif)
    actual = {row: _seen(header, exif) for row, header in good.items()}
    if any(_before_turning(table, row, good[row], actual[row]) for row in good):
        others = np.setdiff1d(np.arange(len(table)), rows)
        more = zip(others.tolist(), _headers(table, others), strict=True)
        more_good = {row: header for row, header in more if not header.error}
        good |= more_good
        actual |= {row: _seen(header, exif) for row, header in more_good.items()}
    sizes = _sizes(table, good, actual, unsized, name)
    table = dataclasses.replace(table, sizes=_completed(sizes))
    deep = {row: header.mode for row, header in good.items() if _is_deep(header.mode)}
    return _pixels(table), _reading(table, deep, exif, white)


def _completed(sizes: np.ndarray) -> np.ndarray:
    """Sizes [N, 2] with one for each image that cannot be read and has none: the others' median.

    So the image stays in the set: it is counted where it cannot be decoded, and its objects are
    missed.
    """
    sizeless = sizes.min(axis=1) <= 0
    if not sizeless.any():
        return sizes
    return np.where(sizeless[:, None], np.median(sizes[~sizeless], axis=0), sizes).astype(np.int32)


def _headers(table: Annotations, rows: np.ndarray) -> list[Header]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(functools.partial(header, table), rows.tolist()))


def header(table: Annotations, row: int) -> Header:
    """What a row's image file says of itself; a local file is not read whole."""
    try:
        local = table.read is None and "://" not in table.paths[row]
        source: Any = table.paths[row] if local else io.BytesIO(table.content(row))
        with Image.open(source) as image:
            orientation = image_files.orientation(image)
            return Header(image_files.stored_size(image), orientation, image.mode)
    except Exception as error:  # Pillow raises nearly anything on damaged files
        if isinstance(error, UnidentifiedImageError) and _empty(table, row):
            return Header(error="an empty file")
        return Header(error=image_files.why(error))


def sizes(table: Annotations, exif: Exif) -> dict[int, tuple[int, int]]:
    """Height and width of all images that can be read, by row, as the set's rule shows them."""
    found = enumerate(_headers(table, np.arange(len(table))))
    return {row: _seen(header, exif) for row, header in found if not header.error}


def any_turned(table: Annotations) -> bool:
    """Whether `complete` has found images that EXIF turns."""
    return any(TURNED in finding.text for finding in table.findings)


def _empty(table: Annotations, row: int) -> bool:
    try:
        return not table.content(row)
    except OSError:
        return False


def _seen(header: Header, exif: Exif) -> tuple[int, int]:
    """Height and width as the set's rule shows the image."""
    turned = exif != "stored" and header.orientation in image_files.QUARTER
    return header.size[::-1] if turned else header.size


def _before_turning(table: Annotations, row: int, header: Header, actual: tuple[int, int]) -> bool:
    """Whether the declared size is the image's own with the sides exchanged that EXIF exchanges."""
    declared = tuple(table.sizes[row].tolist())
    return header.orientation in image_files.QUARTER and declared == actual[::-1] != actual


def _exif(table: Annotations, good: dict[int, Header], exif: Exif) -> Exif:
    """One rule for the whole set; what it rests on is said."""
    turned = [row for row, header in good.items() if header.orientation != 1]
    if not turned:
        return exif
    reason = f"config.data.exif is {exif}"
    if exif == "auto":
        exif, reason = _vote(table, {row: good[row] for row in turned})
    how = "upright" if exif == "upright" else "as stored"
    table.findings.add(
        NOTE,
        [table.files[row] for row in turned],
        f"{TURNED}; all are taken {how}: {reason}",
        of="",
    )
    return exif


def _vote(table: Annotations, turned: dict[int, Header]) -> tuple[Exif, str]:
    """Which of the two fits boxes, or else declared sizes; upright if neither can tell."""
    by_box, by_size = {"upright": 0, "stored": 0}, {"upright": 0, "stored": 0}
    by_image = table.by_image()
    with np.errstate(invalid="ignore", over="ignore"):
        all_ends = by_image.boxes[:, :2] + by_image.boxes[:, 2:]
    borders = np.searchsorted(by_image.rows, np.arange(len(table) + 1)).tolist()
    for row, header in turned.items():
        stored, upright = header.size, header.size[::-1]
        if header.orientation not in image_files.QUARTER or stored == upright:
            continue
        for kind, size in (("upright", upright), ("stored", stored)):
            by_size[kind] += tuple(table.sizes[row].tolist()) == size
        if not table.shares:
            ends = all_ends[borders[row] : borders[row + 1]]
            ends = ends[np.isfinite(ends).all(axis=1)].max(axis=0, initial=0)[::-1]
            fits = {
                kind: bool((ends <= np.array(size) + _SLACK).all())
                for kind, size in (("upright", upright), ("stored", stored))
            }
            if fits["upright"] != fits["stored"]:
                by_box["upright" if fits["upright"] else "stored"] += 1
    for votes, what in ((by_box, "boxes fit"), (by_size, "declared sizes are")):
        if sum(votes.values()):
            exif: Exif = "upright" if votes["upright"] >= votes["stored"] else "stored"
            against = sum(votes.values()) - votes[exif]
            return exif, (
                f"so their {what} in {votes[exif]} of them"
                + (f", against {against}" if against else "")
                + " (config.data.exif)"
            )
    return "upright", "their sizes and boxes cannot tell (config.data.exif)"


def _sizes(
    table: Annotations,
    good: dict[int, Header],
    actual: dict[int, tuple[int, int]],
    unsized: np.ndarray,
    name: str,
) -> np.ndarray:
    """[N, 2] int32: declared sizes, completed and corrected by what the files say."""
    sizes = np.where(unsized[:, None], 0, table.sizes).astype(np.int32)
    quarter = [row for row in good if _before_turning(table, row, good[row], actual[row])]
    for row in [*np.flatnonzero(unsized).tolist(), *quarter]:
        if row in actual:
            sizes[row] = actual[row]
    found = [row for row in np.flatnonzero(unsized).tolist() if row in actual]
    if not table.shares:
        table.findings.add(
            MENDED,
            [table.files[row] for row in found],
            "images are listed without height and width, which are read from the files",
            of="",
        )
    wrong = [row for row in actual if tuple(sizes[row].tolist()) != actual[row]]
    if not wrong:
        return sizes
    row = wrong[0]
    first = (
        f"{table.files[row]} is {actual[row][1]}x{actual[row][0]} pixels, declared "
        f"{sizes[row][1]}x{sizes[row][0]}"
    )
    if 2 * len(wrong) <= len(actual):
        table.findings.add(
            WARNING,
            [table.files[row] for row in wrong],
            f"images have another size than declared and will be skipped; {first}",
            of="",
        )
        return sizes
    swapped = all(tuple(sizes[row].tolist()) == actual[row][::-1] for row in wrong)
    if swapped and _boxes_fit(table, actual):
        table.findings.add(
            MENDED,
            [table.files[row] for row in wrong],
            "images have height and width swapped: the files' are taken, which the boxes fit",
            of="",
        )
        corrected = sizes[:, ::-1].copy()
        for row, size in actual.items():
            corrected[row] = size
        return corrected
    kind = "height and width swapped" if swapped else "another size than declared"
    raise UserError(
        f"{name}: {len(wrong)} of {len(actual)} images looked at have {kind}: {first}; correct the "
        f"sizes in {table.source}, or leave them out to have them read from the files"
    )


def _boxes_fit(table: Annotations, actual: dict[int, tuple[int, int]]) -> bool:
    """Whether nearly all boxes are inside their images as these are."""
    known = np.isin(table.rows, list(actual))
    if table.shares or not known.any():
        return True
    sizes = np.array([actual[row] for row in table.rows[known].tolist()])
    with np.errstate(invalid="ignore", over="ignore"):
        ends = table.boxes[known, :2] + table.boxes[known, 2:]
    return bool(((ends <= sizes[:, ::-1] + _SLACK).all(axis=1)).mean() > 0.99)


def _pixels(table: Annotations) -> Annotations:
    """The same with boxes in pixels."""
    if not table.shares:
        return table
    sides = table.sizes[table.rows][:, ::-1].astype(np.float64)
    return dataclasses.replace(
        table, boxes=table.boxes * np.concatenate([sides, sides], axis=1), shares=False
    )


def _is_deep(mode: str) -> bool:
    return mode.startswith("I") or mode == "F"


def _reading(table: Annotations, deep: dict[int, str], exif: Exif, white: float | None) -> Reading:
    """How to read the set's images; the range of deep ones is what the first of them hold."""
    if white is not None:
        table.findings.add(
            NOTE,
            [table.files[row] for row in deep],
            f"images of more than 8 bits: 0 to {white:g} becomes 0 to 255 (config.data.white)",
            of="",
        )
        return Reading(exif, math.ceil(white), white, white)
    floats = [row for row, mode in deep.items() if mode == "F"]
    integers = [row for row, mode in deep.items() if mode != "F"]
    white_integer = _white(table, integers, "integers", Reading.white)
    white_float = _white(table, floats, "floating-point numbers", Reading.white_float)
    one = white_integer if not floats else white_float if not integers else None
    return Reading(exif, int(white_integer), white_float, one if deep else None)


def _white(table: Annotations, rows: list[int], kind: str, default: float) -> float:
    """The number that becomes 255 in deep images, by the largest that is found; it is said."""
    looked_at = rows[:_DEEP_LOOKED_AT]
    top = max((_top(table, row) for row in looked_at), default=0.0)
    if top <= 0:
        return default
    whites = (1.0, *_WHITES) if kind.startswith("float") else _WHITES
    value = next((white for white in whites if top <= white), math.ceil(top))
    table.findings.add(
        NOTE,
        [table.files[row] for row in rows],
        f"images hold {kind} up to {top:g} (in {len(looked_at)} looked at): 0 to {value:g} becomes "
        "0 to 255",
        of="",
    )
    return float(value)


def _top(table: Annotations, row: int) -> float:
    """The largest number in a row's image; 0 if it cannot be read."""
    try:
        with Image.open(io.BytesIO(table.content(row))) as image:
            return float(np.nan_to_num(np.asarray(image, np.float64), posinf=0).max())
    except Exception:  # as above
        return 0.0
