"""Ranks findings by the data at hand: by errors planted into the very labels that are audited.

Models that were fitted on other images and other detectors can be wrong here. So errors of every
kind are planted into a copy of the labels, the same detectors look at that copy, and models learn
to tell planted errors from the labels as they are. These have errors of their own, which count as
right while the models are fitted, so a model's odds are too low by a factor: how many times as
common as planted errors of a kind the labels' own are. Among boxes that look at least as much like
an error as a planted one does, hardly any is right; there the factor can be counted (learning from
positive and unlabelled examples: Elkan and Noto, "Learning classifiers from only positive and
unlabeled data", KDD 2008). Images are judged by models that were fitted on other images.

Of missing boxes this finds a part: what people leave out is often another sort (small, cut by the
border) than what they draw, and then a box that is taken away does not look like one that is
missing. The few numbers that missing boxes are judged by mean much the same to other detectors, so
fitted models judge them too, and those count by which more is missing. Doubled boxes are judged by
fitted models too: few are planted here, and none is an exact copy.
"""

import dataclasses
from typing import Any

import numpy as np

from mixtrain_jax.auditing import calibrate, measure, noise, ranking
from mixtrain_jax.auditing.calibrate import Example
from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.labels import Bools, Floats, Ints, Labels
from mixtrain_jax.auditing.noise import Planted
from mixtrain_jax.auditing.ranking import OUTCOMES, Ranking
from mixtrain_jax.errors import UserError

SHARE = 0.1  # of the boxes, for each kind of planted error
IMAGES = 2000  # that errors are planted into, at most
EMPTY = 0.1  # share of these without boxes, where images drawn by chance have too few boxes
ENOUGH = 2000  # boxes in these images, where there are so many
FEWEST = 20  # planted errors of a kind that can tell how common the labels' own are
PARTS = 2  # of the images; each is judged by the models of the other
QUANTILES = np.arange(0.4, 0.75, 0.05)  # of planted errors, where the factor is counted
_LEAST = 1e-5  # probability of "nothing wrong" by which one divides


def check_enough(boxes: int) -> None:
    """Raises UserError where so many boxes are too few to learn from."""
    least = round(FEWEST / SHARE)
    if boxes < least:
        raise UserError(
            f"--calibration=own learns from errors that it plants into a tenth of the boxes for "
            f"each kind; {boxes} boxes are too few ({least} are needed): leave it out"
        )


def plant(
    human: Labels, sizes: Ints, classes: int, images: Bools, seed: int = 0
) -> tuple[Planted, Ints]:
    """Plants errors of all kinds but duplicates into a copy of the labels of some images.

    Args:
      human: the labels.
      sizes: [I, 2] height and width of all images in pixels.
      classes: the number of classes.
      images: [I] bool, the images that may be taken; `IMAGES` of them are, where there are more.
      seed: of the images and of the errors.

    Returns:
      The labels of the images that were taken, with errors, and the rows of these images,
      ascending. In some of them no label may be left, or there was none.

    Raises:
      UserError: there are too few boxes to learn from.
    """
    count = np.bincount(human.image, minlength=len(images))
    order = np.random.default_rng(seed).permutation(np.flatnonzero(images))
    chosen = order[:IMAGES]
    if count[chosen].sum() < ENOUGH:
        full, empty = order[count[order] > 0], order[count[order] == 0]
        full = full[: IMAGES - min(len(empty), round(EMPTY * IMAGES))]
        chosen = np.concatenate([full, empty[: IMAGES - len(full)]])
    chosen.sort()
    rows = np.flatnonzero(np.isin(human.image, chosen))
    check_enough(len(rows) if len(chosen) >= PARTS else 0)
    some = human.take(rows)
    place = np.searchsorted(chosen, some.image).astype(np.int32)  # among those that were chosen
    some = dataclasses.replace(some, image=place)
    made = noise.plant(some, sizes[chosen], max(classes, 2), SHARE, seed)
    table = dataclasses.replace(made.labels, image=chosen[made.labels.image].astype(np.int32))
    if classes == 1:  # of which none can be another
        table = dataclasses.replace(table, labels=np.zeros_like(table.labels))
    source = np.where(made.source >= 0, rows[made.source], -1)
    return Planted(table, source.astype(np.int32)), chosen


