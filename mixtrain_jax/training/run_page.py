"""report.html in the workdir: what metrics.jsonl and the pictures of a run say, as a page."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.runtime import storage

if TYPE_CHECKING:  # it needs what jinja2 brings, and a run does not
    from mixtrain_jax.pages.charts import Series

NAME = "report.html"
PICTURES = 4  # the newest
SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
BOXES = {name: name for name in ("human", "kept", "dropped", "replaced")} | {"missing": "found"}


def write(workdir: epath.Path, config: Any, train: Dataset) -> None:
    """Writes the page anew from what the run has logged; nothing where jinja2 is not installed.

    Args:
      workdir: of the run.
      config: the whole config, resolved.
      train: what it is trained on.
    """
    try:
        from mixtrain_jax.pages import run as page
    except ImportError:
        return
    lines = _lines(workdir)
    logged = [line for line in lines if "loss" in line]
    last = logged[-1] if logged else {}
    progress = {"step": f"{last.get('step', 0):,} of {config.steps:,}"}
    progress |= _told(last, "loss", "{:.3f}") | _told(last, "images_per_second", "{:.1f}")
    scores = _scores(lines)
    if scores and "AP" in scores[-1]:
        progress["AP"] = f"{scores[-1]['AP']:.3f}"
    with storage.folder(workdir) as folder:
        page.write(
            folder / NAME,
            title=workdir.name,
            about=f"{config.model.backbone.name} on {train.report.source}, {len(train):,} images",
            progress=progress,
            losses=_losses(logged),
            scores=scores,
            teacher=_teacher(logged),
            pictures=_pictures(workdir),
            config=str(config),
            human_boxes=len(train.boxes.values) / max(len(train), 1),
        )


def _lines(workdir: epath.Path) -> list[dict[str, Any]]:
    try:
        content = storage.read(workdir / "metrics.jsonl")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content.splitlines()]


def _told(line: Mapping[str, Any], name: str, form: str) -> dict[str, str]:
    value = line.get(name)
    return {} if value is None else {name.replace("_", " "): form.format(value)}


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    nan = float("nan")
    return [
        (line["step"], nan if line[name] is None else line[name]) for line in lines if name in line
    ]


def _losses(lines: Sequence[Mapping[str, Any]]) -> "Series":
    """The whole loss, and its parts; accuracies are no losses."""
    names = dict.fromkeys(name for line in lines for name in line)
    parts = [
        name
        for name in names
        if name.startswith(("normal/", "mixed/")) and not name.endswith("accuracy")
    ]
    return {name: _series(lines, name) for name in ("loss", *sorted(parts))}


def _scores(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """A row for each evaluation: of the student's weights where they were scored."""
    rows = []
    for line in lines:
        for which in ("student", "teacher"):
            if f"val_{which}/AP" in line:
                found = {key: line[f"val_{which}/{key}"] for key in SCORES}
                rows.append({"step": line["step"], **_known(found)})
                break
    keys = set.intersection(*(set(row) for row in rows)) if rows else set()
    return [{key: row[key] for key in row if key in keys} for row in rows]


def _known(found: Mapping[str, float]) -> dict[str, float]:
    """Without the scores that COCO gives as -1: there is no object of that size."""
    return {key: value for key, value in found.items() if value is not None and value >= 0}


def _teacher(lines: Sequence[Mapping[str, Any]]) -> dict[str, "Series"]:
    mixed = [line for line in lines if "boxes/human" in line]
    if not mixed:
        return {}
    boxes: Series = {BOXES[name]: _series(mixed, f"boxes/{name}") for name in BOXES}
    return {
        "boxes per image": boxes,
        "share of easy boxes": {"easy": _series(mixed, "teacher/easy")},
        "mean score": {
            "of pseudo boxes": _series(mixed, "teacher/score"),
            "rating of human boxes": _series(mixed, "teacher/rating"),
        },
        "distance to the student": {"distance": _series(mixed, "teacher/distance")},
    }


def _pictures(workdir: epath.Path) -> list[tuple[str, str]]:
    found = storage.list_folder(workdir / "pictures")
    names = sorted((name for name in found if name.endswith(".png")), reverse=True)
    return [
        (f"training batch of step {int(name.split('_')[-1].split('.')[0]):,}", f"pictures/{name}")
        for name in names[:PICTURES]
    ]
