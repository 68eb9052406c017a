import json
import pathlib

import numpy as np
import pytest
import scipy.optimize

from mixtrain_jax.auditing import calibrate, measure, noise, ranking
from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.findings import HumanEvidence, MissingEvidence
from mixtrain_jax.errors import UserError
from tests.auditing import simulated


def example(seed, share, images=250):
    clean, sizes = simulated.truth(seed, images)
    planted = noise.plant(clean, sizes, simulated.CLASSES, share, seed)
    looks = [simulated.look(clean, planted.labels, sizes, seed + n) for n in (100, 200)]
    errors = measure.planted(planted, clean, len(sizes))
    return calibrate.Example(planted.labels, looks[0], looks[1:], errors)


@pytest.fixture(scope="module")
def models():
    return calibrate.learn([example(seed, 0.05) for seed in (1, 2)])


def ranked(one, level, models):
    look, views = one.look, one.views if level == "views" else []
    if level == "detections":
        look = Look(look.detections)
    return ranking.rank(one.human, look, views, len(one.errors.images), models)


def test_more_knowledge_ranks_better(models):
    one = example(seed=17, share=0.05)
    verdicts = [measure.judge(ranked(one, x, models).findings, one.errors) for x in ranking.LEVELS]
    precision = [measure.average_precision(v.right, v.errors()) for v in verdicts]
    assert precision[0] > 0.7
    assert precision[1] > precision[0] + 0.05
    assert precision[2] > precision[1]


@pytest.mark.parametrize("share", [0.025, 0.05, 0.1])
def test_one_calibration_holds_at_every_rate(models, share):
    one = example(seed=23, share=share, images=1000)
    result = ranked(one, "ratings", models)
    verdicts = measure.judge(result.findings, one.errors)
    assert measure.calibration_error(verdicts.score, verdicts.right) < 0.02
    listed = verdicts.score >= 0.05
    error = measure.calibration_error(verdicts.score[listed], verdicts.right[listed])
    assert error < 0.04
    for name in ("class", "place"):
        assert abs(result.shares[name] - share) < 0.02
    assert abs(result.missing - len(one.errors.missing)) < 0.5 * len(one.errors.missing)


def test_every_human_box_and_every_unmatched_detection_is_ranked_once(models):
    one = example(seed=5, share=0.1)
    found = ranked(one, "views", models).findings
    about_human = found.human >= 0
    np.testing.assert_array_equal(np.sort(found.human[about_human]), np.arange(len(one.human)))
    rest = found.detection[~about_human]
    assert len(np.unique(rest)) == len(rest)
    assert not np.isin(rest, found.detection[about_human]).any()
    assert (np.diff(found.score) <= 0).all()
    assert ((found.score >= 0) & (found.score <= 1)).all()


def test_shares_are_found_whatever_they_were_where_the_model_was_fitted():
    rng = np.random.default_rng(0)
    fitted, real = np.array([0.9, 0.07, 0.03]), np.array([0.6, 0.1, 0.3])
    outcome = rng.choice(3, 20_000, p=real)
    place = rng.normal(np.array([0, 2, -2.5])[outcome], 1)
    density = np.exp(-((place[:, None] - [0, 2, -2.5]) ** 2) / 2)
    wrong = density * fitted
    adjusted, shares = ranking.adjust(wrong / wrong.sum(axis=1, keepdims=True), fitted)
    np.testing.assert_allclose(shares, real, atol=0.01)
    exact = density * real
    np.testing.assert_allclose(adjusted, exact / exact.sum(axis=1, keepdims=True), atol=0.02)


def test_nothing_to_adjust_leaves_the_shares():
    fitted = np.array([0.9, 0.1])
    _, shares = ranking.adjust(np.zeros((0, 2)), fitted)
    np.testing.assert_array_equal(shares, fitted)


def test_the_fit_is_the_minimum_that_another_solver_finds():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 3)) * [1, 5, 0.2] + [0, 3, 1]
    outcomes = np.argmax(features @ rng.normal(size=(3, 3)) + rng.gumbel(size=(300, 3)), axis=1)
    model = calibrate.fit(features, outcomes, 3, ridge=0.7)
    inputs = np.clip((features - features.mean(0)) / features.std(0), -5, 5)
    inputs = np.column_stack([inputs, np.ones(300)])

    def loss(flat):
        weights = flat.reshape(4, 3)
        logits = inputs @ weights
        chosen = logits[np.arange(300), outcomes]
        penalty = 0.7 * (weights[:-1] ** 2).sum() + 1e-3 * (weights[-1] ** 2).sum()
        return np.sum(scipy.special.logsumexp(logits, axis=1) - chosen) + penalty / 2

    best = scipy.optimize.minimize(loss, np.zeros(12), method="BFGS", options={"gtol": 1e-6})
    assert loss(model.weights.ravel()) == pytest.approx(best.fun, abs=1e-5)
    np.testing.assert_allclose(model.weights.ravel(), best.x, atol=2e-3)
    np.testing.assert_allclose(model(features).sum(axis=1), 1)


