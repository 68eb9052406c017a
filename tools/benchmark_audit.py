"""Compares the label audit with other ways to rank label errors, on dumps of detections.

python tools/benchmark_audit.py DUMP.npz [DUMP.npz ...] [--output=audit.json]
python tools/benchmark_audit.py --fit DUMP.npz [...] --output=mixtrain_jax/auditing/calibration.json

A dump (mixtrain_jax/auditing/dump.py) holds human labels, better labels, and what a detector says.
`python -m mixtrain_jax.audit --dump` writes one without better labels; --truth=COCO.json adds them.
Every arm ranks errors of the same detections; an arm that has further looks is also compared with
the baselines on the detections of all looks merged. cleanlab is optional (pip install cleanlab).
"""

import argparse
import dataclasses
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from mixtrain_jax.auditing import (
    calibrate,
    corrections,
    dump,
    findings,
    labels,
    measure,
    merging,
    ranking,
)
from mixtrain_jax.auditing.dump import Dump, Look
from mixtrain_jax.auditing.findings import CLASS, KINDS, MISSING, PLACE, SPURIOUS, Findings
from mixtrain_jax.auditing.labels import Detections, Floats, Ints, rows_by_image
from mixtrain_jax.auditing.measure import Errors, Verdicts
from mixtrain_jax.auditing.noise import Planted
from mixtrain_jax.data.sources import text_files
from mixtrain_jax.data.sources.dataset import names_apart
from mixtrain_jax.errors import BAD_INPUT, UserError
from mixtrain_jax.ops.numpy_boxes import iou
from mixtrain_jax.runtime import storage


def kind_precision(kind: int) -> Callable[[Verdicts], float]:
    """Returns the average precision of the findings of one kind as a function of verdicts."""
    return lambda v: measure.average_precision(v.right[v.kind == kind], v.errors((kind,)))


THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.95)  # ObjectLab's, to choose from
METRICS: dict[str, Callable[[Verdicts], float]] = {
    "AP": lambda v: measure.average_precision(v.right, v.errors()),
    "AP any kind": lambda v: measure.average_precision(v.names != measure.RIGHT, v.errors()),
    **{f"AP {KINDS[kind]}": kind_precision(kind) for kind in (CLASS, PLACE, MISSING, SPURIOUS)},
    "AUROC": lambda v: measure.auroc(v.score, v.right, v.errors() - int(v.right.sum())),
    "P@errors": lambda v: measure.precision_at(v.right, v.errors()),
    "P@200": lambda v: measure.precision_at(v.right, 200),
    "R@P.8": lambda v: measure.recall_at_precision(v.right, v.errors()),
    "image AUROC": measure.image_auroc,
}


def with_truth(data: Dump, path: str) -> Dump:
    """Returns the dump with better labels of its images, from a COCO file with its classes."""
    content = text_files.read_json(path, "file of better labels")
    table, _, category_ids = labels.from_coco(content, path)
    listed = [c | {"name": text_files.one_line(str(c["name"]))} for c in content["categories"]]
    names = {c["id"]: name for c, name in zip(listed, names_apart(listed), strict=True)}
    if [names[number] for number in category_ids] != data.class_names:
        raise UserError(
            f"{path}: its categories are {list(names.values())}, not {data.class_names}"
        )
    places = {int(number): row for row, number in enumerate(data.image_ids)}
    rows = np.array([places.get(entry["id"], -1) for entry in content["images"]])
    if not (rows >= 0).any():
        raise UserError(f"{path}: none of its images, by their ids, is in the dump")
    table = table.take(rows[table.image] >= 0)
    table = dataclasses.replace(table, image=rows[table.image].astype(np.int32))
    return dataclasses.replace(
        data,
        truth=table.take(np.argsort(table.image, kind="stable")),
        truth_known=np.isin(np.arange(len(data.sizes)), rows),
    )


