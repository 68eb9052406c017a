"""One calibrated score for every finding, whatever its kind.

Two small logistic models turn evidence into probabilities: one says of each human box whether it is
right or wrong and in which way, one says of each unmatched detection whether it is a missing box.
Their weights were fitted once on errors planted into generated images and into good labels of
photographs, and ship in `calibration.json`; `read` takes others.
How many labels are wrong differs from one data set to the next, and the truth is never known. So
the shares of each kind are estimated on the data at hand by expectation maximisation over the
models' own probabilities (Saerens, Latinne and Decaestecker, "Adjusting the outputs of a classifier
to new a priori probabilities", Neural Computation 2002), and the probabilities are rescaled to
them. Of the findings with score p about p are right.
"""

import dataclasses
import functools
import importlib.resources
import json
from typing import Any

import numpy as np

from mixtrain_jax.auditing import findings as finding
from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.findings import Findings, HumanEvidence, MissingEvidence
from mixtrain_jax.auditing.labels import Detections, Floats, Labels
from mixtrain_jax.auditing.merging import merge
from mixtrain_jax.data.sources import text_files
from mixtrain_jax.errors import UserError

OUTCOMES = ("right", "class", "place", "spurious", "duplicate")  # of a human box
LEVELS = ("detections", "ratings", "views")  # how much is known; each has weights of its own
# Of each level's weights, of human boxes and of missing ones: features and an intercept, outcomes.
SHAPES = {
    "detections": ((10, 5), (7, 2)),
    "ratings": ((18, 5), (7, 2)),
    "views": ((21, 5), (9, 2)),
}
EDGE = 0.005  # probabilities are kept this far from 0 and 1 before their log-odds are taken
SHARES = (0.0005, 0.95)  # what an estimated share of wrong boxes can be