def test_models_are_written_and_read_back(models):
    back = ranking.from_json(json.loads(json.dumps(calibrate.to_json(models, "simulated"))))
    one = example(seed=5, share=0.05, images=50)
    for level in ranking.LEVELS:
        before, after = (ranked(one, level, m).findings for m in (models, back))
        np.testing.assert_allclose(before.score, after.score, atol=1e-4)


@pytest.mark.parametrize("text", ["{}", "[1]", '{"levels": {"views": [1, 2]}}', "levels"])
def test_a_file_that_is_no_calibration_is_one_line(tmp_path, text):
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"own.json.* (no calibration|not a JSON)"):
        ranking.read(str(path))


def test_a_calibration_for_other_evidence_is_one_line(tmp_path):
    file = pathlib.Path(ranking.__file__).with_name("calibration.json")
    path = tmp_path / "own.json"
    for change, message in (
        (lambda levels: levels.pop("views"), "has no models for views"),
        (lambda levels: levels["ratings"][0]["weights"].pop(), "for ratings are for other evid"),
    ):
        values = json.loads(file.read_text())
        change(values["levels"])
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match=message):
            ranking.read(str(path))


def test_the_package_ships_models_that_fit_the_features():
    one = example(seed=31, share=0.05)
    precision = {}
    for level in ranking.LEVELS:
        verdicts = measure.judge(ranked(one, level, None).findings, one.errors)
        precision[level] = measure.average_precision(verdicts.right, verdicts.errors())
    # Of a detector that they never saw; features in another order would give much less.
    expected = {"detections": 0.552, "ratings": 0.690, "views": 0.763}
    assert precision == pytest.approx(expected, abs=0.01)


def test_features_stand_in_the_order_that_the_models_were_fitted_to():
    evidence = HumanEvidence(
        match=np.array([4]), match_iou=np.array([0.8]), match_score=np.array([0.6]),
        agrees=np.array([1.0]), support=np.array([0.5]), rival=np.array([0.3]),
        rival_label=np.array([2]), crowding=np.array([0.7]), lesser=np.array([0.09]),
        agreement=np.array([0.55]), steadiness=np.array([0.65]), own=np.array([0.2]),
        other=np.array([0.4]), background=np.array([0.35]), other_label=np.array([2]),
        kept=np.array([0.9]),
    )  # fmt: skip

    def odds(p):
        return np.log(p / (1 - p))

    by_hand = [1, odds(0.6), 0.8, 0.64, 0.6 * 0.2, odds(0.5), odds(0.3), 0.49, 0.3 * 0.7,
               odds(0.2), odds(0.4), odds(0.35), 0.9, 0.81, 0.72, 0, 0.65 * 0.1,
               0.55, 0.65, 0.65 * 0.2]  # fmt: skip
    np.testing.assert_allclose(ranking.human_features(evidence, "views")[0], by_hand, atol=1e-3)
    for level, count in (("detections", 9), ("ratings", 17)):
        np.testing.assert_allclose(
            ranking.human_features(evidence, level)[0], by_hand[:count], atol=1e-3
        )
    missing = MissingEvidence(
        detection=np.array([3]), score=np.array([0.6]), touching=np.array([0.1]),
        shadow=np.array([0.3]), agreement=np.array([0.55]), steadiness=np.array([0.65]),
    )  # fmt: skip
    by_hand = [odds(0.6), 0.1, 0.01, 0.3, 0.09, 0.06, 0.55, 0.65]
    np.testing.assert_allclose(ranking.missing_features(missing, "views")[0], by_hand, atol=1e-3)


def test_an_empty_data_set_has_no_findings(models):
    one = example(seed=0, share=0)
    human = one.human.take([])
    nothing = one.look.detections.take([])
    result = ranking.rank(human, Look(nothing), [], 3, models)
    assert len(result.findings) == 0