def errors_of(data: Dump, fold: int | None = None) -> Errors:
    """Returns what is known to be wrong with a dump's human labels: planted or real errors.

    Args:
      data: the dump.
      fold: only of the images that this fold's detector looked at; None: of all.
    """
    if data.truth is None:
        raise UserError(f"{data.note or 'the dump'}: has no truth to compare with")
    if data.source is None:
        errors = measure.real(data.human, data.truth, data.truth_known)
    else:
        errors = measure.planted(Planted(data.human, data.source), data.truth, len(data.sizes))
    if fold is None:
        return errors
    if data.fold is None or fold not in data.fold:
        raise UserError(f"--fold={fold}: {data.note or 'the dump'} has no such fold")
    here = errors.images & (data.fold == fold)
    missing = errors.missing.take(here[errors.missing.image])
    return dataclasses.replace(errors, images=here, missing=missing)


def ours(data: Dump, level: str, models: Any = None) -> Findings:
    """Returns the audit's findings with the knowledge of a level."""
    look, views = data.look, list(data.views.values()) if level == "views" else []
    if level == "detections":
        look = Look(look.detections)
    return ranking.rank(data.human, look, views, len(data.sizes), models).findings


def baseline(data: Dump, found: Detections, kind: Ints, human: Floats, missing: Floats) -> Findings:
    """Makes findings of scores: `human` and `kind` of every human box, `missing` of detections."""
    count = len(data.human)
    order = np.argsort(-np.concatenate([human, missing]), kind="stable")
    rows = np.arange(len(found))
    table = Findings(
        image=np.concatenate([data.human.image, found.image]),
        kind=np.concatenate([kind, np.full(len(found), MISSING)]).astype(np.int8),
        score=np.concatenate([human, missing]).astype(np.float32),
        human=np.concatenate([np.arange(count), np.full(len(found), -1)]),
        detection=np.concatenate([np.full(count, -1), rows]),
        boxes=np.concatenate([data.human.boxes, found.boxes]),
        labels=np.concatenate([data.human.labels, found.labels]),
    )
    return table.take(order)


def shown(data: Dump, found: Detections) -> tuple[Any, Floats]:
    """Returns the evidence about human boxes, and the best IoU of each detection with any box."""
    images = len(data.sizes)
    evidence = findings.human_evidence(data.human, merging.merge([Look(found)], images), images)
    touching = np.zeros(len(found))
    humans = rows_by_image(data.human.image, images)
    for people, seen in zip(humans, rows_by_image(found.image, images)):
        if len(seen):
            table = iou(found.boxes[seen], data.human.boxes[people])
            touching[seen] = table.max(axis=1, initial=0)
    return evidence, touching


def random(data: Dump, found: Detections) -> Findings:
    """Every candidate in random order, of a random kind that its matching allows."""
    rng = np.random.default_rng(0)
    kind = rng.choice([CLASS, PLACE, SPURIOUS], len(data.human))
    _, touching = shown(data, found)
    missing = np.where(touching < measure.SAME_IOU, rng.random(len(found)), -1)
    return baseline(data, found, kind, rng.random(len(data.human)), missing)


def detection_score(data: Dump, found: Detections) -> Findings:
    """What contradicts a detection, by its score; what no detection supports, by 1 - that score."""
    e, touching = shown(data, found)
    other = (e.match >= 0) & (e.agrees == 0)
    kind = np.where(other, CLASS, np.where(e.match >= 0, PLACE, SPURIOUS))
    human = np.where(other, e.match_score, np.where(e.match >= 0, e.match_score, 1.0))
    human = np.where(kind == PLACE, human * (1 - e.match_iou), human)
    missing = np.where(touching < measure.SAME_IOU, found.scores, -1)
    return baseline(data, found, kind, human, missing)


def ultralytics(data: Dump, found: Detections) -> Findings:
    """Ultralytics' three formulas of an image, taken for each box.

    possible_fp is score x (1 - largest IoU with a label), possible_fn is 1 - largest IoU x score of
    the class, confusion is the largest IoU x score of another class.
    """
    e, touching = shown(data, found)
    unsupported = 1 - e.support
    close = (e.match >= 0) & (e.agrees > 0)
    kind = np.where(e.rival > e.support, CLASS, np.where(close, PLACE, SPURIOUS))
    human = np.where(kind == CLASS, np.maximum(e.rival, unsupported), unsupported)
    return baseline(data, found, kind, human, found.scores * (1 - touching))


