"""Images without annotations, as people name them: files, folders, patterns; or as arrays."""

import glob
import os
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from etils import epath

from mixtrain_jax.data.sources import annotations, file_names, headers
from mixtrain_jax.data.sources.dataset import Dataset, assemble
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage


def find(names: Sequence[str], without: epath.PathLike | None = None) -> dict[str, str]:
    """The image files that are named, each once, in the order named and then by name.

    Args:
      names: image files, folders (looked through to the bottom) or patterns such as "a/**/*.jpg".
      without: a folder that is left out where a folder or a pattern that is not in it leads into
        it.

    Returns:
      By path: the name without extension that results are to have, with the folders between the
      folder named and the image; a second x is x_2.

    Raises:
      UserError: a file or folder does not exist, nothing in it is an image, or a pattern is of a
        bucket.
    """
    found: dict[str, str] = {}
    missing: list[str] = []
    for name in names:
        path = epath.Path(name)
        if "://" in name and glob.has_magic(name):
            raise UserError(f"{name}: in a bucket name files or folders, not patterns")
        if storage.is_directory(path):
            below = [file for file in file_names.walk(name) if _is_image(file)]
            listed = {os.fspath(path / file): os.path.splitext(file)[0] for file in sorted(below)}
        elif storage.exists(path):
            found.setdefault(name, path.stem)
            continue
        elif glob.has_magic(name):
            matches = filter(_is_image, glob.glob(name, recursive=True))
            listed = {file: epath.Path(file).stem for file in sorted(matches)}
        else:
            missing.append(name)
            continue
        if not listed:
            raise UserError(f"no image files in {name}")
        if without is not None and not _inside(f"{_root(name)}/x", without):
            listed = {file: stem for file, stem in listed.items() if not _inside(file, without)}
            if not listed:
                raise UserError(f"no image files in {name} but those of --output={without}")
        for file, stem in listed.items():
            found.setdefault(file, stem)
    if missing:
        raise UserError(f"no such image file: {', '.join(missing)}")
    return _apart(found)


def _apart(stems: dict[str, str]) -> dict[str, str]:
    """The same with a number after each name that an earlier image has."""
    taken: set[str] = set()
    result: dict[str, str] = {}
    for path, stem in stems.items():
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        result[path] = name
    return result


def dataset(paths: Sequence[str], data: Any) -> Dataset:
    """A data set of image files without boxes; those without a readable header are left out.

    Args:
      paths: of the files.
      data: `config.data`, of which `exif` and `white` say how they are read.

    Raises:
      UserError: none of the images can be read.
    """
    table = _table(paths)
    return assemble(*headers.complete(table, data.exif, "images", data.white), "images", 1)


def in_memory(images: Sequence[str | np.ndarray], data: Any) -> Dataset:
    """A data set of images that are files or arrays, all of which must be readable.

    Args:
      images: paths, or [h, w, 3] uint8 RGB, which goes the way of an uncompressed file.
      data: `config.data`, as above; arrays are as they are.

    Raises:
      UserError: an image cannot be used; the message names it and says why.
    """
    names = [f"image {i}" if _is_array(each) else str(each) for i, each in enumerate(images)]

    def content(row: int) -> bytes:
        image = images[row]
        return _as_file(image) if _is_array(image) else storage.read(image)

    for name, image in zip(names, images, strict=True):
        _check(name, image)
    table = annotations.from_lists(
        images=[(name, name, (0, 0)) for name in names],
        boxes=(),
        names=(),
        source="images",
        read=content,
    )
    found = assemble(*headers.complete(table, data.exif, "images", data.white), "images", 1)
    for finding in found.report.findings:
        if finding.text == headers.UNREADABLE:
            raise UserError("; ".join(finding.examples))
    return found


def _is_array(image: str | np.ndarray) -> TypeGuard[np.ndarray]:
    return isinstance(image, np.ndarray)


def _check(name: str, image: str | np.ndarray) -> None:
    if not _is_array(image):
        if not storage.exists(image):
            raise UserError(f"no such image file: {name}")
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"{name} is an array {image.dtype}{list(image.shape)}: give [height, width, 3] uint8 "
            "RGB, or the path of a file"
        )


def _as_file(image: np.ndarray) -> bytes:
    """The array as a PPM file: a line of text and the pixels."""
    height, width, _ = image.shape
    return f"P6 {width} {height} 255\n".encode() + np.ascontiguousarray(image).tobytes()


def _table(paths: Sequence[str]) -> annotations.Annotations:
    return annotations.from_lists(
        images=[(path, path, (0, 0)) for path in paths], boxes=(), names=(), source="image files"
    )


def _is_image(path: str) -> bool:
    return file_names.suffix(path) in file_names.SUFFIXES


def _root(name: str) -> str:
    """A folder, or the deepest one in which all that a pattern fits is."""
    while glob.has_magic(name):
        name = os.path.dirname(name)
    return name or "."


def _inside(file: str, folder: epath.PathLike) -> bool:
    """Whether a file is somewhere below a folder."""
    if "://" in file or "://" in os.fspath(folder):
        return os.fspath(epath.Path(file)).startswith(os.fspath(epath.Path(folder)) + "/")
    return os.path.realpath(file).startswith(os.path.realpath(os.fspath(folder)) + os.sep)
