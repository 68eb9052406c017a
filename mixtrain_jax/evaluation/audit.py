"""The label audit of a run: its detectors look at the labels, and files say what may be wrong."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from mixtrain_jax.auditing import calibrate, corrections, files, labels, own, ranking
from mixtrain_jax.auditing import dump as dumps
from mixtrain_jax.auditing.dump import Dump, Look
from mixtrain_jax.auditing.findings import MATCH_IOU
from mixtrain_jax.auditing.noise import Planted
from mixtrain_jax.config import load
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import corrected, detect, looks
from mixtrain_jax.evaluation.evaluate import check_categories
from mixtrain_jax.ops import numpy_boxes
from mixtrain_jax.runtime import checkpoint, parallel, storage

OWN = "own"  # a calibration by errors planted into the labels themselves
CROWD = 0.5  # share of a detection in a crowd, above which it is one of the crowd
LOOKS = ("teacher", "mirrored teacher", "student")
FOLDERS = {"train": "audit", "val": "audit_val"}  # by split, in a workdir
# From which shares of the human boxes on the detector is doubted and not people.
RUNAWAY = 3.0  # of missing boxes
MOST = 0.5  # of wrong ones


class Judge(NamedTuple):
    """A detector and the images it is to look at.

    Attributes:
      source: a workdir or checkpoint, as `checkpoint.load_weights` takes it.
      rows: [n] of the data set.
    """

    source: str
    rows: np.ndarray


def audit(
    asked: ConfigDict,
    dataset: Dataset,
    judges: Sequence[Judge],
    output: epath.Path,
    *,
    split: str,
    seen: str,
    threshold: float = corrections.THRESHOLD,
    dump: bool = False,
    calibration: str = "",
) -> dict[str, Any]:
    """Ranks what may be wrong with the labels of a data set, and writes it down.

    Images that cannot be read are not judged, nor is what lies in a crowd.

    Args:
      asked: the config of the detectors.
      dataset: the labels to audit; they are never written over.
      judges: detectors that look at disjoint images, at all of the data set together.
      output: directory for audit.json, corrected.json and the page.
      split: of the config's data that the labels are, "train" or "val".
      seen: "in sample" where the detectors were trained on these images, "out of fold" where not,
        "by its first weights" where only the weights were that they started from.
      threshold: findings from this score on are applied in corrected.json.
      dump: write looks.npz, too: all that the detectors see.
      calibration: file of the models that turn what is seen into scores; "own": those of human
        boxes are fitted to errors planted into these labels, those of missing and doubled boxes are
        the package's too, or with "own,FILE" a file's; "": the package's.

    Returns:
      The contents of audit.json.

    Raises:
      UserError: a detector is of other classes, no image can be read, the labels would be written
        over, or the calibration is none.
    """
    models = read_calibration(calibration)
    target = output / "corrected.json"
    corrected.keep_apart(target, asked.data)
    human, places, _ = labels.from_coco(dataset.ground_truth, dataset.name)
    planted = None
    if by_own(calibration):  # before anything is looked at, as there may be too few boxes
        every = np.ones(len(dataset), bool)
        planted = own.plant(human, dataset.sizes, len(dataset.categories), every)
    looked, blind = _looks(asked, dataset, judges, human)
    first, *others = looked.values()
    judged = np.flatnonzero(~np.isin(human.image, blind))
    evidence = (
        human.take(judged),
        first.of_human(judged),
        [other.of_human(judged) for other in others],
        len(dataset),
    )
    if planted:
        known = _look_at_planted(asked, dataset, judges, human, *planted)
        ranked = own.rank(*evidence, known, models)
    else:
        ranked = ranking.rank(*evidence, models)
    of_human = ranked.findings.human.copy()
    of_human[of_human >= 0] = judged[of_human[of_human >= 0]]
    found = dataclasses.replace(ranked.findings, human=of_human)
    ranked = dataclasses.replace(ranked, findings=found)
    contents = files.to_json(
        ranked,
        human,
        image_ids=dataset.given_image_ids,
        file_names=[dataset.file_name(row) for row in range(len(dataset))],
        sizes=dataset.sizes,
        categories=dataset.given_categories,
        annotation_ids=[dataset.ground_truth["annotations"][place]["id"] for place in places],
        data={"annotations": dataset.name, "unreadable": len(blind)},
        model={
            "source": ", ".join(judge.source for judge in judges),
            "seen": seen,
            "calibration": calibration or "the package's",
        },
        threshold=threshold,
    )
    doubt = contents["model"]["doubt"] = too_weak(contents)
    if doubt:
        logging.warning("%s", doubt)
    corrected.keep_former(output, contents["fingerprint"])
    storage.write_json(output / "audit.json", contents, indent=1)
    if dump:
        _write_dump(dataset, human, judges, looked, output, seen)
    applied = corrections.apply(human, found, found.score >= threshold)
    original = corrected.original(dataset, asked.data, split)
    source = asked.data.source
    name = corrected.split_in_files(dataset, asked.data)
    corrected.write_labels(original, source, name, applied, found, target)
    _write_page(dataset, contents, output)
    return contents


def by_own(calibration: str) -> bool:
    """Whether a calibration is by errors planted into the labels themselves."""
    return calibration.partition(",")[0] == OWN


def read_calibration(calibration: str) -> dict[str, Any] | None:
    """The models of the file that a calibration names; None: the package's are taken.

    Raises:
      UserError: the file is missing, or holds no such models.
    """
    path = calibration.partition(",")[2] if by_own(calibration) else calibration
    return ranking.read(path) if path else None


Seen = dict[int, tuple[np.ndarray, ...]]  # by row, as `looks.look` returns it


def _look_at_planted(
    asked: ConfigDict,
    dataset: Dataset,
    judges: Sequence[Judge],
    human: labels.Labels,
    planted: Planted,
    rows: np.ndarray,
) -> calibrate.Example:
    """What the detectors see of the errors that were planted into these images [n]."""
    part = [judge._replace(rows=np.intersect1d(judge.rows, rows)) for judge in judges]
    parallel.say(f"errors are planted into a copy of the labels of {len(rows)} images")
    looked, missed = _looks(
        asked, dataset, [judge for judge in part if len(judge.rows)], planted.labels
    )
    first, *others = looked.values()
    every = np.arange(len(dataset))
    seen = np.isin(every, rows) & ~np.isin(every, missed)
    return own.example(planted, human, seen, first, others)


def _looks(
    asked: ConfigDict, dataset: Dataset, judges: Sequence[Judge], human: labels.Labels
) -> tuple[dict[str, Look], np.ndarray]:
    """Each look at all images, as `LOOKS` names them, and rows [n] that could not be read."""
    by_look = _by_look(asked, dataset, judges, human)
    blind = _unreadable(by_look, dataset, np.concatenate([judge.rows for judge in judges]))
    return {
        name: _off_crowds(_covering(seen_by, dataset, human), dataset, human)
        for name, seen_by in by_look.items()
    }, blind


def _by_look(
    asked: ConfigDict, dataset: Dataset, judges: Sequence[Judge], human: labels.Labels
) -> dict[str, Seen]:
    """What the detectors see of the images that can be read."""
    most = max(np.bincount(human.image, minlength=1).max(), asked.data.max_boxes)
    asked = load.override_all(asked, {"data.max_boxes": str(most)})
    config = resolve(asked, val=dataset, devices=parallel.device_count())
    seen_by = looks.with_all_boxes(dataset, human)
    rate = looks.rater(config.model, config.data, config.eval.dtype)
    mirrors = asked.data.augment.flip > 0  # a detector that never saw one knows no mirror image
    names = [name for name in LOOKS if mirrors or not name.startswith("mirrored")]
    by_look: dict[str, Seen] = {name: {} for name in names}
    for judge in judges:
        for name in names:
            params, meta = checkpoint.load_weights(judge.source, name.split()[-1])
            detect.check_parameters(judge.source, params, config.model)
            check_categories(judge.source, meta, dataset)
            by_look[name] |= looks.look(
                rate,
                parallel.replicate(params),
                seen_by,
                config.data,
                config.eval.batch_size,
                mirrored=name.startswith("mirrored"),
                rows=judge.rows,
            )
            parallel.say(f"{judge.source}: {name} looked at {len(judge.rows)} images")
    return by_look


def too_weak(contents: dict[str, Any]) -> str:
    """Returns a warning if most of what people drew seems to be wrong or missing, or "".

    Args:
      contents: of audit.json.
    """
    errors = {e["kind"]: e["errors"] for e in contents["summary"] if e["class"] == "all"}
    missing, wrong = errors["missing"], sum(errors.values()) - errors["missing"]
    human = contents["data"]["human_boxes"]
    if missing > RUNAWAY * human:
        found = f"{missing:,.0f} boxes seem to be missing where people drew {human:,}"
    elif wrong > MOST * human:
        found = f"{wrong:,.0f} of the {human:,} boxes that people drew seem to be wrong"
    else:
        return ""
    return (
        f"{found}. Unless most labels are, this detector has learned too little to judge them: "
        "train it longer before you use corrected.json"
    )


def _write_dump(
    dataset: Dataset,
    human: labels.Labels,
    judges: Sequence[Judge],
    looked: dict[str, Look],
    output: epath.Path,
    seen: str,
) -> None:
    fold = np.full(len(dataset), -1, np.int32)
    if seen != "in sample":
        for number, judge in enumerate(judges):
            fold[judge.rows] = number
    content = Dump(
        image_ids=dataset.image_ids.astype(np.int64),
        file_names=[dataset.file_name(row) for row in range(len(dataset))],
        sizes=dataset.sizes,
        class_names=dataset.class_names,
        human=human,
        look=next(iter(looked.values())),
        views={name.replace(" ", "_"): look for name, look in list(looked.items())[1:]},
        fold=fold,
        note=", ".join(judge.source for judge in judges),
    )
    with storage.folder(output) as folder:
        dumps.write(folder / "looks.npz", content)


def _unreadable(by_look: dict[str, Seen], dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Those of the rows [n] of images that some look could not read; told once."""
    blind = [row for row in rows.tolist() if any(row not in s for s in by_look.values())]
    if len(blind) == len(rows):
        raise UserError(f"{dataset.name}: no image could be read")
    if blind:
        logging.warning("%d images could not be read and are not audited", len(blind))
    return np.array(sorted(blind), np.int64)


