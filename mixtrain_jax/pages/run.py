"""The run page: how a training goes or went, and what the teacher did."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mixtrain_jax.pages import render
from mixtrain_jax.pages.charts import Series

RUNAWAY = 3.0  # found boxes for each human box, from which the page warns
POINTS = 400  # of a line; more are thinned


def write(
    path: str | os.PathLike[str],
    *,
    title: str,
    about: str,
    progress: Mapping[str, Any],
    losses: Series,
    scores: Sequence[Mapping[str, float]],
    teacher: Mapping[str, Series],
    pictures: Sequence[tuple[str, str]],
    config: str,
    human_boxes: float | None = None,
) -> pathlib.Path:
    """Writes the page of a run; safe to call again and again while it runs.

    Args:
      path: the page's file, usually report.html in the workdir.
      title: the run's name.
      about: a line on the model and the data.
      progress: what stands on top, in order: {label: value}, values as they should read.
      losses: lines over steps, by name.
      scores: a row for each evaluation, first "step", then numbers such as "AP"; same keys in all.
      teacher: groups of lines over steps by the group's title, such as {"Easy images": {"share":
        [(step, share)]}, "Boxes an image": {"human": ..., "found": ..., "replaced": ...}}. Empty in
        plain training.
      pictures: (caption, file relative to the page), the newest first.
      config: the config as text.
      human_boxes: mean number of human boxes per image, to warn when the teacher's found boxes run
        away; found boxes are the line "found" of any group.

    Returns:
      The page's path.
    """
    keys = [key for key in (scores[0] if scores else {}) if key != "step"]
    score_lines = {key: [(row["step"], row[key]) for row in scores] for key in keys}
    return render.write(
        "run.html",
        path,
        title=title,
        about=about,
        progress=progress,
        losses=thin(losses),
        score_lines=score_lines,
        scores=scores,
        keys=keys,
        teacher={name: thin(group) for name, group in teacher.items()},
        warning=runaway(teacher, human_boxes),
        pictures=pictures,
        config=config,
    )


def runaway(teacher: Mapping[str, Series], human_boxes: float | None) -> str:
    """Returns a warning if the teacher finds far more boxes than people drew, or "".

    The mean of the last tenth of the line "found" is compared with the human boxes per image.
    """
    lines = [group["found"] for group in teacher.values() if "found" in group]
    if not (lines and lines[0] and human_boxes):
        return ""
    line = lines[0]
    last = line[-max(len(line) // 10, 1) :]
    mean = sum(value for _, value in last) / len(last)
    if mean <= RUNAWAY * human_boxes:
        return ""
    return (
        f"The teacher finds {mean:.1f} boxes per image where people drew {human_boxes:.1f}. Unless "
        "most labels are missing, pseudo boxes are running away: raise "
        "config.mixtraining.pseudo_score_threshold or lower config.mixtraining.mixed_loss_weight."
    )


def thin(series: Series) -> Series:
    """Returns lines of at most `POINTS` points: means of equal runs of points."""
    result: Series = {}
    for name, line in series.items():
        run = -(-len(line) // POINTS) or 1
        parts = [line[start : start + run] for start in range(0, len(line), run)]
        result[name] = [
            (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
            for part in parts
        ]
    return result
