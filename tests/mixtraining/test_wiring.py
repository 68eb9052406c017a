"""Who is handed what: a detector that writes down each call, in place of student and teacher."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.config import recipes
from mixtrain_jax.mixtraining import step as stepping
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.mixtraining.metrics import as_numbers
from mixtrain_jax.training import ema, update
from mixtrain_jax.types import Batch, Detections, TrainState, View
from tests.mixtraining import small

STUDENT, TEACHER = {"w": jnp.ones(())}, {"w": jnp.full((), 7.0)}
NORMAL, WEAK, STRONG = 1.0, 2.0, 3.0  # the value of a view's pixels, less one in the last column


def one(x):
    return x


def view(value, box, label):
    return View(
        image=jnp.full((1, 32, 32, 3), value).at[:, :, -1].add(-1),
        size=jnp.array([[32, 32]]),
        matrix=jnp.eye(3)[None],
        boxes=jnp.array([[box]], jnp.float32),
        labels=jnp.array([[label]]),
        valid=jnp.ones((1, 1), bool),
        index=jnp.zeros(1, jnp.int32),
        place=jnp.full(1, int(value), jnp.int32),
    )


BATCH = Batch(
    normal=view(NORMAL, [0, 0, 8, 8], 0),
    weak=view(WEAK, [16, 16, 24, 24], 1),
    strong=view(STRONG, [16, 16, 24, 24], 1),
)
FOUND = [2, 20, 10, 28]  # where no human box is, in either half


class Detector:
    """Stands in for a bound detector.

    Attributes:
      calls: of each call its name, whose parameters were bound, and what it was given.
    """

    def __init__(self, params, calls, mirrored):
        teacher = not isinstance(params["w"], jax.core.Tracer)
        self.params, self.calls, self.mirrored = params, calls, mirrored
        self.who = "teacher" if teacher else "student"
        assert not teacher or float(params["w"]) == 7

    def note(self, name, **what):
        self.calls.append((name, self.who, what))

    def features(self, image, size, keys=None):
        self.note("features", values=image.max((1, 2, 3)).tolist(), keys=keys)
        return (image,)

    def detect(self, pyramid, size):
        mirrored = float(pyramid[0][0, 0, 0, 0]) < float(pyramid[0].max())
        box = [32 - FOUND[2], FOUND[1], 32 - FOUND[0], FOUND[3]] if mirrored else FOUND
        valid = jnp.array([[self.mirrored or not mirrored]])
        found = Detections(
            jnp.array([[box]], jnp.float32), jnp.array([[0.99]]), jnp.array([[1]]), valid
        )
        return found, jnp.ones(1, bool)

    def score_boxes(self, pyramid, size, boxes, stage=None):
        return jnp.full((*boxes.shape[:2], 3), 1 / 3)

    def losses(self, levels, size, targets, keys, sum_over_devices, ask_teacher=None):
        self.note(
            "losses",
            value=float(levels[0].max()), targets=targets, ask_teacher=ask_teacher, keys=keys,
        )  # fmt: skip
        return {"class": self.params["w"] * levels[0].max()}, []


@pytest.fixture
def look(monkeypatch):
    """A function of fields of `config.mixtraining`: what was called, and what came out."""

    def run(mirrored=True, **fields):
        calls = []
        for module in (stepping, teaching):
            monkeypatch.setattr(
                module, "bind", lambda model, params: Detector(params, calls, mirrored)
            )
        config = recipes.base().mixtraining
        config.update({"gt_score_threshold": 0.0, "pseudo_score_threshold": 0.5, **fields})
        grads, metrics, output = stepping.compute_gradients(
            STUDENT, TEACHER, BATCH, jax.random.key(0), config=config,
            model=types.SimpleNamespace(num_classes=2), sum_over_devices=one,
        )  # fmt: skip
        return calls, (grads, as_numbers(metrics), output)

    return run


def losses(calls):
    return [what for name, _, what in calls if name == "losses"]


def test_the_student_learns_the_mixed_targets_and_the_teacher_makes_them(look):
    calls, (grads, metrics, output) = look(mixed_loss_weight=3.0)
    seen = [(who, what["values"]) for name, who, what in calls if name == "features"]
    assert seen == [("teacher", [WEAK]), ("student", [NORMAL, STRONG])]  # one pass for both halves
    normal, mixed = losses(calls)
    assert (normal["value"], mixed["value"]) == (NORMAL, STRONG)
    np.testing.assert_array_equal(normal["targets"].boxes, BATCH.normal.boxes)
    assert normal["ask_teacher"] is None
    jax.tree.map(np.testing.assert_array_equal, mixed["targets"], output.targets)
    assert mixed["targets"].valid.tolist() == [[True, True]]  # the human box, and the found one
    np.testing.assert_array_equal(mixed["targets"].boxes[0, 1], FOUND)
    rois = jnp.zeros((1, 2, 4))
    said = mixed["ask_teacher"](0, rois)
    np.testing.assert_allclose(said.probabilities, np.full((1, 2, 3), 1 / 3), rtol=1e-6)
    assert said.label_share is None
    assert float(metrics["loss"]) == float(grads["w"]) == NORMAL + 3 * STRONG


def test_plain_training_asks_no_teacher(monkeypatch, look):
    plain = Batch(normal=BATCH.normal)
    monkeypatch.setattr("tests.mixtraining.test_wiring.BATCH", plain)
    calls, (grads, _, output) = look()
    assert {who for _, who, _ in calls} == {"student"} and output is None
    assert float(grads["w"]) == NORMAL


def test_without_the_soft_background_the_teacher_is_not_asked(look):
    calls, _ = look(soft_background=False)
    assert [what["ask_teacher"] for what in losses(calls)] == [None, None]


def test_the_normal_half_is_trained_on_its_mended_targets(look):
    calls, (_, metrics, _) = look(mend_normal=True)
    normal, _ = losses(calls)
    assert normal["targets"].valid.tolist() == [[True, True]]
    np.testing.assert_array_equal(normal["targets"].boxes[0, 1], FOUND)
    assert metrics["boxes/missing_normal"] == 1 and normal["ask_teacher"] is None


def test_the_normal_half_may_have_a_soft_background_too(look):
    calls, _ = look(soften_normal=True)
    normal, _ = losses(calls)
    said = normal["ask_teacher"](0, jnp.zeros((1, 2, 4)))
    np.testing.assert_allclose(said.probabilities, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("soften_normal", [False, True])
def test_labels_are_soft_in_the_halves_whose_background_is(look, soften_normal):
    """Human boxes that are left out are there in the student's own view."""
    calls, (_, metrics, _) = look(soften_normal=soften_normal, mend_normal=True, label_share=0.25,
                    normal_gt_score_threshold=0.5, pseudo_score_threshold=1.0)  # fmt: skip
    normal, mixed = losses(calls)
    boxes = jnp.concatenate([BATCH.normal.boxes, BATCH.strong.boxes], axis=1)
    said = mixed["ask_teacher"](0, boxes)
    assert metrics["teacher/label_share"] == metrics["teacher/box_share"] == 0.25
    np.testing.assert_allclose(said.label_share, [[0.25, 0.25]])
    assert (normal["ask_teacher"] is not None) == soften_normal
    if soften_normal:  # there the human box, rated 1/3, is no target
        assert normal["targets"].valid.tolist() == [[False, False]]
        np.testing.assert_allclose(normal["ask_teacher"](0, boxes).label_share, [[0, 0.25]])


