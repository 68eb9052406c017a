"""The audit page: a gallery of what may be wrong, to be accepted or rejected one by one."""

import itertools
import os
import pathlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from mixtrain_jax.auditing.findings import KINDS
from mixtrain_jax.pages import crops, render

FOLDER = "crops"  # in it a folder for the audit, named by its fingerprint
NOTES = {
    "in sample": "These images were used to train the model that judges them, so it has seen the "
    "errors too: findings are fewer, and scores are less sure. --folds=2 audits each image by a "
    "model that has not seen it.",
    "by its first weights": "Each image is judged by a model that was trained without it, but from "
    "weights (config.init_from) that were trained on it: findings are fewer, and scores are less "
    "sure. Weights that have not seen these images mend that.",
    "unknown": "It is not known whether the model that judges these images was trained on them.",
}


def write(
    folder: str | os.PathLike[str],
    audit: dict[str, Any],
    read: Callable[[str], Image.Image],
    title: str = "Label audit",
) -> pathlib.Path:
    """Writes audit.html and the crops it shows.

    Args:
      folder: where to; created if need be.
      audit: the contents of audit.json, see `mixtrain_jax.auditing.files`.
      read: returns the image of a file name.
      title: of the page.

    Returns:
      The page's path.
    """
    folder = pathlib.Path(folder)
    pictures = f"{FOLDER}/{audit['fingerprint']}"
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    entries, size = [], 0
    by_image = sorted(audit["findings"], key=lambda entry: str(entry["file_name"]))
    for name, group in itertools.groupby(by_image, key=lambda entry: entry["file_name"]):
        image = read(name)
        for finding in group:
            human, proposed = (_corners(finding[side]) for side in ("human", "proposed"))
            square = crops.window([box for box in (human, proposed) if box is not None])
            size += crops.crop(image, square, folder / pictures / f"{finding['id']}.jpg")
            entries.append(_entry(finding, human, proposed, square))
    entries.sort(key=lambda entry: entry["id"])
    summary = audit["summary"]  # a row a kind; two classes may have one name
    rows = [summary[start : start + len(KINDS)] for start in range(0, len(summary), len(KINDS))]
    seen = audit["model"].get("seen", "")
    return render.write(
        "audit.html",
        folder / "audit.html",
        title=title,
        audit=audit,
        kinds=KINDS,
        notes=[note for note in (audit["model"].get("doubt"), NOTES.get(seen)) if note],
        summary=[(row[0]["class"], row) for row in rows],
        bytes=size,
        folder=pictures,
        page={
            "findings": entries,
            "names": {c["id"]: c["name"] for c in audit["categories"]},
            "fingerprint": audit["fingerprint"],
            "folder": pictures,
        },
    )


def _entry(
    finding: dict[str, Any],
    human: list[float] | None,
    proposed: list[float] | None,
    square: tuple[float, float, float],
) -> dict[str, Any]:
    """Returns what the page's script needs of a finding, boxes in thousandths of the crop."""
    sides = (finding["human"], finding["proposed"])
    classes = [side["category_id"] for side in sides if side is not None]
    moves = proposed is not None and proposed != human
    return {
        "id": finding["id"],
        "kind": finding["kind"],
        "score": finding["score"],
        "file": finding["file_name"],
        "classes": list(dict.fromkeys(classes)),
        "human": None if human is None else crops.within(human, square),
        "proposed": crops.within(proposed, square) if moves and proposed else None,
    }


def _corners(side: dict[str, Any] | None) -> list[float] | None:
    if side is None:
        return None
    x, y, width, height = side["bbox"]
    return [x, y, x + width, y + height]
