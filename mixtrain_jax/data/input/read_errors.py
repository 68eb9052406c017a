"""Images that cannot be read: skipped, named, counted, and a reason to stop when they are many.

What counts is the share of a set's images that are bad, however often each of them is drawn.
"""

import dataclasses
import threading

import numpy as np
from absl import logging

from mixtrain_jax.data.sources import image_files
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

_FEW = 4  # so many unreadable images are borne, unless they are half of all


def most_unreadable(images: int, max_share: float) -> float:
    """How many of a set's images may be unreadable before that is a reason to stop."""
    return max(max_share * images, min(_FEW, images / 2))


@dataclasses.dataclass
class ReadErrors:
    """Images that could not be read; the training loop may look at `count` at any time.

    Attributes:
      max_share: the share of the images that may be bad.
      of: how many images there are to read; None: the data set's.
      drawn: images drawn so far on this host, each as often as it was drawn.
      count: how many of these were bad.
      reasons: why, by row of the data set: an entry for each bad image.
      again: images are drawn again later, so one that the network failed to bring does not count
        as bad, and is tried again.
      error: an exception raised while images were prepared, on its way to the training loop.
    """

    max_share: float
    of: int | None = None
    drawn: int = 0
    count: int = 0
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    again: bool = False
    error: Exception | None = None
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def read(self, dataset: Dataset, row: int) -> np.ndarray | None:
        """The pixels [h, w, 3] uint8 of a row, or None, noted and named, if it cannot be used."""
        image, reason, for_good = None, self.reasons.get(row), True
        if reason is None:
            try:
                image = dataset.pixels(row)
            except (image_files.UnreadableImage, OSError) as error:
                reason, for_good = str(error), not (self.again and storage.is_transient(error))
        with self._lock:
            self.drawn += 1
            if reason is None:
                return image
            self.count += 1
            if row not in self.reasons:
                if for_good:
                    self.reasons[row] = reason
                logging.warning("%s: skipping %s: %s", dataset.name, dataset.file_name(row), reason)
            images = len(dataset) if self.of is None else self.of
            if len(self.reasons) > most_unreadable(images, self.max_share):
                raise UserError(
                    f"{dataset.name}: {len(self.reasons)} of {images} images could not be read, "
                    f"more than config.data.max_bad_share = {self.max_share}; the last is "
                    f"{dataset.file_name(row)}: {reason}"
                )
        return None
