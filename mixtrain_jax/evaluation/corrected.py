"""Corrected labels, written as the labels came.

COCO's file is read once more and only what was corrected is changed in it: masks, key points,
licences, further images and ids stay as they are. VOC's and YOLO's labels are written anew, those
of all images. The labels themselves are never written over.
"""

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from mixtrain_jax.auditing import corrections, files, labels
from mixtrain_jax.auditing.corrections import Corrected, from_bbox
from mixtrain_jax.auditing.findings import Findings
from mixtrain_jax.auditing.labels import Ints
from mixtrain_jax.config import load
from mixtrain_jax.data.sources import coco_values, text_files, writers
from mixtrain_jax.data.sources.annotations import Annotations
from mixtrain_jax.data.sources.dataset import Dataset, with_boxes_of
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import parallel, storage

# What a folder of labels holds besides images.
LABELS = {"voc": ("Annotations", "ImageSets", "classes.txt"), "yolo": ("labels", "data.yaml")}
MARK = ".audited"  # in a folder of labels: an audit wrote them, and may write them anew
SAME = 0.01  # pixels by which a box of the file and what was read of it may differ


class Original(NamedTuple):
    """Labels as they came; what `config.data.val_share` sets apart is among them.

    Attributes:
      content: COCO's lists: those of the file, or made of labels that came otherwise.
      table: the same images, for formats with a file an image; None where COCO's file was read.
      places: [H] of each audited box among the annotations of `content`.
      image_ids: of each row of the data set, as `content` has them.
      category_ids: of each label, likewise.
    """

    content: dict[str, Any]
    table: Annotations | None
    places: Ints
    image_ids: Sequence[Any]
    category_ids: Sequence[Any]


def original(dataset: Dataset, data: Any, split: str) -> Original:
    """Reads labels as they came.

    Args:
      dataset: the split that was audited.
      data: `config.data`.
      split: "train" or "val".
    """
    truth = dataset.ground_truth
    human, rows, category_ids = labels.from_coco(truth, dataset.name)
    ids = [truth["annotations"][row]["id"] for row in rows]
    if data.source == "coco":
        table = dataset.annotations
        path = (data.train if data.val_share > 0 else data[split]).annotations
        content = text_files.read_json(path)
        places = _places(content, ids, human.boxes)
        if places is not None:
            image_ids = table.original_ids or table.image_ids.tolist()
            return Original(
                content, None, places, image_ids, table.original_categories or category_ids
            )
        logging.warning(
            "%s: its boxes have no ids of their own, or were read otherwise than they stand there; "
            "corrected labels have images, boxes and classes, and nothing else of it",
            path,
        )
    whole = dataset
    if data.val_share > 0:
        whole = load_dataset(load.override_all(data, {"val_share": "0"}), "train")
    content = whole.ground_truth
    places = _places(content, ids, human.boxes)
    if places is None:
        raise UserError(f"{dataset.name}: the labels changed while they were audited")
    return Original(content, whole.annotations, places, dataset.image_ids.tolist(), category_ids)


def _places(content: dict[str, Any], ids: Sequence[Any], boxes: Any) -> Ints | None:
    """Where boxes with these ids stand in COCO's annotations; None if not all do, as they are."""
    entries = content["annotations"]
    place_of = {str(entry.get("id")): place for place, entry in enumerate(entries)}
    if len(place_of) < len(entries) or not all(str(key) in place_of for key in ids):
        return None
    places = np.array([place_of[str(key)] for key in ids], np.int64)
    given = [coco_values.four(entries[place].get("bbox")) for place in places]
    boxed = np.array([each is not None for each in given], bool)  # the others have an outline alone
    there = from_bbox([each for each in given if each is not None])
    return places if np.allclose(there, boxes[boxed], rtol=0, atol=SAME) else None


def write_labels(
    first: Original,
    source: str,
    name: str,
    corrected: Corrected,
    found: Findings,
    path: epath.Path,
) -> None:
    """Writes corrected labels as a COCO file; those of VOC and YOLO as they came, too.

    The folder beside the file, of the same name without its suffix, then has the labels of every
    image in the source's own format: labels that are in it are replaced, images stay. YOLO's labels
    are found by their images' places, so links to these are put there.

    Args:
      first: the labels as they came.
      source: `config.data.source`.
      name: of the split.
      corrected: what `corrections.apply` returned.
      found: the findings it was given.
      path: the file.
    """
    content = corrections.correct_coco(
        first.content, first.places, first.image_ids, first.category_ids, corrected, found
    )
    storage.write(path, json.dumps(content).encode())
    if source in ("voc", "yolo") and first.table is not None:
        folder = path.with_suffix("")
        for label in LABELS[source]:
            if storage.is_directory(folder / label):
                storage.delete_directory(folder / label)
            elif storage.exists(folder / label):
                (folder / label).unlink()
        table = with_boxes_of(first.table, content)
        storage.write(folder / MARK, b"")
        try:
            lost = writers.WRITERS[source](table, folder, name, "none")
        except UserError as problem:  # what was found is not lost for it
            logging.warning("%s; corrected labels are in %s alone", problem, path)
            return
        if source == "yolo":
            _link_images(table, folder / "images" / name)
        for finding in lost:
            logging.warning("%s: %s", folder, finding)