def objectlab(data: Dump, found: Detections, threshold: float | None = None) -> Findings | None:
    """ObjectLab of cleanlab; None where it is not installed.

    Its three scores are good where high; a box it says nothing about is good.
    """
    try:
        from cleanlab.object_detection import rank
    except ImportError:
        return None
    images, classes = len(data.sizes), len(data.class_names)
    people, seen = (rows_by_image(table.image, images) for table in (data.human, found))
    labels = [
        {"bboxes": data.human.boxes[rows], "labels": data.human.labels[rows]} for rows in people
    ]
    predictions, order = [], []
    for rows in seen:
        entry = np.empty(classes, object)
        for label in range(classes):
            mine = rows[found.labels[rows] == label]
            entry[label] = np.column_stack([found.boxes[mine], found.scores[mine]])
            order.append(mine)
        predictions.append(entry)
    options = {} if threshold is None else {"high_probability_threshold": threshold}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {"labels": labels, "predictions": predictions}
        overlooked = rank.compute_overlooked_box_scores(**arguments, **options)
        badloc = rank.compute_badloc_box_scores(**arguments)
        swap = rank.compute_swap_box_scores(**arguments, **options)

    def flat(parts: Any) -> Floats:
        joined = np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])
        return 1 - np.where(np.isfinite(joined), joined, 1)

    rows = np.concatenate(people)
    place, other = np.zeros(len(rows)), np.zeros(len(rows))
    place[rows], other[rows] = flat(badloc), flat(swap)
    missing = np.zeros(len(found))
    missing[np.concatenate(order)] = flat(overlooked)
    return baseline(
        data, found, np.where(other > place, CLASS, PLACE), np.maximum(place, other), missing
    )


def tuned(data: Dump, found: Detections) -> Findings | None:
    """ObjectLab with the threshold of each fold that is best on the other one, told the truth."""
    if data.fold is None or len(np.unique(data.fold)) < 2:
        return None
    errors, options = errors_of(data), []
    for threshold in THRESHOLDS:
        made = objectlab(data, found, threshold)
        if made is None:
            return None
        options.append(made)
    parts = []
    for fold in np.unique(data.fold):
        elsewhere = dataclasses.replace(errors, images=errors.images & (data.fold != fold))
        best = max(options, key=lambda made: METRICS["AP"](measure.judge(made, elsewhere)))
        parts.append(best.take(data.fold[best.image] == fold))
    joined = Findings(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Findings)
        )
    )
    return joined.take(np.argsort(-joined.score, kind="stable"))


def repair(data: Dump, found: Findings) -> str:
    """Returns how the labels agree with the truth before and after all findings above 0.5."""
    assert data.truth is not None
    after = corrections.apply(data.human, found, found.score >= corrections.THRESHOLD).labels
    known = errors_of(data).images
    numbers = [
        f"F1 at IoU {at}: {measure.agreement(data.human, data.truth, known, at):.3f} -> "
        f"{measure.agreement(after, data.truth, known, at):.3f}"
        for at in (0.5, 0.75)
    ]
    return f"labels against the truth, before and after repair: {'; '.join(numbers)}"


def arms(data: Dump, models: Any) -> dict[str, Findings]:
    """Returns the findings of every arm that the dump can feed."""
    plain = data.look.detections
    rankers: dict[str, Callable[[Dump, Detections], Findings | None]] = {
        "random": random,
        "detection score": detection_score,
        "Ultralytics' formulas": ultralytics,
        "ObjectLab": objectlab,
        "ObjectLab, tuned": tuned,
    }
    results = {name: ranker(data, plain) for name, ranker in rankers.items()}
    if data.views:
        whole = merging.merge([data.look, *data.views.values()], len(data.sizes)).look.detections
        results |= {
            f"{name}, all looks": ranker(data, whole)
            for name, ranker in rankers.items()
            if name != "random"
        }
    results["ours, detections only"] = ours(data, "detections", models)
    if data.look.probabilities is not None:
        results["ours, with ratings"] = ours(data, "ratings", models)
        if data.views:
            results["ours, complete"] = ours(data, "views", models)
    return {name: found for name, found in results.items() if found is not None}


