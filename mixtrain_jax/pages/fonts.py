"""Fonts that have the letters of class names: Pillow's own, or one of this machine's."""

import functools
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Sequence

from absl import logging
from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "C:/Windows/Fonts",
)
_SUFFIXES = (".ttf", ".otf", ".ttc")
_NO_LETTER = "\U0010fffe"  # that no font has: drawn as the sign for what is missing
_SIZE = 20  # pixels, for comparing letters
_PLAIN = ("regular", "sans", "book", "medium")  # in names of files that are tried first
_FANCY = ("italic", "oblique", "bold", "mono", "light", "thin", "condensed", "narrow", "black")


def load(size: int, text: str = "") -> Font:
    """Returns a font with the letters of a text; Pillow's own where no font has them all."""
    path = _having(_unusual(text))
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def drawable(names: Sequence[str]) -> list[str]:
    """The names as they can be written here.

    Where no font has a name's letters it loses its accents, or a number stands in its place, which
    is said once.
    """
    if _having(_unusual("".join(names))) is not None:
        return list(names)
    result = [
        name if _having(_unusual(name)) is not None else _plainer(name) or f"class {label}"
        for label, name in enumerate(names)
    ]
    _warn(
        tuple(
            name for name, now in zip(names, result) if name not in (now, "") and not _plainer(name)
        )
    )
    return result


def _plainer(name: str) -> str:
    """A name without accents; empty where that leaves other letters than Pillow's font has."""
    bare = "".join(
        letter
        for letter in unicodedata.normalize("NFKD", name)
        if not unicodedata.combining(letter)
    )
    return bare if bare.isascii() else ""


@functools.cache
def _warn(names: tuple[str, ...]) -> None:
    if names:
        logging.warning(
            "No font on this machine has the letters of %s: pictures show numbers in their place; "
            "install one, such as Noto Sans CJK.",
            ", ".join(names[:3]) + (", ..." if len(names) > 3 else ""),
        )


def _unusual(text: str) -> frozenset[str]:
    return frozenset(letter for letter in text if ord(letter) > 126 and not letter.isspace())


@functools.cache
def _having(letters: frozenset[str]) -> str | None:
    """Path of a font file with these letters; "" is Pillow's own; None: there is none."""
    if has(ImageFont.load_default(_SIZE), letters):
        return ""
    for path in _files():
        try:
            font = ImageFont.truetype(path, _SIZE)
        except OSError:
            continue
        if has(font, letters | set("Aa0.")):
            return path
    return None


def has(font: Font, letters: Iterable[str]) -> bool:
    """Whether a font draws letters as something else than its sign for what is missing."""
    missing = _drawn(font, _NO_LETTER)
    return all(_drawn(font, letter) != missing for letter in letters)


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@functools.cache
def _files() -> tuple[str, ...]:
    """The font files of this machine, plain ones first."""
    found: list[str] = []
    for folder in FOLDERS:
        for place, _, files in os.walk(os.path.expanduser(folder)):
            found += [
                os.path.join(place, file) for file in files if file.lower().endswith(_SUFFIXES)
            ]

    def order(path: str) -> tuple[bool, bool, str]:
        name = pathlib.PurePath(path).stem.lower()
        return any(word in name for word in _FANCY), not any(w in name for w in _PLAIN), path

    return tuple(sorted(found, key=order))
