"""How good an audit is, judged by labels that are known to be right.

`planted` and `real` say what is wrong with human boxes, `judge` says which findings are right, and
the rest are the usual numbers over a ranked list: average precision, AUROC, precision at k, recall
at a precision, calibration error, and bootstrap intervals over images. An error that no finding
names counts as a miss everywhere.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from mixtrain_jax.auditing.findings import (
    CLASS,
    DUPLICATE,
    KINDS,
    MISSING,
    PLACE,
    SPURIOUS,
    Findings,
    greedy,
)
from mixtrain_jax.auditing.labels import Bools, Floats, Ints, Labels, rows_by_image
from mixtrain_jax.auditing.noise import Planted
from mixtrain_jax.ops.numpy_boxes import iou

RIGHT = -1  # the kind of a human box with which nothing is wrong
SAME_IOU = 0.5  # at which two boxes are the same object


@dataclasses.dataclass(frozen=True)
class Errors:
    """What is wrong with a table of human boxes.

    Attributes:
      human: the H human boxes.
      kinds: [H] int8, kind of error of each, an index into `KINDS`; `RIGHT` if none.
      missing: the true boxes that no human box stands for.
      images: [I] bool, the images whose truth is known; others are not judged.
    """

    human: Labels
    kinds: Ints
    missing: Labels
    images: Bools


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """Ranked findings and whether they are right.

    Attributes:
      score: [F] falling.
      right: [F] bool, names a wrong box, and its kind.
      names: [F] int8, the kind of the error whose box it names, rightly or not; `RIGHT` if none.
      kind: [F] int8, the kind it says.
      image: [F] int32.
      missed_image: [U] int32, images of the errors whose box no finding names.
      missed_kind: [U] int8, their kinds.
    """

    score: Floats
    right: Bools
    names: Ints
    kind: Ints
    image: Ints
    missed_image: Ints
    missed_kind: Ints

    def errors(self, kinds: tuple[int, ...] = tuple(range(len(KINDS)))) -> int:
        """Returns how many errors of the given kinds there are, named or not."""
        return int(np.isin(self.names, kinds).sum() + np.isin(self.missed_kind, kinds).sum())


def planted(planted: Planted, clean: Labels, images: int) -> Errors:
    """Returns the errors of a planted table. A box with two errors counts as one of class."""
    kinds = np.full(len(planted.labels), RIGHT, np.int8)
    kinds[planted.moved(clean)] = PLACE
    kinds[planted.flipped(clean)] = CLASS
    kinds[planted.spawned()] = SPURIOUS
    missing = clean.take(planted.dropped(clean))
    return Errors(planted.labels, kinds, missing, np.ones(images, bool))


def real(human: Labels, truth: Labels, known: Bools) -> Errors:
    """Compares human boxes with better ones of the same images.

    Boxes are matched one to one whatever the class, by falling IoU, from 0.2 on. A pair of two
    classes is an error of class; a pair with IoU < 0.5 one of place; a human box without partner is
    a duplicate if its IoU with another one of its class is 0.5 or more, and spurious otherwise.

    Args:
      human: the boxes to judge.
      truth: better boxes.
      known: [I] bool, the images that have them.
    """
    count = len(known)
    kinds = np.full(len(human), RIGHT, np.int8)
    found = np.zeros(len(truth), bool)
    pairs = zip(rows_by_image(human.image, count), rows_by_image(truth.image, count))
    for image, (mine, good) in enumerate(pairs):
        if not known[image]:
            continue
        table = iou(human.boxes[mine], truth.boxes[good])
        alone = np.ones(len(mine), bool)
        for i, j in greedy(table, np.ones(len(good))):
            alone[i], found[good[j]] = False, True
            if human.labels[mine[i]] != truth.labels[good[j]]:
                kinds[mine[i]] = CLASS
            elif table[i, j] < SAME_IOU:
                kinds[mine[i]] = PLACE
        twins = iou(human.boxes[mine], human.boxes[mine])
        twins *= human.labels[mine][:, None] == human.labels[mine]
        np.fill_diagonal(twins, 0)
        double = twins.max(axis=1, initial=0) >= SAME_IOU
        kinds[mine[alone]] = np.where(double[alone], DUPLICATE, SPURIOUS)
    return Errors(human, kinds, truth.take(known[truth.image] & ~found), known)


def judge(findings: Findings, errors: Errors) -> Verdicts:
    """Says of each finding whether it is right.

    A finding about a human box is right if the box is wrong in the way it says; spurious and
    duplicate are one and the same here, since both boxes should go. A missing box is found by the
    highest-ranked finding of its class with IoU >= 0.5 with it; further ones are wrong.

    Args:
      findings: ranked; those of images without truth are left out.
      errors: what is wrong.
    """
    rows = np.flatnonzero(errors.images[findings.image])
    rows = rows[np.argsort(-findings.score[rows], kind="stable")]
    findings = findings.take(rows)
    about_human = findings.human >= 0
    names = np.where(about_human, errors.kinds[findings.human], RIGHT).astype(np.int8)
    goes = np.isin(findings.kind, (SPURIOUS, DUPLICATE)) & np.isin(names, (SPURIOUS, DUPLICATE))
    right = (names != RIGHT) & ((names == findings.kind) | goes)

    found = np.zeros(len(errors.missing), bool)
    count = len(errors.images)
    others = np.flatnonzero(~about_human)
    groups = zip(
        rows_by_image(findings.image[others], count), rows_by_image(errors.missing.image, count)
    )
    for group, gone in groups:
        table = iou(findings.boxes[others[group]], errors.missing.boxes[gone])
        table *= findings.labels[others[group]][:, None] == errors.missing.labels[gone]
        if not table.size:
            continue
        for row, overlaps in zip(others[group], table):
            free = np.where(found[gone], 0, overlaps)
            best = int(free.argmax())
            if free[best] >= SAME_IOU:
                found[gone[best]] = right[row] = True
                names[row] = MISSING

    judged = np.zeros(len(errors.human), bool)
    judged[findings.human[about_human]] = True
    silent = (errors.kinds != RIGHT) & ~judged & errors.images[errors.human.image]
    missed = errors.missing.take(~found)
    return Verdicts(
        findings.score,
        right,
        names,
        findings.kind,
        findings.image,
        np.concatenate([errors.human.image[silent], missed.image]).astype(np.int32),
        np.concatenate([errors.kinds[silent], np.full(len(missed), MISSING)]).astype(np.int8),
    )


def average_precision(right: Bools, positives: int) -> float:
    """Returns the mean precision at the rank of each right finding, over all `positives`.

    Args:
      right: [F] by falling score.
      positives: errors there are; those never found add nothing.
    """
    if not positives:
        return float("nan")
    hits = np.flatnonzero(right)
    return float((np.arange(1, len(hits) + 1) / (hits + 1)).sum() / positives)


def auroc(score: Floats, right: Bools, unnamed: int = 0) -> float:
    """Returns the chance that a right finding outranks a wrong one; ties count half.

    Args:
      score: [F].
      right: [F].
      unnamed: errors without a finding; they stand below everything.
    """
    wrong = ~right
    total = int(right.sum()) + unnamed
    if not total or not wrong.any():
        return float("nan")
    order = np.sort(score[wrong])
    below = np.searchsorted(order, score[right], side="left")
    upto = np.searchsorted(order, score[right], side="right")
    return float(((below + upto) / 2).sum() / (total * wrong.sum()))


def image_auroc(verdicts: Verdicts) -> float:
    """Returns the chance that an image with errors outranks one without, by its highest score."""
    images = np.union1d(verdicts.image, verdicts.missed_image)
    highest, wrong = np.full(len(images), -1.0), np.zeros(len(images), bool)
    np.maximum.at(highest, np.searchsorted(images, verdicts.image), verdicts.score)
    wrong[np.searchsorted(images, verdicts.image[verdicts.names != RIGHT])] = True
    wrong[np.searchsorted(images, verdicts.missed_image)] = True
    return auroc(highest, wrong)


def agreement(human: Labels, truth: Labels, known: Bools, at: float) -> float:
    """Returns F1 of labels against better ones: same class, IoU >= `at`, one to one.

    Args:
      human: labels to judge.
      truth: better ones.
      known: [I] bool, the images that are judged.
      at: the IoU.
    """
    hits = 0
    pairs = zip(rows_by_image(human.image, len(known)), rows_by_image(truth.image, len(known)))
    for image, (mine, good) in enumerate(pairs):
        if known[image]:
            table = iou(human.boxes[mine], truth.boxes[good])
            table *= human.labels[mine][:, None] == truth.labels[good]
            table[table < at] = 0
            hits += len(greedy(table, np.ones(len(good))))
    total = int(known[human.image].sum()) + int(known[truth.image].sum())
    return 2 * hits / total if total else float("nan")


def precision_at(right: Bools, k: int) -> float:
    """Returns the share of right ones among the first k; findings that are not there are wrong."""
    return float(right[:k].sum() / k) if k else float("nan")


def recall_at_precision(right: Bools, positives: int, precision: float = 0.8) -> float:
    """Returns the largest recall at which the list up to there has the given precision."""
    if not positives:
        return float("nan")
    hits = np.cumsum(right)
    good = hits / np.arange(1, len(right) + 1) >= precision
    return float(hits[good].max(initial=0) / positives)


def reliability(score: Floats, right: Bools, bins: int = 10) -> list[tuple[float, float, int]]:
    """Returns (mean score, share right, count) of bins of equal count, by rising score."""
    order = np.argsort(score, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [(float(score[p].mean()), float(right[p].mean()), len(p)) for p in parts]


def calibration_error(score: Floats, right: Bools, bins: int = 10) -> float:
    """Returns the mean of |mean score - share right| over bins of equal count (ECE)."""
    table = reliability(score, right, bins)
    total = sum(count for _, _, count in table)
    if not total:
        return float("nan")
    return sum(abs(mean - share) * count for mean, share, count in table) / total


def bootstrap(
    verdicts: Verdicts,
    metric: Callable[[Verdicts], float],
    images: int,
    rounds: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the 95% interval of a metric when images are drawn anew with replacement.

    Args:
      verdicts: of one audit.
      metric: a number of verdicts.
      images: the number of images.
      rounds: how many draws.
      seed: the same seed draws the same images, so arms can be compared draw by draw.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(rounds):
        weights = np.bincount(rng.integers(0, images, images), minlength=images)
        values.append(metric(resample(verdicts, weights)))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def resample(verdicts: Verdicts, weights: Ints) -> Verdicts:
    """Returns verdicts in which each image counts `weights` [I] times."""
    rows = np.repeat(np.arange(len(verdicts.score)), weights[verdicts.image])
    missed = np.repeat(np.arange(len(verdicts.missed_image)), weights[verdicts.missed_image])
    return Verdicts(
        verdicts.score[rows],
        verdicts.right[rows],
        verdicts.names[rows],
        verdicts.kind[rows],
        verdicts.image[rows],
        verdicts.missed_image[missed],
        verdicts.missed_kind[missed],
    )