def example(
    planted: Planted, human: Labels, images: Bools, look: Look, views: list[Look]
) -> Example:
    """Planted errors, with what the detectors see of them.

    Args:
      planted: as `plant` returns it.
      human: the labels it was made of.
      images: [I] bool, those that `plant` took and that were looked at.
      look: with the planted labels.
      views: further looks.
    """
    errors = measure.planted(planted, human, len(images))
    missing = errors.missing.take(images[errors.missing.image])
    errors = dataclasses.replace(errors, images=images, missing=missing)
    return calibrate.with_duplicates(Example(planted.labels, look, views, errors), 0)


def rank(
    human: Labels,
    look: Look,
    views: list[Look],
    images: int,
    planted: Example,
    models: dict[str, Any] | None = None,
) -> Ranking:
    """Finds what may be wrong with human boxes, as `ranking.rank` does.

    Args:
      human: the labels to audit.
      look: what a detector sees with them.
      views: further looks.
      images: how many there are.
      planted: errors in a copy of these labels, with the same looks.
      models: that judge missing and doubled boxes too; None: the package's.
    """
    evidence = ranking.gather(human, look, views, images)
    people, missing, merged, level = evidence
    table = calibrate.tables(planted, planted.look, planted.views, level)
    part = np.random.default_rng(0).permutation(images) % PARTS
    known = planted.errors.images
    of_human = _probabilities(
        ranking.human_features(people, level),
        table.human,
        table.outcomes,
        len(OUTCOMES),
        (part[human.image], part[table.image]),
        known[human.image],
    )
    of_human = _with_duplicates(of_human, ranking.human_chances(people, level, models))
    image = merged.detections.image[missing.detection]
    by_own = _probabilities(
        ranking.missing_features(missing, level),
        table.missing,
        table.wrong,
        2,
        (part[image], part[table.missing_image]),
        known[image],
    )
    by_models = ranking.missing_chances(missing, level, models)
    of_missing = max(by_own, by_models, key=lambda chances: chances[:, 1].sum())
    return ranking.made_of(human, evidence, of_human, of_missing)


def _with_duplicates(by_own: Floats, by_models: Floats) -> Floats:
    """Probabilities [H, C], of duplicates those that find more; the others share the rest."""
    column = OUTCOMES.index("duplicate")
    double = max(by_own[:, column], by_models[:, column], key=np.sum)
    rest = 1 - by_own[:, column]
    scaled = by_own * np.where(rest > 0, (1 - double) / np.maximum(rest, _LEAST), 0)[:, None]
    scaled[:, column] = double
    return scaled


def _probabilities(
    features: Floats,
    planted: Floats,
    outcomes: Ints,
    count: int,
    parts: tuple[Ints, Ints],
    known: Bools,
) -> Floats:
    """Returns the probability [N, C] of each outcome of each row; 0 is "nothing wrong".

    Args:
      features: [N, D] of the rows: human boxes, or unmatched detections.
      planted: [P, D] of those of the labels with planted errors.
      outcomes: [P] of these; 0 for what was not planted, whatever it is.
      count: the number of outcomes C.
      parts: the part of the images that each row [N], [P] is in.
      known: [N] bool, rows of the images that errors were planted into.
    """
    odds, of_planted = np.zeros((len(features), count)), np.zeros((len(planted), count))
    for part in range(PARTS):
        others = parts[1] != part
        if not others.any():  # nothing to learn from
            continue
        model = calibrate.fit(planted[others], outcomes[others], count)
        for rows, inside, result in (
            (features, parts[0] == part, odds),
            (planted, parts[1] == part, of_planted),
        ):
            chances = model(rows[inside])
            result[inside] = chances / np.maximum(chances[:, :1], _LEAST)
    result = np.zeros_like(odds)
    for outcome in range(1, count):
        mine = of_planted[outcomes == outcome, outcome]
        factor = times_as_common(mine, odds[known, outcome])
        result[:, outcome] = factor * odds[:, outcome]
    result /= np.maximum(result.sum(axis=1, keepdims=True), 1)
    result[:, 0] = 1 - result[:, 1:].sum(axis=1)
    return result


def times_as_common(planted: Floats, own: Floats) -> float:
    """How many times as common as planted errors of a kind the labels' own are.

    Args:
      planted: [P] odds of each planted error.
      own: [N] the same of each row of the labels as they are.

    Returns:
      The least ratio of rows to planted errors whose odds reach a quantile of the planted ones'; 0
      where too few are planted to tell.
    """
    if len(planted) < FEWEST:
        return 0.0
    limits = np.quantile(planted, 1 - QUANTILES)
    return float(min((own >= limit).sum() / (planted >= limit).sum() for limit in limits))
