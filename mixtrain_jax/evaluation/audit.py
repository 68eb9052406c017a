"""The label audit of a run: its detectors look at the labels, and files say what may be wrong."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from mixtrain_jax.auditing import corrections, files, labels, ranking
from mixtrain_jax.auditing import dump as dumps
from mixtrain_jax.auditing.dump import Dump, Look
from mixtrain_jax.auditing.findings import Findings
from mixtrain_jax.config import load
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.sources import writers
from mixtrain_jax.data.sources.dataset import Dataset, with_boxes_of
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import detect, looks
from mixtrain_jax.runtime import checkpoint, parallel, storage

LOOKS = ("teacher", "mirrored teacher", "student")
RUNAWAY = 3.0  # missing boxes for each human one, from which the detector is doubted, not people


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
    seen: str,
    threshold: float = corrections.THRESHOLD,
    dump: bool = False,
) -> dict[str, Any]:
    """Ranks what may be wrong with the labels of a data set, and writes it down.

    Args:
      asked: the config of the detectors.
      dataset: the labels to audit; they are never written over.
      judges: detectors that look at disjoint images, at all of the data set together.
      output: directory for audit.json, corrected.json and the page.
      seen: "in sample" where the detectors were trained on these images, "out of fold" where not.
      threshold: findings from this score on are applied in corrected.json.
      dump: write looks.npz, too: all that the detectors see.

    Returns:
      The contents of audit.json.
    """
    human, places, _ = labels.from_coco(dataset.ground_truth, dataset.name)
    most = max(np.bincount(human.image, minlength=1).max(), asked.data.max_boxes)
    asked = load.override_all(asked, {"data.max_boxes": str(most)})
    config = resolve(asked, val=dataset, devices=parallel.device_count())
    seen_by = looks.with_all_boxes(dataset, human)
    rate = looks.rater(config.model, config.data, config.eval.dtype)
    by_look: dict[str, dict[int, tuple[np.ndarray, ...]]] = {name: {} for name in LOOKS}
    for judge in judges:
        for name in LOOKS:
            params, _ = checkpoint.load_weights(judge.source, name.split()[-1])
            detect.check_parameters(judge.source, params, config.model)
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
    first, *others = (_covering(by_look[name], seen_by) for name in LOOKS)
    ranked = ranking.rank(human, first, others, len(dataset))
    contents = files.to_json(
        ranked,
        human,
        image_ids=[int(number) for number in dataset.image_ids],
        file_names=[dataset.names(row) for row in range(len(dataset))],
        sizes=dataset.sizes,
        categories=dataset.categories,
        annotation_ids=[dataset.ground_truth["annotations"][place]["id"] for place in places],
        data={"annotations": dataset.name},
        model={"source": ", ".join(judge.source for judge in judges), "seen": seen},
        threshold=threshold,
    )
    doubt = too_weak(contents)
    if doubt:
        logging.warning("%s", doubt)
    storage.write_json(output / "audit.json", contents, indent=1)
    if dump:
        _write_dump(dataset, human, judges, first, others, seen, output)
    found = ranked.findings
    corrected = corrections.apply(human, found, found.score >= threshold)
    write_labels(dataset, config.data.source, corrected, found, output / "corrected.json")
    _write_page(dataset, contents, output)
    return contents


def too_weak(contents: dict[str, Any]) -> str:
    """Returns a warning if far more boxes seem to be missing than people drew, or "".

    Args:
      contents: of audit.json.
    """
    missing = next(
        entry["errors"]
        for entry in contents["summary"]
        if (entry["class"], entry["kind"]) == ("all", "missing")
    )
    human = contents["data"]["human_boxes"]
    if missing <= RUNAWAY * human:
        return ""
    return (
        f"{missing:,.0f} boxes seem to be missing where people drew {human:,}. Unless most labels "
        "are missing, this detector has learned too little to judge them: train it longer before "
        "you use corrected.json"
    )


def apply_decisions(
    dataset: Dataset, source: str, output: epath.Path, decisions: epath.Path
) -> int:
    """Writes accepted.json: the labels with just those findings applied that a person accepted.

    Args:
      dataset: the labels that were audited.
      source: `config.data.source`.
      output: the directory of the audit.
      decisions: what the audit page exported.

    Returns:
      How many were accepted.

    Raises:
      UserError: there is no such audit, or the decisions are of another one.
    """
    path = output / "audit.json"
    contents = files.read_file(path)
    human, _, _ = labels.from_coco(dataset.ground_truth, dataset.name)
    ids = [int(number) for number in dataset.image_ids]
    found = files.from_json(contents, str(path), human, ids)
    accepted = files.read_decisions(files.read_file(decisions), str(decisions), contents)
    corrected = corrections.apply(human, found, accepted)
    write_labels(dataset, source, corrected, found, output / "accepted.json")
    return int(accepted.sum())


def write_labels(
    dataset: Dataset,
    source: str,
    corrected: corrections.Corrected,
    found: Findings,
    path: epath.Path,
) -> None:
    """Writes corrected labels as a COCO file; those of VOC and YOLO as they came, too.

    The folder beside the file, of the same name without its suffix, then has the labels of every
    image in the source's own format: what is in it is replaced.

    Args:
      dataset: the labels that were audited.
      source: `config.data.source`.
      corrected: what `corrections.apply` returned.
      found: the findings it was given.
      path: the file.
    """
    truth = dataset.ground_truth
    _, places, category_ids = labels.from_coco(truth, dataset.name)
    content = corrections.correct_coco(truth, places, category_ids, corrected, found)
    storage.write(path, json.dumps(content).encode())
    if source in ("voc", "yolo"):
        folder = path.with_suffix("")
        if storage.exists(folder):
            folder.rmtree()
        table = with_boxes_of(dataset.annotations, content)
        lost = writers.WRITERS[source](table, folder, dataset.name, "none")
        for finding in lost:
            logging.warning("%s: %s", folder, finding)


def _write_dump(
    dataset: Dataset,
    human: labels.Labels,
    judges: Sequence[Judge],
    first: Look,
    others: Sequence[Look],
    seen: str,
    output: epath.Path,
) -> None:
    fold = np.full(len(dataset), -1, np.int32)
    if seen == "out of fold":
        for number, judge in enumerate(judges):
            fold[judge.rows] = number
    content = Dump(
        image_ids=dataset.image_ids.astype(np.int64),
        file_names=[dataset.names(row) for row in range(len(dataset))],
        sizes=dataset.sizes,
        class_names=[str(category["name"]) for category in dataset.categories],
        human=human,
        look=first,
        views={name.replace(" ", "_"): look for name, look in zip(LOOKS[1:], others, strict=True)},
        fold=fold,
        note=", ".join(judge.source for judge in judges),
    )
    with storage.folder(output) as folder:
        dumps.write(folder / "looks.npz", content)


def _covering(by_row: dict[int, tuple[np.ndarray, ...]], dataset: Dataset) -> Look:
    """A look at all images; those that could not be read are seen as empty, and said."""
    blind = [row for row in range(len(dataset)) if row not in by_row]
    if len(blind) == len(dataset):
        raise UserError(f"{dataset.name}: no image could be read")
    if blind:
        logging.warning("%d images could not be read and are not audited", len(blind))
    classes = len(dataset.categories) + 1
    for row in blind:
        none, boxes = np.zeros(0), dataset.boxes[row]
        by_row[row] = (
            np.zeros((0, 4)), none, none, np.full((len(boxes), classes), 1 / classes), boxes
        )  # fmt: skip
    return looks.joined(by_row, len(dataset))


def _write_page(dataset: Dataset, contents: dict[str, Any], output: epath.Path) -> None:
    try:
        from mixtrain_jax.pages import audit as page
    except ImportError:
        logging.warning("no page is written: pip install 'mixtrain_jax[pages]'")
        return
    rows = {dataset.names(row): row for row in range(len(dataset))}
    with storage.folder(output) as folder:
        page.write(folder, contents, lambda name: dataset.picture(rows[name]))
