"""What is odd about a data set: one line for each kind, with its count, an example and a verdict.

Checks of boxes alone are in `boxes.py`, of files and splits in `splits.py`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

STOPS, MISTAKE, DOUBT, NOTE = "stops training", "mistake", "doubtful", "note"
KINDS = (STOPS, MISTAKE, DOUBT, NOTE)  # the most serious first
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Problem:
    """One kind of oddity in one split.

    Attributes:
      kind: STOPS (training cannot start), MISTAKE (near certain), DOUBT or NOTE.
      split: such as "train".
      what: completes "COUNT ...".
      count: of boxes, images or classes.
      where: all places, such as "image.jpg: box 17".
      done: what training does about it.
    """

    kind: str
    split: str
    what: str
    count: int
    where: tuple[str, ...]
    done: str

    @property
    def example(self) -> str:
        """The first places, for a line."""
        more = ", ..." if len(self.where) > _SHOWN else ""
        return ", ".join(self.where[:_SHOWN]) + more

    def __str__(self) -> str:
        where = f" ({self.example})" if self.where else ""
        return f"{self.split}: {self.count:,} {self.what}{where}: {self.done}"


def of_places(kind: str, split: str, what: str, places: Iterable[Any], done: str) -> list[Problem]:
    """One problem that counts its places; none where there are none."""
    where = tuple(map(str, places))
    return [Problem(kind, split, what, len(where), where, done)] if where else []
