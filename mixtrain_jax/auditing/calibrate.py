"""Fits the models of `ranking.py` on dumps whose errors are known, such as planted ones.

This ran once, on errors planted into generated images and into good labels of photographs; what
came out is `calibration.json`, which the package ships and which says what it saw. It is here so
that anyone can repeat it, or fit models to a field of their own (`audit --calibration`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mixtrain_jax.auditing import findings as finding
from mixtrain_jax.auditing import measure, noise, ranking
from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.labels import Floats, Ints, Labels
from mixtrain_jax.auditing.measure import Errors
from mixtrain_jax.auditing.ranking import OUTCOMES, Model, softmax

DOUBLE_IOU = 0.5  # a planted box on a human box of its class is a duplicate from here on
DOUBLED = 0.03  # share of the human boxes that get a duplicate to learn from
DOUBLE_NOISE = 0.1  # by how much of its sides a duplicate is moved and resized, at most
LEAST_SHARE = 1e-4


@dataclasses.dataclass(frozen=True)
class Example:
    """An audited data set whose errors are known."""

    human: Labels
    look: Look
    views: list[Look]
    errors: Errors


def learn(examples: Sequence[Example]) -> dict[str, tuple[Model, Model]]:
    """Fits a pair of models for each level of knowledge that all examples can give.

    Returns:
      {level: (of human boxes, of unmatched detections)}, as `ranking.rank` takes them.
    """
    examples = [with_duplicates(example, seed) for seed, example in enumerate(examples)]
    models = {}
    for level in ranking.LEVELS:
        tables = [table for example in examples for table in _of_level(example, level)]
        if not tables:
            continue
        all_of = Tables(*(np.concatenate(part) for part in zip(*tables)))
        people = fit(all_of.human, all_of.outcomes, len(OUTCOMES))
        models[level] = people, fit(all_of.missing, all_of.wrong, 2)
    return models


def with_duplicates(example: Example, seed: int) -> Example:
    """Returns an example in which a few right boxes are there twice.

    The field's protocols plant no duplicates. The second box is noisy, and its ratings are taken to
    be those of the first.
    """
    human, errors = example.human, example.errors
    rng = np.random.default_rng(seed)
    right = np.flatnonzero(errors.kinds == measure.RIGHT)
    twins = np.sort(rng.choice(right, round(DOUBLED * len(right)), replace=False))
    frame = np.full((len(errors.images), 2), 1_000_000)  # nothing is clipped
    noisy = noise.box_noise(human.take(twins), frame, DOUBLE_NOISE, seed).labels
    # `noisy` is sorted by image, as `human` is, and so are the rows they double.
    joined = Labels(
        np.concatenate([human.image, noisy.image]),
        np.concatenate([human.boxes, noisy.boxes]),
        np.concatenate([human.labels, noisy.labels]),
    )
    kinds = np.concatenate([errors.kinds, np.full(len(twins), finding.DUPLICATE, np.int8)])

    def again(look: Look) -> Look:
        if look.probabilities is None or look.refined is None:
            return Look(look.detections)
        return Look(
            look.detections,
            np.concatenate([look.probabilities, look.probabilities[twins]]),
            np.concatenate([look.refined, look.refined[twins]]),
        )

    return Example(
        joined,
        again(example.look),
        [again(view) for view in example.views],
        dataclasses.replace(errors, human=joined, kinds=kinds),
    )


class Tables(NamedTuple):
    """What models are fitted to.

    Attributes:
      image: [H] of each human box.
      human: [H, D] features.
      outcomes: [H] places in `OUTCOMES`.
      missing_image: [M] of each unmatched detection.
      missing: [M, E] features.
      wrong: [M] 1 where it is a missing box, else 0.
    """

    image: Ints
    human: Floats
    outcomes: Ints
    missing_image: Ints
    missing: Floats
    wrong: Ints


def _of_level(example: Example, level: str) -> list[Tables]:
    """Returns an example's tables for a level; none if it knows too little.

    How many looks there will be is not known, so the first view alone, the first two, and so on
    each make a table.
    """
    if level == "detections":
        return [tables(example, Look(example.look.detections), [], level)]
    if example.look.probabilities is None or example.look.refined is None:
        return []
    if level == "ratings":
        return [tables(example, example.look, [], level)]
    counts = range(1, len(example.views) + 1)
    return [tables(example, example.look, example.views[:count], level) for count in counts]


def tables(example: Example, look: Look, views: list[Look], level: str) -> Tables:
    """Returns features and outcomes of human boxes and of unmatched detections.

    Args:
      example: whose errors are known.
      look: its look, or a part of what that knows.
      views: further looks.
      level: how much look and views know.
    """
    images = len(example.errors.images)
    people, missing, merged, reached = ranking.gather(example.human, look, views, images)
    assert reached == level
    kinds = example.errors.kinds
    outcomes = np.zeros(len(kinds), np.int64)
    for column, name in enumerate(OUTCOMES[1:], start=1):
        outcomes[kinds == finding.KINDS.index(name)] = column
    double = people.crowding >= DOUBLE_IOU
    outcomes[(kinds == finding.SPURIOUS) & double] = OUTCOMES.index("duplicate")

    every = np.zeros((len(kinds), len(finding.KINDS)))
    found = finding.choose(example.human, merged, people, missing, every, missing.score)
    verdicts = measure.judge(found, example.errors)
    of_missing = found.take(example.errors.images[found.image])  # judge's own order
    wrong = np.zeros(len(merged.detections), np.int64)
    hits = verdicts.right & (verdicts.kind == finding.MISSING)
    wrong[of_missing.detection[hits]] = 1
    known = example.errors.images
    people_known = known[example.human.image]
    missing_known = known[merged.detections.image[missing.detection]]
    return Tables(
        example.human.image[people_known],
        ranking.human_features(people, level)[people_known],
        outcomes[people_known],
        merged.detections.image[missing.detection][missing_known],
        ranking.missing_features(missing, level)[missing_known],
        wrong[missing.detection][missing_known],
    )


def fit(features: Floats, outcomes: Ints, count: int, ridge: float = 1.0) -> Model:
    """Fits a softmax regression by Newton's method.

    Args:
      features: [N, D].
      outcomes: [N] in 0..count-1.
      count: the number of outcomes C.
      ridge: strength of the quadratic penalty on weights of standardised features.
    """
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-3)
    inputs = np.clip((features - mean) / scale, -5, 5)
    inputs = np.column_stack([inputs, np.ones(len(inputs))])
    size = inputs.shape[1]
    target = np.eye(count)[outcomes]
    penalty = np.repeat(np.append(np.full(size - 1, ridge), 1e-3), count)
    weights = np.zeros((size, count))
    for _ in range(100):
        p = softmax(inputs @ weights)
        gradient = (inputs.T @ (p - target)).ravel() + penalty * weights.ravel()
        blocks = np.einsum("nc,cd->ncd", p, np.eye(count)) - p[:, :, None] * p[:, None]
        hessian = np.einsum("ni,ncd,nj->icjd", inputs, blocks, inputs, optimize=True)
        hessian = hessian.reshape(size * count, -1) + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 3.0 / max(np.abs(step).max(), 1e-9))
        weights -= step.reshape(size, count)
        if np.abs(step).max() < 1e-6:
            break
    # An outcome that never occurred keeps a share, so that it can be rescaled elsewhere.
    shares = np.maximum(target.mean(axis=0), LEAST_SHARE)
    return Model(mean, scale, weights, shares / shares.sum())


def to_json(models: dict[str, tuple[Model, Model]], note: str) -> dict[str, Any]:
    """Returns models as JSON values, to six digits; `note` says how they were fitted."""

    def numbers(model: Model) -> dict[str, Any]:
        fields = dataclasses.asdict(model).items()
        return {k: np.vectorize(lambda x: float(f"{x:.6g}"))(v).tolist() for k, v in fields}

    levels = {level: [numbers(m) for m in pair] for level, pair in models.items()}
    return {"note": note, "outcomes": list(OUTCOMES), "levels": levels}
