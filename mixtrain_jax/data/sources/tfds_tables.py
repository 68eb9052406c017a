"""What the records of a tfds split say beside their pixels: read once on a machine, then kept.

A record holds its image too, so to read the boxes of a set is to read all of it, 19 GB for COCO's
train2017. The table that comes of it is kept in the user's cache directory, under a name that
changes with the files of the set.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath

from mixtrain_jax.runtime import storage

FOLDER = "~/.cache/mixtrain_jax/tfds"


class Table(NamedTuple):
    """Images and boxes of a split, in the order of its records.

    Attributes:
      ids: [n] int64 of the images.
      files: [n] str, the images' file names.
      sizes: [n, 2] int32 height and width as stored.
      rows: [m] int64, the image of each box.
      labels: [m] int32.
      boxes: [m, 4] float64 x y width height in pixels of the image.
      areas: [m] float64 pixels of each object; NaN where the set does not say.
      crowd: [m] bool.
    """

    ids: np.ndarray
    files: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


def kept(folder: epath.PathLike, split: str, read: Callable[[], Table]) -> Table:
    """The table of a split, from the cache or else read and put there.

    Args:
      folder: of the prepared set; when one of its files changes the table is read again.
      split: such as 'train' or 'validation[:10%]'.
      read: reads the table from the records.

    Raises:
      StorageError: the files of the set cannot be looked at.
    """
    path = epath.Path(os.path.expanduser(FOLDER)) / f"{_digest(epath.Path(folder), split)}.npz"
    try:
        with np.load(io.BytesIO(storage.read(path)), allow_pickle=False) as arrays:
            return Table(*(arrays[name] for name in Table._fields))
    except FileNotFoundError:
        pass
    except Exception as error:  # damaged, as by a full disk
        logging.warning("%s cannot be read, so the records are read again: %s", path, error)
    table = read()
    content = io.BytesIO()
    np.savez_compressed(content, **table._asdict())
    try:
        storage.write(path, content.getvalue())
    except storage.StorageError as error:  # then it is read at each start
        logging.info("%s", error)
    return table


def _digest(folder: epath.Path, split: str) -> str:
    files = [os.fspath(folder), split]
    for name in storage.list_folder(folder):
        path = folder / name
        stat = storage.retry("read", path, path.stat)
        files.append(f"{name} {stat.length} {stat.mtime}")
    return hashlib.sha256(json.dumps([2, files]).encode()).hexdigest()[:24]