@dataclasses.dataclass(frozen=True)
class Model:
    """A softmax regression over standardised features.

    Attributes:
      mean, scale: [D] of each feature where it was fitted.
      weights: [D + 1, C], the last row holds the intercepts.
      shares: [C] share of each outcome where it was fitted.
    """

    mean: Floats
    scale: Floats
    weights: Floats
    shares: Floats

    def __call__(self, features: Floats) -> Floats:
        """Returns [N, C] probabilities of N rows of features [N, D]."""
        inputs = np.clip((features - self.mean) / self.scale, -5, 5)
        return softmax(np.column_stack([inputs, np.ones(len(inputs))]) @ self.weights)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What an audit found.

    Attributes:
      findings: by falling score.
      detections: those of all looks merged, which the findings' `detection` counts.
      level: how much was known, one of `LEVELS`.
      shares: estimated share of each outcome, by name: of human boxes for those of `OUTCOMES`, of
        unmatched detections for "missing".
      missing: estimated number of missing boxes among the detections.
    """

    findings: Findings
    detections: Detections
    level: str
    shares: dict[str, float]
    missing: float


def rank(
    human: Labels,
    look: Look,
    views: list[Look],
    images: int,
    models: dict[str, Any] | None = None,
) -> Ranking:
    """Finds what may be wrong with human boxes, with the probability that it is.

    Args:
      human: H human boxes.
      look: what the detector says; its ratings are used if there are any.
      views: further looks, such as a mirrored image or another checkpoint; may be empty.
      images: the number of images.
      models: as `load` returns them; those of the package if None.
    """
    evidence = gather(human, look, views, images)
    people, missing, _, level = evidence
    of_human = human_chances(people, level, models)
    return made_of(human, evidence, of_human, missing_chances(missing, level, models))


def human_chances(
    people: HumanEvidence, level: str, models: dict[str, Any] | None = None
) -> Floats:
    """Returns [H, C] the chances of each of `OUTCOMES` of each human box."""
    model, _ = (models or load())[level]
    chances, _ = adjust(model(human_features(people, level)), model.shares)
    return chances


def missing_chances(
    missing: MissingEvidence, level: str, models: dict[str, Any] | None = None
) -> Floats:
    """Returns [M, 2] the chances of each unmatched detection to be nothing, or a missing box."""
    _, model = (models or load())[level]
    chances, _ = adjust(model(missing_features(missing, level)), model.shares)
    return chances


def made_of(human: Labels, evidence: "Evidence", of_human: Floats, of_missing: Floats) -> Ranking:
    """Returns the findings that probabilities make.

    Args:
      human: the labels.
      evidence: as `gather` returns it.
      of_human: [H, C] probability of each of `OUTCOMES` of each human box.
      of_missing: [M, 2] of each unmatched detection to be nothing, and to be a missing box.
    """
    people, missing, merged, level = evidence
    by_kind = np.zeros((len(human), len(finding.KINDS)))
    for column, name in enumerate(OUTCOMES[1:], start=1):
        by_kind[:, finding.KINDS.index(name)] = of_human[:, column]
    findings = finding.choose(human, merged, people, missing, by_kind, of_missing[:, 1])
    shares = dict(zip(OUTCOMES, _mean(of_human))) | {"missing": _mean(of_missing)[1]}
    missed = float(findings.score[findings.kind == finding.MISSING].sum())
    return Ranking(findings, merged.detections, level, shares, missed)


def _mean(probabilities: Floats) -> list[float]:
    """Their means [C]; of no rows, "nothing wrong"."""
    count = probabilities.shape[1]
    if not len(probabilities):
        return [1.0] + [0.0] * (count - 1)
    means: list[float] = probabilities.mean(axis=0).tolist()
    return means


Evidence = tuple[HumanEvidence, MissingEvidence, Look, str]


def gather(human: Labels, look: Look, views: list[Look], images: int) -> Evidence:
    """Returns the evidence about human boxes and about missing ones, the merged look, its level."""
    rated = look.probabilities is not None and look.refined is not None
    merged = merge([look, *views], images)
    people = finding.human_evidence(human, merged, images)
    missing = finding.missing_evidence(human, merged, people.match, images)
    level = "detections" if not rated else "views" if views else "ratings"
    return people, missing, merged.look, level


def human_features(evidence: HumanEvidence, level: str) -> Floats:
    """Returns [H, D] the numbers a human box is judged by.

    There are 9 from detections, 8 more from ratings, 3 more from several looks. Each is a
    probability's log-odds, or an overlap, or the product of two that matter together.
    """
    e = evidence
    matched = (e.match >= 0).astype(np.float64)
    columns = [
        matched,
        log_odds(e.match_score),
        e.match_iou,
        e.match_iou**2,
        e.match_score * e.agrees * (1 - e.match_iou),
        log_odds(e.support),
        log_odds(e.rival),
        e.crowding**2,
        np.sqrt(e.lesser) * e.crowding,
    ]
    if level != "detections":
        assert e.own is not None and e.other is not None and e.background is not None
        kept = np.ones_like(e.own) if e.kept is None else e.kept
        columns += [
            log_odds(e.own),
            log_odds(e.other),
            log_odds(e.background),
            kept,
            kept**2,
            e.match_iou * kept,
            log_odds(e.own) * (e.rival > e.support),
            (1 - e.background) * (1 - kept),
        ]
    if level == "views":
        columns += [e.agreement, e.steadiness, e.steadiness * (1 - e.match_iou)]
    return np.column_stack(columns)


def missing_features(evidence: MissingEvidence, level: str) -> Floats:
    """Returns [M, D] the numbers an unmatched detection is judged by.

    There are 6, and 2 more from several looks.
    """
    e = evidence
    columns = [
        log_odds(e.score),
        e.touching,
        e.touching**2,
        e.shadow,
        e.shadow**2,
        e.score * e.touching,
    ]
    if level == "views":
        columns += [e.agreement, e.steadiness]
    return np.column_stack(columns)


def adjust(probabilities: Floats, shares: Floats, rounds: int = 200) -> tuple[Floats, Floats]:
    """Rescales probabilities to the shares of outcomes that they themselves speak for.

    Args:
      probabilities: [N, C] of a model fitted where outcomes had the given shares; column 0 is the
        outcome "nothing wrong".
      shares: [C] of that place.
      rounds: of expectation maximisation; it ends sooner once nothing moves.

    Returns:
      [N, C] probabilities and [C] shares of the data at hand. Without rows, the shares as given.
    """
    if not len(probabilities):
        return probabilities, shares
    now = shares.copy()
    adjusted = probabilities
    # A prior worth ten boxes keeps a small data set near the shares that were usual elsewhere.
    weight = 10 * shares
    for _ in range(rounds):
        scaled = probabilities * (now / shares)
        adjusted = scaled / scaled.sum(axis=1, keepdims=True)
        new = (adjusted.sum(axis=0) + weight) / (len(adjusted) + weight.sum())
        new[1:] = np.clip(new[1:], SHARES[0], SHARES[1])
        new /= new.sum()
        if np.abs(new - now).max() < 1e-6:
            break
        now = new
    return adjusted, now


def softmax(logits: Floats) -> Floats:
    """Returns [N, C] probabilities of logits [N, C]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log_odds(probability: Floats) -> Floats:
    """Returns log(p / (1 - p)), with p kept `EDGE` away from 0 and 1."""
    p = np.clip(probability, EDGE, 1 - EDGE)
    return np.asarray(np.log(p / (1 - p)))


@functools.cache
def load() -> dict[str, tuple[Model, Model]]:
    """Returns the package's models: {level: (of human boxes, of missing boxes)}."""
    file = importlib.resources.files("mixtrain_jax.auditing").joinpath("calibration.json")
    return from_json(json.loads(file.read_text(encoding="utf-8")))


def read(path: str) -> dict[str, tuple[Model, Model]]:
    """Returns the models that `tools/benchmark_audit.py --fit` wrote to a file.

    Raises:
      UserError: the file is missing, or holds no such models.
    """
    values = text_files.read_json(path, "calibration")
    try:
        models = from_json(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no calibration; tools/benchmark_audit.py --fit writes one"
        ) from error
    for level in LEVELS:
        if level not in models:
            raise UserError(
                f"{path} has no models for {level}: fit it on dumps that hold these (audit --dump)"
            )
        shapes = tuple(model.weights.shape for model in models[level])
        if shapes != SHAPES[level]:
            raise UserError(
                f"{path}: its models for {level} are for other evidence ({shapes} and not "
                f"{SHAPES[level]} weights): fit it anew with this version"
            )
    return models


def from_json(values: dict[str, Any]) -> dict[str, tuple[Model, Model]]:
    """Returns the models that `calibrate.to_json` wrote."""

    def model(fields: dict[str, Any]) -> Model:
        arrays = {k: np.asarray(v, np.float64) for k, v in fields.items()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("numbers that are not finite")
        return Model(**arrays)

    return {level: (model(a), model(b)) for level, (a, b) in values["levels"].items()}