def test_labels_of_the_normal_half_are_soft_without_being_mended(look):
    calls, _ = look(soften_normal=True, label_share=0.25)
    normal, _ = losses(calls)
    np.testing.assert_allclose(normal["ask_teacher"](0, BATCH.normal.boxes).label_share, [[0.25]])


def test_what_the_mixed_half_leaves_out_is_in_the_students_view(monkeypatch, look):
    strong = BATCH.strong.replace(boxes=jnp.array([[[4.0, 4.0, 12.0, 12.0]]]))
    monkeypatch.setattr(
        "tests.mixtraining.test_wiring.BATCH", Batch(BATCH.normal, BATCH.weak, strong)
    )
    calls, _ = look(label_share=0.25, gt_score_threshold=0.5, pseudo_score_threshold=1.0)
    _, mixed = losses(calls)
    boxes = jnp.concatenate([BATCH.weak.boxes, strong.boxes], axis=1)
    np.testing.assert_allclose(mixed["ask_teacher"](0, boxes).label_share, [[0.25, 0]])


@pytest.mark.parametrize("half", ["mixed", "normal"])
@pytest.mark.parametrize(
    ("fields", "kept"),
    [  # of three outputs as likely as each other two are classes; all boxes are of the first, and
        # what is found is of the second
        (dict(threshold=0.4), False),
        (dict(threshold=0.4, rate_given_object=True), True),
        (dict(threshold=0.6, rate_given_object=True), False),
        (dict(threshold=0.6, rate_given_object=True, balance_classes=True), True),
    ],
)
def test_both_halves_rate_by_the_steps_criteria(monkeypatch, look, half, fields, kept):
    labels = BATCH.normal.labels
    weak, strong = (view.replace(labels=labels) for view in (BATCH.weak, BATCH.strong))
    monkeypatch.setattr("tests.mixtraining.test_wiring.BATCH", Batch(BATCH.normal, weak, strong))
    fields = dict(fields)
    threshold = fields.pop("threshold")
    calls, _ = look(mend_normal=True, gt_score_threshold=threshold, pseudo_score_threshold=1.0,
                    normal_gt_score_threshold=threshold, **fields)  # fmt: skip
    of_half = dict(zip(("normal", "mixed"), losses(calls), strict=True))[half]
    assert of_half["targets"].valid.tolist() == [[kept, False]]


@pytest.mark.parametrize("half", ["mixed", "normal"])
@pytest.mark.parametrize(("must", "mirrored", "counts"), [(False, False, True), (True, True, True),
                                                          (True, False, False)])  # fmt: skip