def _link_images(table: Annotations, folder: epath.Path) -> None:
    """Links the images, unless something is there already; says so where they cannot be linked.

    Links of an earlier audit to images that the data no longer have are taken away.
    """
    files = dict(zip(writers.yolo_names(table), table.paths, strict=False))
    if not all(map(storage.is_local, (folder, *files.values()))):
        logging.warning("%s: put the images there; between buckets nothing can be linked", folder)
        return
    try:
        for file, path in files.items():
            link = os.path.join(folder, file)
            if not os.path.lexists(link):
                os.makedirs(os.path.dirname(link), exist_ok=True)
                os.symlink(os.path.abspath(path), link)
        for parent, _, names in os.walk(folder):
            for link in (os.path.join(parent, name) for name in names):
                if os.path.islink(link) and os.path.relpath(link, folder) not in files:
                    os.unlink(link)
    except OSError as problem:
        logging.warning("%s: put the images there; they cannot be linked: %s", folder, problem)


def apply_decisions(
    dataset: Dataset, data: Any, split: str, output: epath.Path, decisions: epath.Path
) -> int:
    """Writes accepted.json: the labels with just those findings applied that a person accepted.

    Args:
      dataset: the labels that were audited.
      data: `config.data`.
      split: "train" or "val".
      output: the directory of the audit.
      decisions: what the audit page exported.

    Returns:
      How many were applied: of two accepted duplicates of each other one stays.

    Raises:
      UserError: there is no such audit, or it or the decisions are of others.
    """
    made = text_files.read_json(decisions, "file of decisions")
    path = output / "audit.json"
    contents = text_files.read_json(path, "audit")
    before = output / kept_as(made.get("fingerprint") if isinstance(made, dict) else None)
    if storage.exists(before):  # another audit came after the one that was decided on
        path, contents = before, text_files.read_json(before, "audit")
    human, _, _ = labels.from_coco(dataset.ground_truth, dataset.name)
    ids, categories = dataset.given_image_ids, dataset.given_categories
    if isinstance(contents, dict) and "labels" not in contents.get("data", ()):
        ids, categories = dataset.image_ids.tolist(), dataset.categories  # an older audit's
    names = [dataset.file_name(row) for row in range(len(dataset))]
    found = files.from_json(contents, str(path), human, ids, names, categories)
    accepted = files.read_decisions(made, str(decisions), contents)
    corrected = corrections.apply(human, found, accepted)
    target = output / "accepted.json"
    keep_apart(target, data)
    first = original(dataset, data, split)
    write_labels(first, data.source, split_in_files(dataset, data), corrected, found, target)
    return int(accepted.sum()) - len(corrected.spared)


def kept_as(fingerprint: Any) -> str:
    """The name under which an audit is kept once another takes its place."""
    return f"audit-{fingerprint}.json"


def keep_former(output: epath.Path, fingerprint: str) -> None:
    """Keeps the audit that is in a directory under another name, unless it is the same.

    What a person decided on its page can then still be applied.

    Args:
      output: the directory.
      fingerprint: of the audit that takes its place.
    """
    path = output / "audit.json"
    try:
        former = json.loads(storage.read(path)).get("fingerprint")
    except (FileNotFoundError, ValueError, AttributeError):
        return
    if former != fingerprint and files.is_fingerprint(str(former)):
        storage.rename(path, kept_as(former))
        parallel.say(
            f"the audit that was in {output} is {kept_as(former)} now; decisions that were made on "
            "it can still be applied"
        )


def split_in_files(dataset: Dataset, data: Any) -> str:
    """The split that labels are of in their files: `config.data.val_share` parts one, train."""
    return "train" if data.val_share > 0 else dataset.name


def keep_apart(path: epath.Path, data: Any) -> None:
    """Raises UserError where labels would be written over that people gave.

    Args:
      path: of the corrected labels; VOC's and YOLO's go into the folder of its name besides.
      data: `config.data`.
    """
    folder = path.with_suffix("")
    file, home = _place(path), _place(folder)
    for split in ("train", "val", "test"):
        for given in (data[split].annotations, data[split].images):
            place = _place(given) if given else ""
            if place in (file, home) or place.startswith(f"{home}/"):
                raise UserError(
                    f"{path} holds the labels that are audited; choose another --output, so that "
                    "they are not written over"
                )
    for label in LABELS.get(data.source, ()):
        if storage.exists(folder / label) and not storage.exists(folder / MARK):
            raise UserError(
                f"{folder / label} is there, and no audit wrote it; choose another --output"
            )


def _place(path: epath.PathLike) -> str:
    return os.path.realpath(path) if storage.is_local(path) else os.fspath(path).rstrip("/")
