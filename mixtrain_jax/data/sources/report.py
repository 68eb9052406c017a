"""What was found in a data set at start-up: counts, and everything left out, changed or doubtful.

Readers and checks add findings to `Findings`; `Report` is what commands show.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

LEFT_OUT, MENDED, WARNING, NOTE = "not trained on", "mended", "warning", "note"
SHOWN = 5  # examples in a line


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was found, with everything it was found in.

    Attributes:
      kind: LEFT_OUT (boxes or images that are not trained on), MENDED (read otherwise than it
        stands in the files), WARNING (looks wrong) or NOTE.
      count: of boxes, images or files.
      text: completes "COUNT ...".
      of: what the examples are, such as "annotation ids".
      examples: where; all of them where they are boxes or images.
    """

    kind: str
    count: int
    text: str
    of: str = ""
    examples: tuple[Any, ...] = ()

    def __str__(self) -> str:
        where = f" ({self.of} {some(self.examples)})".replace("( ", "(") if self.examples else ""
        return f"{self.kind}: {self.count} {self.text}{where}"


class Findings(list[Finding]):
    """Findings in the order in which they were made."""

    def add(
        self, kind: str, examples: Iterable[Any], text: str, of: str = "annotation ids"
    ) -> None:
        """Adds a finding that counts its examples, unless there are none."""
        listed = tuple(examples.tolist() if isinstance(examples, np.ndarray) else examples)
        if listed:
            self.append(Finding(kind, len(listed), text, of, listed))


@dataclasses.dataclass(frozen=True)
class Report:
    """The start-up report of one split.

    Attributes:
      name: of the split.
      source: where it came from.
      images: how many.
      empty: images without a box to train on.
      categories: {'id', 'name'} of each label.
      boxes: to train on, of each label.
      findings: what was left out, changed or is doubtful, and why.
    """

    name: str
    source: str
    images: int
    empty: int
    categories: Sequence[dict[str, Any]]
    boxes: Sequence[int]
    findings: Sequence[Finding] = ()

    @property
    def left_out(self) -> dict[str, int]:
        """How many boxes and images are not trained on, by reason."""
        return {each.text: each.count for each in self.findings if each.kind == LEFT_OUT}

    @property
    def text(self) -> str:
        """The report as lines for people."""
        lines = [
            f"{self.name}: {self.images} images, {sum(self.boxes)} boxes, "
            f"{len(self.categories)} classes ({self.source})",
            "  classes as label=id name (boxes): "
            + ", ".join(
                f"{label}={category['id']} {category['name']} ({count})"
                for label, (category, count) in enumerate(
                    zip(self.categories, self.boxes, strict=True)
                )
            ),
        ]
        if self.empty:
            lines.append(f"  {self.empty} images without boxes")
        return "\n".join(lines + [f"  {finding}" for finding in self.findings])


def some(values: Iterable[Any]) -> str:
    """The first few, for a message that stays one short line."""
    listed = [" ".join(str(value).split())[:80] for value in values]
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