def test_pseudo_boxes_must_agree_where_they_are_asked_to(look, half, must, mirrored, counts):
    calls, _ = look(mirrored, must_agree=must, mend_normal=True)
    of_half = dict(zip(("normal", "mixed"), losses(calls), strict=True))[half]
    assert of_half["targets"].valid.tolist() == [[True, counts]]


def test_stochastic_depth_is_the_students_and_the_teachers_only_where_asked(look):
    for asked in (False, True):
        calls, _ = look(teacher_drop_path=asked)
        keys = {who: what["keys"] for name, who, what in calls if name == "features"}
        assert (keys["teacher"] is not None) == asked
        both = jax.random.key_data(keys["student"])
        assert both.shape[0] == 2 and (both[0] != both[1]).any()  # one each, by place


def test_the_teacher_of_a_step_is_the_moving_average(monkeypatch):
    config = recipes.base().mixtraining
    config.ema_momentum = 0.75
    config.ema_warmup_steps = 0
    seen = {}

    def gradients(student, teacher, batch, key, **_):
        seen.update(student=student, teacher=teacher)
        return jax.tree.map(jnp.zeros_like, student), {"loss": jnp.zeros(())}, None

    monkeypatch.setattr(update, "compute_gradients", gradients)
    state = TrainState(jnp.array(5), STUDENT, TEACHER, STUDENT)
    after, _, _ = update.train_step(
        state, BATCH, model=None, optimizer=small.Recorder(), config=config,
        sum_over_devices=one, mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip
    momentum = float(ema.momentum(config, jnp.array(5)))
    expected = momentum * 7 + (1 - momentum) * 1
    assert float(seen["student"]["w"]) == 1
    assert float(seen["teacher"]["w"]) == pytest.approx(expected) != 1
    assert float(after.teacher["w"]) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", ["nothing", "loss", "gradient", "update"])
def test_a_step_is_bad_where_any_of_its_numbers_is(monkeypatch, wrong):
    def number(name):
        return jnp.array(jnp.inf if wrong == name else 0.5)

    monkeypatch.setattr(
        update, "compute_gradients",
        lambda *_, **__: ({"w": number("gradient")}, {"loss": number("loss")}, None),
    )  # fmt: skip
    optimizer = types.SimpleNamespace(
        update=lambda grads, state, params: ({"w": number("update")}, {"w": jnp.full((), 9.0)})
    )
    state = TrainState(jnp.array(5), STUDENT, TEACHER, STUDENT)
    after, told, _ = update.train_step(
        state, BATCH, model=None, optimizer=optimizer, config=recipes.base().mixtraining,
        sum_over_devices=one, mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip
    good = wrong == "nothing"
    assert told["update/bad"] == 1 - good
    assert (float(after.student["w"]), float(after.optimizer["w"])) == (
        (1.5, 9) if good else (1, 1)
    )


@pytest.mark.parametrize(
    "fields",
    [
        dict(balance_classes=True),
        dict(auto_share=True, rate_given_object=True),
        dict(mend_normal=True),
        dict(soften_normal=True, label_share=0.5),
    ],
)
def test_what_is_judged_by_both_halves_is_looked_at_in_both(look, fields):
    calls, _ = look(**fields)
    seen = [what["values"] for name, who, what in calls if (name, who) == ("features", "teacher")]
    assert seen == [[WEAK], [NORMAL]]


def test_boxes_and_rois_go_from_view_to_view_the_right_way(monkeypatch):
    """With matrices that do not commute: a mirrored, shrunken view and a turned, enlarged one."""
    flip = np.array([[-0.5, 0, 30], [0, 0.5, 4], [0, 0, 1]], np.float32)
    angle = np.deg2rad(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 12], [np.sin(angle), np.cos(angle), 3], [0, 0, 1]]
    )
    turn = (turn @ np.diag([1.5, 1.5, 1])).astype(np.float32)
    weak = BATCH.weak.replace(matrix=jnp.asarray(flip)[None], size=jnp.array([[200, 200]]))
    strong = BATCH.strong.replace(matrix=jnp.asarray(turn)[None], size=jnp.array([[200, 200]]))
    monkeypatch.setattr(teaching, "bind", lambda model, params: Detector(TEACHER, [], True))
    seen = teaching.teacher_features(None, TEACHER, weak, strong)
    np.testing.assert_allclose(seen.to_strong[0], turn @ np.linalg.inv(flip), atol=1e-4)
    np.testing.assert_allclose(seen.to_weak[0], flip @ np.linalg.inv(turn), atol=1e-4)

    centre = np.array([20.0, 10.0, 1.0])  # in the original image
    x, y, _ = flip @ centre
    found = Detections(
        jnp.array([[[x - 2, y - 2, x + 2, y + 2]]], jnp.float32),
        jnp.ones((1, 1)), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool),
    )  # fmt: skip
    box = np.asarray(teaching.pseudo_boxes(found, seen, strong.size).boxes[0, 0])
    np.testing.assert_allclose([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], (turn @ centre)[:2],
                               atol=1e-2)  # fmt: skip
