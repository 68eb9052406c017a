"""The lists of a COCO file as columns, whatever its size.

A file as COCO's own tools write it goes through a typed decoder, a few megabytes at a time, so that
no image and no annotation ever becomes a dictionary. A block that holds anything else, say an id in
text or a box without numbers, is read entry by entry, and a file that is no plain UTF-8 JSON as a
whole. The columns say the same on each of these ways.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from mixtrain_jax.data.sources import coco_values, text_files
from mixtrain_jax.data.sources.report import some
from mixtrain_jax.errors import UserError

Key = int | str  # an id as a file has it
Keys = np.ndarray | list[Any]  # [N] int64, or a list where some are texts or larger
Entry = dict[str, Any]

_BLOCK = 1 << 22  # bytes of a list that are decoded at once
_BORDER = re.compile(rb"\}\s*,\s*(?=\{)")  # between two entries, or inside of one
_TRIES = 100  # borders tried as the end of a block
_NO_OBJECT, _NO_ID = object(), object()  # in place of the key of what has none
_UNFIT = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)


@dataclasses.dataclass
class Images:
    """The N images of a file, or of a block of it.

    Attributes:
      keys: of each.
      odd: by place, ids that stand there otherwise than as the key.
      files: N file names; empty where an entry has none.
      sizes: [N, 2] int32 height and width; zeros where an entry has none.
    """

    keys: Keys
    odd: dict[int, Any]
    files: list[str]
    sizes: np.ndarray


@dataclasses.dataclass
class Boxes:
    """The M annotations of a file, or of a block of it.

    Attributes:
      keys: of each; None where an entry has no id, which all may lack.
      images: key of each one's image; "" where it names none.
      categories: the same of its category.
      odd: by place, image and category ids that stand there otherwise than as the keys.
      boxes: [M, 4] float64 x, y, width, height in pixels; NaN where a number is null.
      areas: [M] float64; NaN where there is none.
      crowd: [M] bool.
      outlined: [M] bool, whose box is that of their outline.
      without: [M] bool, that have neither.
      texts: [M] bool, whose crowd flag is text.
    """

    keys: Keys
    images: Keys
    categories: Keys
    odd: dict[int, tuple[Any, Any]]
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    outlined: np.ndarray
    without: np.ndarray
    texts: np.ndarray


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int = 0
    width: int = 0


class _Box(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float = math.nan
    iscrowd: int = 0


class _File(msgspec.Struct):
    images: msgspec.Raw
    annotations: msgspec.Raw
    categories: Any


class _OnlyLists(msgspec.Struct):
    images: msgspec.Raw
    annotations: msgspec.Raw


class _OnlyCategories(msgspec.Struct):
    categories: Any


def read(path: str) -> tuple[Images, Boxes, dict[Key, Entry]]:
    """The images, the annotations, and the entries of categories by key.

    Raises:
      UserError: the file cannot be read, or one of the lists is missing, holds what is no object or
        has no id, or has an id twice.
    """
    data = text_files.read_bytes(path, "annotation file")
    try:
        lists = msgspec.json.decode(data, type=_File)
        images = list(_in_blocks(lists.images, _Image, _images, _odd_images))
        boxes = list(_in_blocks(lists.annotations, _Box, _boxes, _odd_boxes))
        categories = lists.categories
    except _UNFIT:
        content = text_files.parse_json(data, path)
        if not isinstance(content, dict):
            raise UserError(
                f"{path}: not a COCO file, its top level must be an object with 'images'"
            ) from None
        images = [_odd_images(_list(path, content, "images"))]
        boxes = [_odd_boxes(_list(path, content, "annotations"))]
        categories = content.get("categories")
    joined = _join(images, Images), _join(boxes, Boxes)
    for field, part in zip(("images", "annotations"), joined):
        part.keys = _checked(path, field, part.keys)
    return *joined, _by_key(path, categories)


def first_names(path: str, count: int) -> list[str] | None:
    """The file names of the first images that a COCO file lists; None if it is no COCO file.

    Raises:
      UserError: the file cannot be read, or is not JSON.
    """
    data = text_files.read_bytes(path, "annotation file")
    try:
        lists = msgspec.json.decode(data, type=_OnlyLists)
        if bytes(memoryview(lists.annotations)[:1]) != b"[":
            return None
        blocks = _in_blocks(lists.images, _Image, _images, _odd_images)
        return [name for block in itertools.islice(blocks, 2) for name in block.files][:count]
    except _UNFIT:
        content = text_files.parse_json(data, path)
        content = content if isinstance(content, dict) else {}
        images, boxes = (content.get(name) for name in ("images", "annotations"))
        if not isinstance(images, list) or not isinstance(boxes, list):
            return None
        return [name for name in _odd_images(images[:count]).files if name]


def categories(path: str) -> dict[Key, Entry]:
    """The entries of a file's categories by key; nothing else is looked at.

    Raises:
      UserError: the file cannot be read, or lists no categories.
    """
    data = text_files.read_bytes(path, "annotation file")
    try:
        listed = msgspec.json.decode(data, type=_OnlyCategories).categories
    except _UNFIT:
        content = text_files.parse_json(data, path)
        if not isinstance(content, dict):
            raise UserError(f"{path} lists no categories") from None
        listed = content.get("categories")
    return _by_key(path, listed)


def places(wanted: Keys, among: Keys) -> np.ndarray:
    """Where in `among` each key stands, [N] int64; -1 where it does not."""
    among = _plain(among) if isinstance(among, list) else among
    if isinstance(wanted, np.ndarray) and isinstance(among, np.ndarray):
        order = np.argsort(among, kind="stable")
        ordered = among[order]
        found = np.minimum(np.searchsorted(ordered, wanted), len(among) - 1)
        return np.where(ordered[found] == wanted, order[found], -1) if len(among) else found
    place = {each: number for number, each in enumerate(listed(among))}
    return np.array([place.get(each, -1) for each in listed(wanted)], np.int64)


def listed(keys: Keys) -> list[Any]:
    """Keys as Python has them."""
    return keys.tolist() if isinstance(keys, np.ndarray) else keys


def _in_blocks(
    raw: msgspec.Raw, kind: type, typed: Callable[..., Any], odd: Callable[..., Any]
) -> Iterator[Any]:
    """Columns of a list, block by block: by `typed` from what is decoded as `kind`, or by `odd`.

    A block ends where one entry seems to end and the next to begin. Cut inside an entry or a text
    it would be no JSON: then it is made longer.

    Raises:
      ValueError: the text is no list.
    """
    text = memoryview(raw)
    if text[0] != ord("["):
        raise ValueError("no list")
    decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    start, last = 1, len(text) - 1
    yield typed([])
    while start < last:
        borders = ((m.start() + 1, m.end()) for m in _BORDER.finditer(text, start + _BLOCK))
        for end, following in itertools.islice(itertools.chain(borders, [(last, last)]), _TRIES):
            block = b"".join((b"[", text[start:end], b"]"))
            try:
                yield typed(decoder.decode(block))
            except _UNFIT:
                try:
                    entries = json.loads(block)
                except ValueError:
                    continue
                yield odd(entries)
            start = following
            break
        else:
            raise ValueError("no end of an entry")


def _images(block: list[_Image]) -> Images:
    sizes = np.array([(each.height, each.width) for each in block], np.int64).reshape(-1, 2)
    return Images(
        np.fromiter((each.id for each in block), np.int64, len(block)),
        {},
        [each.file_name for each in block],
        _usable(sizes),
    )


def _odd_images(entries: list[Any]) -> Images:
    """The same, entry by entry, of whatever a file holds."""
    keys, odd, files, sizes = list[Any](), dict[int, Any](), list[str](), list[Any]()
    for place, each in enumerate(entries):
        entry = each if isinstance(each, dict) else {}
        keys.append(coco_values.key(entry.get("id")) if isinstance(each, dict) else _NO_OBJECT)
        if keys[-1] is not entry.get("id"):
            odd[place] = entry.get("id")
        name = entry.get("file_name")
        files.append(name if isinstance(name, str) else "")
        sides = coco_values.key(entry.get("height")), coco_values.key(entry.get("width"))
        usable = all(isinstance(side, int) and abs(side) < 2**62 for side in sides)
        sizes.append(sides if usable else (0, 0))
    return Images(keys, odd, files, _usable(np.array(sizes, np.int64).reshape(-1, 2)))


def _usable(sizes: np.ndarray) -> np.ndarray:
    """[N, 2] int32, zeros where one side is no number of pixels."""
    good = ((sizes > 0) & (sizes < 2**31)).all(axis=1, keepdims=True)
    return np.where(good, sizes, 0).astype(np.int32)


def _boxes(block: list[_Box]) -> Boxes:
    count = len(block)
    numbers = itertools.chain.from_iterable(each.bbox for each in block)
    no = np.zeros(count, bool)
    return Boxes(
        np.fromiter((each.id for each in block), np.int64, count),
        np.fromiter((each.image_id for each in block), np.int64, count),
        np.fromiter((each.category_id for each in block), np.int64, count),
        {},
        np.fromiter(numbers, np.float64, 4 * count).reshape(count, 4),
        np.fromiter((each.area for each in block), np.float64, count),
        np.fromiter((each.iscrowd != 0 for each in block), bool, count),
        no, no, no,
    )  # fmt: skip


def _odd_boxes(entries: list[Any]) -> Boxes:
    """The same, entry by entry, of whatever a file holds."""
    count = len(entries)
    keys, images, categories = list[Any](), list[Any](), list[Any]()
    odd: dict[int, tuple[Any, Any]] = {}
    boxes, areas = np.zeros((count, 4)), np.full(count, math.nan)
    crowd, outlined, without, texts = np.zeros((4, count), bool)
    for place, each in enumerate(entries):
        entry = each if isinstance(each, dict) else {}
        keys.append(coco_values.key(entry["id"], _NO_ID) if "id" in entry else None)
        if entry is not each:
            keys[-1] = _NO_OBJECT
        ids = entry.get("image_id"), entry.get("category_id")
        images.append(coco_values.key(ids[0], missing=""))
        categories.append(coco_values.key(ids[1], missing=""))
        if images[-1] is not ids[0] or categories[-1] is not ids[1]:
            odd[place] = ids
        box = coco_values.four(entry.get("bbox"))
        if box is None:
            box = coco_values.outline(entry.get("segmentation"))
            (without if box is None else outlined)[place] = True
        if box is not None:
            boxes[place] = box
        areas[place] = coco_values.number(entry.get("area"))
        ignored = entry.get("iscrowd", 0)
        texts[place] = isinstance(ignored, str)
        crowd[place] = coco_values.truth(ignored)
    plain = _plain(keys), _plain(images), _plain(categories)
    return Boxes(*plain, odd, boxes, areas, crowd, outlined, without, texts)


def _plain(keys: list[Any]) -> Keys:
    """The same as an array, where all are integers that fit."""
    fit = all(type(each) is int and abs(each) < 2**63 for each in keys)
    return np.array(keys, np.int64) if fit else keys


def _join(parts: list[Any], kind: type) -> Any:
    """One table of those of all blocks, in their order."""
    columns: dict[str, Any] = {}
    starts = np.cumsum([0, *(len(part.keys) for part in parts)]).tolist()
    for field in dataclasses.fields(kind):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "odd":
            columns["odd"] = {
                start + place: value
                for start, each in zip(starts, values)
                for place, value in each.items()
            }
        elif all(isinstance(each, np.ndarray) for each in values):
            columns[field.name] = np.concatenate(values)
        else:
            columns[field.name] = [each for value in values for each in listed(value)]
    return kind(**columns)


def _checked(path: str, field: str, keys: Keys) -> Keys:
    """Keys of entries that are objects, with an id each that is theirs alone."""
    if isinstance(keys, list):
        numbered = field == "annotations" and not any(
            each is not None and each is not _NO_OBJECT for each in keys
        )
        for place, each in enumerate(keys):
            if each is _NO_OBJECT:
                raise UserError(f"{path}: entry {place} of '{field}' is not an object")
            if each is _NO_ID or (each is None and not numbered):
                raise UserError(
                    f"{path}: entry {place} of '{field}' has no integer 'id', nor a text"
                )
        if numbered:
            return np.arange(1, len(keys) + 1)
        keys = _plain(keys)
    if isinstance(keys, np.ndarray):
        ordered = np.sort(keys)
        twice = bool((ordered[1:] == ordered[:-1]).any())
    else:
        twice = len(set(keys)) < len(keys)
    if twice:
        seen: set[Any] = set()
        repeated = [each for each in listed(keys) if each in seen or seen.add(each)]  # type: ignore[func-returns-value]
        raise UserError(f"{path}: ids used twice in '{field}': {some(repeated)}")
    return keys


def _list(path: str, content: Entry, field: str) -> list[Any]:
    entries = content.get(field)
    if not isinstance(entries, list):
        raise UserError(f"{path}: not a COCO file, it has no list '{field}'")
    return entries


def _by_key(path: str, entries: Any) -> dict[Key, Entry]:
    """The entries of categories, checked."""
    entries = _list(path, {"categories": entries}, "categories")
    keys = [coco_values.key(e.get("id")) if isinstance(e, dict) else _NO_OBJECT for e in entries]
    return dict(zip(listed(_checked(path, "categories", keys)), entries, strict=True))