def score(found: Findings, errors: Errors, rounds: int) -> dict[str, Any]:
    """Returns the metrics of one arm; {"AP": ..., "AP interval": [low, high], ...}."""
    verdicts = measure.judge(found, errors)
    numbers: dict[str, Any] = {name: metric(verdicts) for name, metric in METRICS.items()}
    images = len(errors.images)
    numbers["AP interval"] = measure.bootstrap(verdicts, METRICS["AP"], images, rounds)
    listed = verdicts.score >= 0.05
    numbers["ECE"] = measure.calibration_error(verdicts.score, verdicts.right)
    numbers["ECE listed"] = measure.calibration_error(
        verdicts.score[listed], verdicts.right[listed]
    )
    numbers["P@k missing"] = {
        k: measure.precision_at(verdicts.right[verdicts.kind == MISSING], k)
        for k in (100, 200, 400, 800)
    }
    numbers["reliability"] = measure.reliability(verdicts.score[listed], verdicts.right[listed])
    numbers["errors"] = verdicts.errors()
    return numbers


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the arms' metrics as a Markdown table."""
    columns = [*METRICS, "ECE", "ECE listed"]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, numbers in results.items():
        low, high = numbers["AP interval"]
        cells = [f"{numbers[column]:.3f}" for column in columns]
        cells[0] += f" ({low:.3f} to {high:.3f})"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(flags: argparse.Namespace) -> None:
    """Compares, or fits, as the flags say."""
    if flags.fit and not flags.output:
        raise UserError("--fit writes a calibration: say where with --output=FILE")
    dumps = {path: dump.read(path) for path in flags.dumps}
    if flags.truth:
        dumps = {path: with_truth(data, flags.truth) for path, data in dumps.items()}
    if flags.fit:
        examples = [
            calibrate.Example(d.human, d.look, list(d.views.values()), errors_of(d, flags.fold))
            for d in dumps.values()
        ]
        models = calibrate.to_json(calibrate.learn(examples), flags.note)
        storage.write_json(flags.output, models)
        return
    ranker = None
    if flags.calibration:
        ranker = ranking.read(flags.calibration)
    report = {}
    for path, data in dumps.items():
        errors = errors_of(data, flags.fold)
        found = arms(data, ranker)
        report[path] = {name: score(one, errors, flags.rounds) for name, one in found.items()}
        count = {k: int((errors.kinds == n).sum()) for n, k in enumerate(KINDS) if n != MISSING}
        count["missing"] = len(errors.missing)
        judged = errors.images[data.human.image].sum()
        where = f"in {errors.images.sum()} of {len(errors.images)} images, which have a truth"
        print(f"\n{path}: {judged} human boxes {where}, errors {count}; {data.note}\n")
        print(table(report[path]))
        print(f"\n{list(found)[-1]}: {repair(data, found[list(found)[-1]])}")
    if flags.output:
        storage.write_json(flags.output, report, indent=1)


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dumps", nargs="+", help="dumps with known errors")
    parser.add_argument("--truth", help="COCO file of better labels, for dumps without them")
    parser.add_argument("--fit", action="store_true", help="fit the ranking instead of comparing")
    parser.add_argument("--note", default="", help="with --fit: what it was fitted on")
    parser.add_argument("--calibration", help="models to use instead of the package's")
    parser.add_argument(
        "--fold", type=int, help="fit on, or measure on, the images of one fold's detector alone"
    )
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=300, help="draws of the bootstrap")
    return parser


if __name__ == "__main__":
    try:
        main(parse().parse_args())
    except UserError as problem:
        print(problem, file=sys.stderr)
        sys.exit(BAD_INPUT)
