"""Every image file of a split, read and decoded once, in threads."""

import concurrent.futures
import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mixtrain_jax.data.sources import image_files
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.runtime import machine


class Seen(NamedTuple):
    """What one image file turned out to be.

    Attributes:
      digest: hash of the file's bytes; empty where the image cannot be used.
      error: why the image cannot be used; empty if it can.
      flat: whether all its pixels have one colour.
    """

    digest: str = ""
    error: str = ""
    flat: bool = False


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set: its annotations, and what its files turned out to be.

    Attributes:
      dataset: the split.
      seen: of each image.
    """

    dataset: Dataset
    seen: list[Seen]

    @property
    def name(self) -> str:
        """Such as "train"."""
        return self.dataset.name

    @property
    def damaged(self) -> list[int]:
        """Rows of the images that cannot be used."""
        return [row for row, seen in enumerate(self.seen) if seen.error]


def decode_all(dataset: Dataset, threads: int = 0) -> Split:
    """Reads and decodes every image of a split once.

    Args:
      dataset: the split.
      threads: how many images are read at once; 0: two for each core.

    Returns:
      The split with what its files are, in the order of its rows.
    """
    with concurrent.futures.ThreadPoolExecutor(threads or 2 * machine.cores()) as pool:
        found = pool.map(lambda row: _see(dataset, row), range(len(dataset)))
        bar = tqdm(found, dataset.name, len(dataset), unit=" images")
        return Split(dataset, list(bar))


def _see(dataset: Dataset, row: int) -> Seen:
    try:
        content = dataset.read(row)
    except OSError as error:
        return Seen(error=error.strerror or str(error))
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    height, width = (int(side) for side in dataset.sizes[row])
    try:
        pixels = image_files.decode(content, (height, width), dataset.reading)
    except image_files.UnreadableImage as error:
        return Seen(error=str(error))
    return Seen(digest, "", bool(np.ptp(pixels.reshape(-1, 3), axis=0).max() == 0))