def _covering(by_row: Seen, dataset: Dataset, human: labels.Labels) -> Look:
    """A look at all images; nothing is seen in those that were not looked at or not read."""
    classes = len(dataset.categories) + 1
    for row in sorted(set(range(len(dataset))) - by_row.keys()):
        none, boxes = np.zeros(0), human.boxes[human.image == row]
        by_row[row] = (
            np.zeros((0, 4)), none, none, np.full((len(boxes), classes), 1 / classes), boxes
        )  # fmt: skip
    return looks.joined(by_row, len(dataset))


def _off_crowds(look: Look, dataset: Dataset, human: labels.Labels) -> Look:
    """The look without detections of objects in a crowd: nobody labelled those one by one.

    They lie in it by more than `CROWD` and mean no human box, which can be in a crowd as well.
    """
    found = look.detections
    keep = np.ones(len(found), bool)
    people = labels.rows_by_image(human.image, len(dataset))
    for row, seen in enumerate(labels.rows_by_image(found.image, len(dataset))):
        crowds = np.asarray(dataset.crowd[row])
        if len(seen) and len(crowds):
            boxes = found.boxes[seen]
            inside = numpy_boxes.covered(boxes, crowds).max(axis=1) > CROWD
            known = numpy_boxes.iou(boxes, human.boxes[people[row]]).max(axis=1, initial=0)
            keep[seen] = ~inside | (known >= MATCH_IOU)
    return dataclasses.replace(look, detections=found.take(keep))


def _write_page(dataset: Dataset, contents: dict[str, Any], output: epath.Path) -> None:
    try:
        from mixtrain_jax.pages import audit as page
    except ImportError:
        logging.warning("no page is written: pip install jinja2")
        return
    rows = {dataset.file_name(row): row for row in range(len(dataset))}
    former = output / page.FOLDER  # of crops, which no page shows any more
    for name in storage.list_folder(former):
        if files.is_fingerprint(name):
            storage.delete_directory(former / name)
        elif re.fullmatch(r"\d+\.jpg", name):  # as they were named once
            storage.delete(former / name)
    with storage.folder(output) as folder:
        page.write(folder, contents, lambda name: dataset.picture(rows[name]))
