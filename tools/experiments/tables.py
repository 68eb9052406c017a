"""The results of an experiment as lines, a table in Markdown, JSON, and a page with its curves."""

import json
import pathlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mixtrain_jax.runtime import storage

SCORES = (
    "AP",
    "AP50",
    "F1 chosen",
    "recall at precision .95",
    "F1 best",
    "F1 at .5",
    "F1 at .5 corrected",
    "calibration error",
)
CURVES = ("AP", "F1 chosen")
TUNING_SEED = 9  # on which settings are chosen; its runs have rows of their own
Result = dict[str, Any]


def line(result: Result) -> str:
    """One run in a line."""
    scores = ", ".join(f"{name} {result['student'][name]:.3f}" for name in SCORES)
    return f"{result['arm']}, seed {result['seed']}: {scores}"


def write(output: pathlib.Path, suite: str) -> None:
    """Writes results.json, results.md and, where the package for pages is there, results.html."""
    results = read(output)
    if not results:
        return
    storage.write_json(storage.absolute(str(output / "results.json")), results, indent=1)
    (output / "results.md").write_text(markdown(results) + "\n")
    try:
        from mixtrain_jax.pages import experiment
    except ImportError:
        return
    experiment.write(
        output / "results.html",
        title=suite,
        columns=SCORES,
        rows=[(name, [spread(values) for values in rows]) for name, rows in by_arm(results)],
        curves={name: curves(results, name) for name in CURVES},
        commands=[(f"{r['arm']}, seed {r['seed']}", r["command"]) for r in results],
    )


def read(output: pathlib.Path) -> list[Result]:
    """All results of a folder, in the order in which they were measured."""
    files = sorted((output / "results").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return [json.loads(file.read_text()) for file in files]


def markdown(results: Sequence[Result]) -> str:
    """A table with a row for each arm: means over seeds, and the spread where there are several.

    Below it, what the last checkpoint's teacher made of the labels.
    """
    lines = [_row(["arm", "seeds", *SCORES]), "|---" * (len(SCORES) + 2) + "|"]
    counts = _by_name(results)
    for name, rows in by_arm(results):
        lines.append(_row([name, str(len(counts[name])), *(spread(values) for values in rows)]))
    judged = [result for result in results if result.get("diagnosis")]
    if judged:
        told = dict.fromkeys(name for result in judged for name in result["diagnosis"][-1])
        names = [name for name in told if name != "step"]  # older results may lack some
        lines += ["", _row(["teacher of", "seeds", *names]), "|---" * (len(names) + 2) + "|"]
        for name, runs in _by_name(judged).items():
            last = [run["diagnosis"][-1] for run in runs]
            cells = [spread([each.get(key) for each in last]) for key in names]
            lines.append(_row([name, str(len(runs)), *cells]))
    return "\n".join(lines)


def by_arm(results: Sequence[Result]) -> list[tuple[str, list[list[float]]]]:
    """Of each arm its name and, for each of `SCORES`, the values of its seeds."""
    return [
        (name, [[run["student"][score] for run in runs] for score in SCORES])
        for name, runs in _by_name(results).items()
    ]


def curves(results: Sequence[Result], score: str) -> dict[str, Sequence[tuple[float, float]]]:
    """A line for each arm: a score over steps, mean over seeds."""
    found: dict[str, Sequence[tuple[float, float]]] = {}
    for name, runs in _by_name(results).items():
        points: dict[int, list[float]] = defaultdict(list)
        for run in runs:
            for point in run["curve"]:
                points[point["step"]].append(point[score])
        found[name] = [(float(step), statistics.fmean(points[step])) for step in sorted(points)]
    return found


def spread(values: Sequence[float | None]) -> str:
    """Mean, and sample standard deviation of several values."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):.3f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.3f}"


def _by_name(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each arm; those of the seed that chose the settings apart, after all others."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result["seed"] == TUNING_SEED):
        chosen = ", the seed that chose" if result["seed"] == TUNING_SEED else ""
        groups[result["arm"] + chosen].append(result)
    return dict(groups)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
