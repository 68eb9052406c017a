"""Which human boxes and detections contradict each other, and what speaks for either side.

Detections and human boxes of an image are matched one to one, whatever their class. A human box can
then be wrong in its class, badly placed, spurious or a duplicate; a detection without a human box
can be a missing one. This file gathers the evidence, a few numbers in [0, 1] for each human box and
each unmatched detection; `ranking.py` turns evidence into probabilities and `choose` turns those
into findings, one kind for one box.
"""

import dataclasses
from typing import Any

import numpy as np

from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.labels import Bools, Detections, Floats, Ints, Labels, rows_by_image
from mixtrain_jax.auditing.merging import Merged
from mixtrain_jax.ops.numpy_boxes import iou, paired_iou

KINDS = ("class", "place", "missing", "spurious", "duplicate")
CLASS, PLACE, MISSING, SPURIOUS, DUPLICATE = range(len(KINDS))
MATCH_IOU = 0.2  # below it a detection and a human box do not mean the same object
ONE_PLACE = 0.7  # from it on two boxes are hardly of two objects


@dataclasses.dataclass(frozen=True)
class Findings:
    """F findings, one row each.

    Attributes:
      image: [F] int32, row of the image.
      kind: [F] int8, index into `KINDS`.
      score: [F] float32 in [0, 1], the probability that the finding is right.
      human: [F] int32, row of the human box; -1 where the finding is "missing".
      detection: [F] int32, row of the detection that speaks for it; -1 if there is none.
      boxes: [F, 4] float32, the box as it should be; the human box where only its class is wrong,
        or where it should go.
      labels: [F] int32, the class it should have; the human box's own where it should go.
    """

    image: Ints
    kind: Ints
    score: Floats
    human: Ints
    detection: Ints
    boxes: Floats
    labels: Ints

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: Any) -> "Findings":
        """Returns the given rows (indices or a mask), in their order."""
        return Findings(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class HumanEvidence:
    """What the detector says about each of H human boxes; numbers in [0, 1], float64.

    Attributes:
      match: [H] int32, the row of the matched detection; -1 without one.
      match_iou: [H] IoU with it; 0 without one.
      match_score: [H] its score; 0 without one.
      agrees: [H] 1 where it has the human class.
      support: [H] largest IoU x score of a detection of the human class.
      rival: [H] the same of any other class.
      rival_label: [H] int32, that class; -1 without one.
      crowding: [H] largest IoU with another human box of the class.
      lesser: [H] how far the support of that other box exceeds this one's; 0 without one.
      own, other, background: [H] rated probability of the human class, of the best other class, and
        of background; None without ratings.
      other_label: [H] int32, that best other class; None without ratings.
      kept: [H] IoU of the human box with its refinement; None without ratings.
      agreement, steadiness: [H] as in `merging.Merged`, of the matched detection; 0 without one.
    """

    match: Ints
    match_iou: Floats
    match_score: Floats
    agrees: Floats
    support: Floats
    rival: Floats
    rival_label: Ints
    crowding: Floats
    lesser: Floats
    agreement: Floats
    steadiness: Floats
    own: Floats | None = None
    other: Floats | None = None
    background: Floats | None = None
    other_label: Ints | None = None
    kept: Floats | None = None


@dataclasses.dataclass(frozen=True)
class MissingEvidence:
    """What speaks for each of M unmatched detections being a box people forgot.

    Attributes:
      detection: [M] int32, rows of the detections.
      score: [M] their scores.
      touching: [M] largest IoU with any human box.
      shadow: [M] largest IoU with a detection of a higher score.
      agreement: [M] share of the looks that see it; 1 for a single look.
      steadiness: [M] mean IoU with what those looks saw; 1 for a single look.
    """

    detection: Ints
    score: Floats
    touching: Floats
    shadow: Floats
    agreement: Floats
    steadiness: Floats


def match(human: Labels, detections: Detections, images: int) -> tuple[Ints, Floats]:
    """Matches detections and human boxes one to one, whatever their class.

    Pairs with IoU >= `MATCH_IOU` are taken in falling order of IoU x score. That is at least half
    of the largest sum of IoU x score over all one-to-one matchings, and nearly always all of it:
    a box in competition prefers its strongest partner, as a person would.

    Args:
      human: H human boxes.
      detections: the detector's boxes.
      images: the number of images.

    Returns:
      [H] int32 row of each human box's detection, -1 without one; [H] float64 IoU with it.
    """
    matched = np.full(len(human), -1, np.int32)
    overlap = np.zeros(len(human))
    for people, found in _images(human, detections, images):
        table = iou(human.boxes[people], detections.boxes[found])
        for i, j in greedy(table, detections.scores[found]):
            matched[people[i]], overlap[people[i]] = found[j], table[i, j]
    return matched, overlap


def greedy(table: Floats, scores: Floats) -> list[tuple[int, int]]:
    """Returns the pairs (row, column) of an IoU table [n, m], by falling IoU x score [m]."""
    weight = table * np.asarray(scores, np.float64)
    rows, columns = np.nonzero(table >= MATCH_IOU)
    order = np.argsort(-weight[rows, columns], kind="stable")
    pairs: list[tuple[int, int]] = []
    row_taken, column_taken = np.zeros(table.shape[0], bool), np.zeros(table.shape[1], bool)
    for i, j in zip(rows[order].tolist(), columns[order].tolist()):
        if not (row_taken[i] or column_taken[j]):
            row_taken[i] = column_taken[j] = True
            pairs.append((i, j))
    return pairs


def human_evidence(human: Labels, merged: Merged, images: int) -> HumanEvidence:
    """Gathers what the detector says about each human box.

    Args:
      human: H human boxes.
      merged: detections and, if there are any, ratings of the human boxes.
      images: the number of images.
    """
    found = merged.look.detections
    matched, overlap = match(human, found, images)
    there = matched >= 0
    score, agrees = np.zeros(len(human)), np.zeros(len(human))
    agreement, steadiness = np.zeros(len(human)), np.zeros(len(human))
    score[there] = found.scores[matched[there]]
    agreement[there] = merged.agreement[matched[there]]
    steadiness[there] = merged.steadiness[matched[there]]
    agrees[there] = found.labels[matched[there]] == human.labels[there]

    support, rival = np.zeros(len(human)), np.zeros(len(human))
    rival_label = np.full(len(human), -1, np.int32)
    crowding, lesser = np.zeros(len(human)), np.zeros(len(human))
    for people, seen in _images(human, found, images):
        boxes, labels = human.boxes[people], human.labels[people]
        if len(seen):
            weight = iou(boxes, found.boxes[seen]) * found.scores[seen]
            same = labels[:, None] == found.labels[seen]
            support[people] = np.where(same, weight, 0).max(axis=1)
            against = np.where(same, 0, weight)
            best = against.argmax(axis=1)
            rival[people] = against.max(axis=1)
            rival_label[people] = np.where(rival[people] > 0, found.labels[seen][best], -1)
        table = iou(boxes, boxes) * (labels[:, None] == labels)
        np.fill_diagonal(table, 0)
        nearest = table.argmax(axis=1) if len(people) else np.zeros(0, np.int64)
        crowding[people] = table.max(axis=1, initial=0)
        gap = support[people][nearest] - support[people]
        lesser[people] = np.where(crowding[people] > 0, np.maximum(gap, 0), 0)
    evidence = HumanEvidence(
        matched,
        overlap,
        score,
        agrees,
        support,
        rival,
        rival_label,
        crowding,
        lesser,
        agreement,
        steadiness,
    )
    return _with_ratings(evidence, human, merged.look)


def _with_ratings(evidence: HumanEvidence, human: Labels, look: Look) -> HumanEvidence:
    if look.probabilities is None:
        return evidence
    rows = np.arange(len(human))
    probabilities = look.probabilities
    others = probabilities[:, :-1].copy()  # of all classes: the largest table that there is
    others[rows, human.labels] = -1  # below every probability, for argmax
    kept = None if look.refined is None else paired_iou(human.boxes, look.refined)
    return dataclasses.replace(
        evidence,
        own=probabilities[rows, human.labels].astype(np.float64),
        other=np.maximum(others.max(axis=1, initial=0), 0).astype(np.float64),
        other_label=others.argmax(axis=1).astype(np.int32),
        background=probabilities[:, -1].astype(np.float64),
        kept=kept,
    )


def missing_evidence(human: Labels, merged: Merged, matched: Ints, images: int) -> MissingEvidence:
    """Gathers what speaks for each unmatched detection being a missing box.

    Args:
      human: the human boxes.
      merged: whose unmatched detections are asked about.
      matched: [H] what `match` returned for its detections.
      images: the number of images.
    """
    found = merged.look.detections
    free = np.ones(len(found), bool)
    free[matched[matched >= 0]] = False
    touching, shadow = np.zeros(len(found)), np.zeros(len(found))
    for people, seen in _images(human, found, images):
        if not len(seen):
            continue
        touching[seen] = iou(found.boxes[seen], human.boxes[people]).max(axis=1, initial=0)
        table = iou(found.boxes[seen], found.boxes[seen])
        scores = found.scores[seen]
        stronger = scores[None] > scores[:, None]
        shadow[seen] = np.where(stronger, table, 0).max(axis=1, initial=0)
    rows = np.flatnonzero(free).astype(np.int32)
    return MissingEvidence(
        rows,
        found.scores[rows].astype(np.float64),
        touching[rows],
        shadow[rows],
        merged.agreement[rows],
        merged.steadiness[rows],
    )


def choose(
    human: Labels,
    look: Look,
    evidence: HumanEvidence,
    missing: MissingEvidence,
    human_probabilities: Floats,
    missing_probability: Floats,
) -> Findings:
    """Makes findings of probabilities: one for each human box and each unmatched detection.

    A human box gets the likeliest kind that its matching allows: "class" needs another class that
    something speaks for, "place" a matched detection, "duplicate" another human box of its class
    on the same object. Of missing boxes in one place, of whatever classes, the likeliest is a
    finding.

    Args:
      human: H human boxes.
      look: the merged look that the evidence is about.
      evidence: about the human boxes.
      missing: about M unmatched detections.
      human_probabilities: [H, 5] probability of each kind for each human box, columns as `KINDS`.
      missing_probability: [M] that the detection is a missing box.

    Returns:
      H findings and at most M more, by falling score.
    """
    found = look.detections
    # The class to put in: a matched detection's, or else the rating's, or else the rival's.
    proposal = np.where(evidence.rival > 0, evidence.rival_label, -1)
    if evidence.other_label is not None:
        proposal = evidence.other_label
    disagrees = (evidence.match >= 0) & (evidence.agrees == 0)
    proposal = (
        np.where(disagrees, found.labels[evidence.match], proposal) if len(found) else proposal
    )

    allowed = np.ones((len(human), len(KINDS)), bool)
    allowed[:, CLASS] = (proposal >= 0) & (proposal != human.labels)
    allowed[:, PLACE] = evidence.match >= 0
    allowed[:, MISSING] = False
    allowed[:, DUPLICATE] = evidence.crowding >= MATCH_IOU
    masked = np.where(allowed, human_probabilities, -1)
    kind = masked.argmax(axis=1)
    score = np.take_along_axis(masked, kind[:, None], axis=1)[:, 0]

    boxes, labels = human.boxes.copy(), human.labels.copy()
    drawn = kind == PLACE
    boxes[drawn] = found.boxes[evidence.match[drawn]]
    renamed = kind == CLASS
    labels[renamed] = proposal[renamed]
    best = _likeliest_of_place(found, missing.detection, missing_probability)
    rows = missing.detection[best]
    findings = Findings(
        image=np.concatenate([human.image, found.image[rows]]).astype(np.int32),
        kind=np.concatenate([kind, np.full(len(rows), MISSING)]).astype(np.int8),
        score=np.concatenate([score, missing_probability[best]]).astype(np.float32),
        human=np.concatenate([np.arange(len(human)), np.full(len(rows), -1)]).astype(np.int32),
        detection=np.concatenate([evidence.match, rows]).astype(np.int32),
        boxes=np.concatenate([boxes, found.boxes[rows]]).astype(np.float32),
        labels=np.concatenate([labels, found.labels[rows]]).astype(np.int32),
    )
    return findings.take(np.argsort(-findings.score, kind="stable"))


def _likeliest_of_place(found: Detections, rows: Ints, scores: Floats) -> Bools:
    """Which [M] of some rows of the detections no likelier one of them lies on."""
    order = np.argsort(-scores, kind="stable")
    best = np.ones(len(rows), bool)
    image = found.image[rows][order]
    for those in rows_by_image(image, int(image.max(initial=-1)) + 1):
        mine = order[those]  # by falling score
        table = np.triu(iou(found.boxes[rows[mine]], found.boxes[rows[mine]]) >= ONE_PLACE, 1)
        for place in range(len(mine)):
            if best[mine[place]]:
                best[mine[table[place]]] = False
    return best


def _images(a: Labels | Detections, b: Labels | Detections, images: int) -> list[tuple[Ints, Ints]]:
    """Returns the rows of each image in two tables; images that are in neither are left out."""
    pairs = zip(rows_by_image(a.image, images), rows_by_image(b.image, images))
    return [(rows, others) for rows, others in pairs if len(rows) or len(others)]
