"""Arrays of different lengths, one for each image, kept as one."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged(Sequence[np.ndarray]):
    """N arrays [n, ...] as a sequence; each is a view into one array.

    Attributes:
      values: [M, ...], those of all images, one image after the other.
      starts: [N + 1] int64, where those of each image begin, and M.
    """

    values: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, counts: np.ndarray) -> "Ragged":
        """Cuts an array into parts of these lengths [N], which add up to its own."""
        return cls(values, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    @property
    def counts(self) -> np.ndarray:
        """[N] int64, the length of each."""
        return np.diff(self.starts)

    def take(self, rows: np.ndarray) -> "Ragged":
        """Only the arrays [n] at these places, in this order."""
        parts = [self[int(row)] for row in rows]
        return Ragged.of(np.concatenate([self.values[:0], *parts]), self.counts[rows])

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self.values[self.starts[place] : self.starts[place + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        for start, end in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            yield self.values[start:end]
