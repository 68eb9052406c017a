"""The files between an audit and its decisions.

`audit.json` holds what was found, `decisions.json` what a person made of it on the audit page:

    {"version": 1, "fingerprint": "...", "decisions": {"17": "accept", "4": "reject"}}

The keys are the findings' ids, and the fingerprint is that of the audit they were made on.
`audit.json` is

    version       1
    fingerprint   changes with any finding; decisions repeat it
    data          {"annotations": file, "images": count, "human_boxes": count, "unreadable": number
                  of images that were not audited, "labels": digest of images, boxes and classes}
    model         {"source": checkpoint, "level": what the ranking knew, "seen": "out of fold",
                  "by its first weights", "in sample" or "unknown", "doubt": why it should not be
                  believed, or ""}
    categories    [{"id", "name"}] in label order
    threshold     findings from this score on are in `corrected.json`
    applied       how many of those are: of two boxes that double each other one stays
    left_out      number of findings below the lowest score written here
    shares        estimated share of each outcome, as in `ranking.Ranking`
    summary       rows as `summarise` returns them
    findings      by falling score: {"id": int, "image_id", "file_name", "size": [height, width],
                  "kind": "class" | "place" | "missing" | "spurious" | "duplicate",
                  "score": in [0, 1],
                  "human": {"index", "annotation_id", "category_id", "bbox"} or null,
                  "proposed": {"category_id", "bbox"} or null where the human box should go}

with bbox = [x, y, width, height] in pixels of the original image. Ids are those of the labels, and
can be text. `index` is the row of the human box among those that were audited; `annotation_id` is
null where the data has no such ids.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixtrain_jax.auditing.corrections import THRESHOLD, apply, from_bbox, summarise, to_bbox
from mixtrain_jax.auditing.findings import KINDS, Findings
from mixtrain_jax.auditing.labels import Bools, Ints, Labels
from mixtrain_jax.auditing.ranking import Ranking
from mixtrain_jax.errors import UserError

VERSION = 1
SAME = 0.02  # pixels: boxes are written to hundredths
LOWEST = 0.05  # findings below it are not written to audit.json


def to_json(
    ranking: Ranking,
    human: Labels,
    *,
    image_ids: Sequence[Any],
    file_names: Sequence[str],
    sizes: Ints,
    categories: Sequence[dict[str, Any]],
    annotation_ids: Sequence[int | None] | None = None,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    threshold: float = THRESHOLD,
    lowest: float = LOWEST,
) -> dict[str, Any]:
    """Returns the contents of audit.json, described at the top of this file.

    Args:
      ranking: what `ranking.rank` returned.
      human: the labels that were audited.
      image_ids, file_names: of the I images.
      sizes: [I, 2] height and width in pixels.
      categories: {"id", "name"} of each label.
      annotation_ids: of each human box, where there are such.
      data, model: entries for "data" and "model".
      threshold: findings from it on are applied.
      lowest: findings below it, and below the threshold, are counted and left out.
    """
    found = ranking.findings
    entries: list[dict[str, Any]] = []
    for row in np.flatnonzero(found.score >= min(lowest, threshold)).tolist():
        image, box = int(found.image[row]), int(found.human[row])
        kind = KINDS[found.kind[row]]
        stays = kind not in ("spurious", "duplicate")
        mine = None
        if box >= 0:
            mine = {
                "index": box,
                "annotation_id": None if annotation_ids is None else annotation_ids[box],
                "category_id": categories[human.labels[box]]["id"],
                "bbox": to_bbox(human.boxes[box]),
            }
        proposed = {
            "category_id": categories[found.labels[row]]["id"],
            "bbox": to_bbox(found.boxes[row]),
        }
        entries.append(
            {
                "id": len(entries),
                "image_id": image_ids[image],
                "file_name": file_names[image],
                "size": [int(side) for side in sizes[image]],
                "kind": kind,
                "score": round(float(found.score[row]), 4),
                "human": mine,
                "proposed": proposed if stays else None,
            }
        )
    names = [category["name"] for category in categories]
    counts = {
        "images": len(image_ids),
        "human_boxes": len(human),
        "labels": labels_digest(human, file_names, categories),
    }
    chosen = found.score >= threshold
    return {
        "version": VERSION,
        "fingerprint": fingerprint(entries),
        "data": (data or {}) | counts,
        "model": (model or {}) | {"level": ranking.level},
        "categories": [{"id": c["id"], "name": c["name"]} for c in categories],
        "threshold": threshold,
        "applied": int(chosen.sum()) - len(apply(human, found, chosen).spared),
        "left_out": len(found) - len(entries),
        "shares": {name: round(share, 5) for name, share in ranking.shares.items()},
        "summary": summarise(human, found, names),
        "findings": entries,
    }


def from_json(
    audit: dict[str, Any],
    where: str,
    human: Labels,
    image_ids: Sequence[Any],
    file_names: Sequence[str],
    categories: Sequence[dict[str, Any]],
) -> Findings:
    """Reads the findings of an audit.json back, by their ids.

    Args:
      audit: the file's contents.
      where: its name, for messages.
      human: the labels that were audited.
      image_ids, file_names: of the images.
      categories: {"id", "name"} of each label.

    Raises:
      UserError: it is no audit, of another version, or of other labels: an image, a box or a class
        is not where it was.
    """
    if not isinstance(audit, dict) or audit.get("version") != VERSION:
        raise UserError(f"{where}: not an audit.json of version {VERSION}; run the audit again")
    try:
        entries = audit["findings"]
        if fingerprint(entries) != audit["fingerprint"]:
            raise UserError(f"{where}: was edited by hand; run the audit again")
        if audit["data"]["human_boxes"] != len(human):
            raise UserError(
                f"{where}: was made of {audit['data']['human_boxes']} human boxes, the labels have "
                f"{len(human)}; name the annotations that were audited"
            )
        rows = {image_id: row for row, image_id in enumerate(image_ids)}
        labels = {category["id"]: n for n, category in enumerate(audit["categories"])}
        target = [entry["proposed"] or entry["human"] for entry in entries]
        index = [entry["human"]["index"] if entry["human"] else -1 for entry in entries]
        people = [entry["human"] for entry in entries if entry["human"]]
        boxes = from_bbox([one["bbox"] for one in people])
        classes = np.array([labels[one["category_id"]] for one in people], np.int32)
        found = Findings(
            image=np.array([rows[entry["image_id"]] for entry in entries], np.int32),
            kind=np.array([KINDS.index(entry["kind"]) for entry in entries], np.int8),
            score=np.array([entry["score"] for entry in entries], np.float32),
            human=np.array(index, np.int32),
            detection=np.full(len(entries), -1, np.int32),
            boxes=from_bbox([one["bbox"] for one in target]),
            labels=np.array([labels[one["category_id"]] for one in target], np.int32),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: not a complete audit.json ({type(error).__name__}: {error}); run the audit "
            "again"
        ) from error
    mine = found.human >= 0
    rows_of = found.human[mine]
    digest = labels_digest(human, file_names, categories)
    same = (
        audit["data"].get("labels", digest) == digest  # older ones have none
        and all(file_names[rows[entry["image_id"]]] == entry["file_name"] for entry in entries)
        and audit["categories"] == [{"id": c["id"], "name": c["name"]} for c in categories]
        and np.all(rows_of < len(human))
        and np.array_equal(human.image[rows_of], found.image[mine])
        and np.array_equal(human.labels[rows_of], classes)
        and np.allclose(human.boxes[rows_of], boxes, rtol=0, atol=SAME)
    )
    if not same:
        raise UserError(
            f"{where}: is about other labels, or they changed since; name the annotations that "
            "were audited, or run the audit again"
        )
    return found


def read_decisions(decisions: Any, where: str, audit: dict[str, Any]) -> Bools:
    """Returns [F] bool, which findings of an audit a person accepted.

    Args:
      decisions: the contents of decisions.json.
      where: its name, for messages.
      audit: the contents of audit.json.

    Raises:
      UserError: they are no decisions, or were made on another audit.
    """
    made = decisions.get("decisions") if isinstance(decisions, dict) else None
    if not isinstance(made, dict) or decisions.get("version") != VERSION:
        raise UserError(
            f'{where}: expected {{"version": {VERSION}, "fingerprint": ..., "decisions": {{id: '
            f'"accept" or "reject"}}}}; export it from the audit page'
        )
    if decisions.get("fingerprint") != audit["fingerprint"]:
        raise UserError(
            f"{where}: was made on another audit (fingerprint {decisions.get('fingerprint')}, this "
            f"one has {audit['fingerprint']}); export it again from this audit's page"
        )
    accepted = np.zeros(len(audit["findings"]), bool)
    for key, word in made.items():
        if not (key.isdecimal() and int(key) < len(accepted)):
            raise UserError(f"{where}: finding {key!r} is not in the audit")
        if word not in ("accept", "reject"):
            raise UserError(f"{where}: finding {key} is {word!r}, expected 'accept' or 'reject'")
        accepted[int(key)] = word == "accept"
    return accepted


def labels_digest(
    human: Labels, file_names: Sequence[str], categories: Sequence[dict[str, Any]]
) -> str:
    """Returns twelve hexadecimal digits that change with any image, box or class."""
    text = json.dumps([list(file_names), [str(category["name"]) for category in categories]])
    digest = hashlib.sha256(text.encode())
    for column in (human.image, human.labels, np.round(human.boxes.astype(np.float64), 2)):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:12]


def is_fingerprint(text: str) -> bool:
    """Whether a text looks like what `fingerprint` returns."""
    return re.fullmatch("[0-9a-f]{12}", text) is not None


def fingerprint(entries: Sequence[dict[str, Any]]) -> str:
    """Returns twelve hexadecimal digits that change with any finding."""
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
