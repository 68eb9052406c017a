"""Losses, refinement and detection of a head with a box for each class, against plain loops.

The stages' networks are given their answers, so that only what is made of them is looked at.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from mixtrain_jax.config import recipes
from mixtrain_jax.models import roi_heads
from mixtrain_jax.models.roi_heads import BoxHead, RoIHead, TeacherAnswer
from mixtrain_jax.models.rpn import Proposals
from mixtrain_jax.types import Targets

CLASSES, ROIS = 3, 5
SIZE = jnp.array([[100, 100]])
STDS = (0.1, 0.1, 0.2, 0.2)


class Given(RoIHead):
    """A head whose network says `logits` [1, K, 4] and `deltas` [1, K, 3, 4] whatever it sees."""

    logits: tuple = ()
    deltas: tuple = ()
    sampled: tuple = ()

    def predict(self, stage, pyramid, size, boxes):
        return jnp.array(self.logits)[None], jnp.array(self.deltas)[None]

    def _sample(self, stage, boxes, valid, targets, keys):
        return roi_heads.SampledRoIs(*(jnp.array(part)[None] for part in self.sampled))


@pytest.fixture(params=[0.0, 1.0])
def given(request):
    """A head of one stage, box loss L1 (as the released Faster configs have it) or smooth L1."""
    config = recipes.base().model.roi_head
    config.update(smooth_l1_beta=request.param, score_threshold=0.0, detections=15)
    assert not config.class_agnostic and tuple(config.delta_stds[0]) == STDS
    rng = np.random.default_rng(3)

    def tuples(array):
        return tuple(map(tuples, array)) if array.ndim > 1 else tuple(array.tolist())

    rois = np.array([[10, 10, 30, 30], [40, 20, 60, 70], [5, 60, 25, 90], [50, 50, 90, 90],
                     [0, 0, 0, 0]], float)  # fmt: skip
    labels = np.array([0, 2, CLASSES, 1, CLASSES])
    valid = np.array([True, True, True, True, False])
    wanted = rng.normal(size=(ROIS, 4))
    sampled = tuples(rois), tuples(labels), tuples(wanted), (labels < CLASSES).tolist()
    sampled = (*sampled[:3], tuple(sampled[3]), tuple(valid.tolist()), tuple(range(ROIS)))
    logits, deltas = rng.normal(size=(ROIS, CLASSES + 1)), rng.normal(size=(ROIS, CLASSES, 4))
    head = Given(CLASSES, FrozenConfigDict(config), logits=tuples(logits), deltas=tuples(deltas),
                 sampled=sampled)  # fmt: skip
    return (
        head,
        request.param,
        dict(rois=rois, labels=labels, valid=valid, wanted=wanted, logits=logits, deltas=deltas),
    )


def decoded(roi, deltas):
    """A box by Faster R-CNN's formulas, clipped to 100 x 100."""
    x, y = (roi[0] + roi[2]) / 2, (roi[1] + roi[3]) / 2
    w, h = roi[2] - roi[0], roi[3] - roi[1]
    dx, dy, dw, dh = (delta * std for delta, std in zip(deltas, STDS, strict=True))
    x, y, w, h = x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)
    return np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, 100)


def losses(head, answer):
    """What the head has as losses and as record where the teacher says `answer` of its RoIs."""
    proposals = Proposals(jnp.zeros((1, 1, 4)), jnp.ones((1, 1), bool))
    targets = Targets(jnp.zeros((1, 0, 4)), jnp.zeros((1, 0), int), jnp.zeros((1, 0), bool))
    found, (record,) = head.apply(
        {}, (), SIZE, proposals, targets, jax.random.split(jax.random.key(0), 1), lambda x: x,
        lambda stage, rois: answer, method="losses",
    )  # fmt: skip
    return found, record


def test_losses_are_those_of_a_loop(given):
    head, beta, of = given
    background = np.array([0.9, 0.9, 0.25, 0.9, 0.9])  # asked for where the label is background
    answer = TeacherAnswer(
        jnp.stack([1 - background, *np.zeros((2, 5)), background], axis=-1)[None]
    )
    found, record = losses(head, answer)
    weights = [1.0, 1.0, 0.25, 1.0, 0.0]
    weights = [w * 4 / sum(weights) for w in weights]  # their mean over the sampled RoIs is 1
    entropy = box = 0.0
    for k in range(ROIS):
        chances = np.exp(of["logits"][k]) / np.exp(of["logits"][k]).sum()
        entropy -= weights[k] * np.log(chances[of["labels"][k]])
        if of["labels"][k] < CLASSES:
            for own, wanted in zip(of["deltas"][k, of["labels"][k]], of["wanted"][k], strict=True):
                far = abs(own - wanted)
                box += far if not beta else (far**2 / 2 if far < 1 else far - 0.5)
    assert float(found["stage0_class"]) == pytest.approx(entropy / 4, rel=1e-5)
    assert float(found["stage0_boxes"]) == pytest.approx(box / 4, rel=1e-5)
    best = of["logits"].argmax(1)
    assert record.correct[0].tolist() == ((best == of["labels"]) & of["valid"]).tolist()


def test_soft_labels_are_those_of_a_loop(given):
    head, beta, of = given
    rng = np.random.default_rng(4)
    said = rng.dirichlet(np.ones(CLASSES + 1), ROIS)
    share = np.array([1.0, 0.3, 0.3, 0.0, 0.3])
    found, record = losses(head, TeacherAnswer(jnp.array(said)[None], jnp.array(share)[None]))
    entropy = box = 0.0
    for k in np.flatnonzero(of["valid"]):
        chances = np.exp(of["logits"][k]) / np.exp(of["logits"][k]).sum()
        label = of["labels"][k]
        entropy -= share[k] * np.log(chances[label])
        entropy -= (1 - share[k]) * said[k] @ np.log(chances)
        if label < CLASSES:
            for own, wanted in zip(of["deltas"][k, label], of["wanted"][k], strict=True):
                far = abs(own - wanted)
                box += far if not beta else (far**2 / 2 if far < 1 else far - 0.5)
    assert float(found["stage0_class"]) == pytest.approx(entropy / 4, rel=1e-5)
    assert float(found["stage0_boxes"]) == pytest.approx(box / 4, rel=1e-4)
    np.testing.assert_array_equal(record.weights[0], of["valid"])


def test_refined_and_detected_boxes_are_their_classes(given):
    head, _, of = given
    boxes, labels = jnp.array(of["rois"])[None], jnp.array(of["labels"])[None]
    refined = head.apply({}, 0, boxes, jnp.array(of["deltas"])[None], labels, SIZE, method="refine")
    for k in range(ROIS):
        label = min(of["labels"][k], CLASSES - 1)
        np.testing.assert_allclose(refined[0, k], decoded(of["rois"][k], of["deltas"][k, label]),
                                   atol=1e-3)  # fmt: skip

    proposals = Proposals(boxes, jnp.array(of["valid"])[None])
    scale = jnp.array([[2.0, 4.0]])
    found, _ = head.apply({}, (), SIZE, proposals, scale, method="detect")
    kept = np.asarray(found.valid[0])
    assert kept.sum() == 4 * CLASSES  # far from each other
    for box, score, label in zip(*(np.asarray(part[0])[kept] for part in
                                   (found.boxes, found.scores, found.labels))):  # fmt: skip
        chances = np.exp(of["logits"]) / np.exp(of["logits"]).sum(1, keepdims=True)
        k = int(np.abs(chances[:, label] - score).argmin())
        assert score == pytest.approx(chances[k, label], rel=1e-5)
        expected = decoded(of["rois"][k], of["deltas"][k, label]) / [2, 4, 2, 4]
        np.testing.assert_allclose(box, expected, atol=1e-3)


class Staged(RoIHead):
    """A head of two stages; the second is asked about what the first has drawn."""

    def predict(self, stage, pyramid, size, boxes):
        logits = jnp.array([[[0.0, 2.0, 1.0, 0.0], [3.0, 0.0, 0.0, 0.0]][stage]])[None]
        return logits, jnp.full((1, 1, CLASSES, 4), 0.5 + stage)


def test_boxes_are_rated_by_all_stages():
    config = recipes.base().model.roi_head
    config.update(positive_ious=(0.5, 0.6), loss_weights=(1.0, 0.5), class_agnostic=False)
    config.delta_stds = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1))
    head = Staged(CLASSES, FrozenConfigDict(config))
    box = np.array([20.0, 30.0, 50.0, 60.0])

    def drawn(roi, stage):
        halved = (0.5 + stage) / (1 + stage)  # the second stage's stds are half of the first's
        return decoded(roi, [halved] * 4)

    chances, boxes = head.apply({}, (), SIZE, jnp.array(box)[None, None], method="score_and_refine")
    logits = np.array([1.5, 1, 0.5, 0])
    np.testing.assert_allclose(chances[0, 0], np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)
    np.testing.assert_allclose(boxes[0, 0], drawn(drawn(box, 0), 1), atol=1e-3)


def test_each_class_has_four_neighbouring_outputs():
    """As in mmdetection's fc_reg, whose rows a converted checkpoint brings: class by class."""
    head = BoxHead(CLASSES, 8, False, jnp.float32)
    pooled = jax.random.normal(jax.random.key(1), (1, 2, 7, 7, 4))
    params = head.init(jax.random.key(0), pooled)["params"]
    logits, deltas = head.apply({"params": params}, pooled)
    hidden = np.asarray(pooled).reshape(2, -1)
    for name in ("fc1", "fc2"):
        hidden = np.maximum(hidden @ params[name]["kernel"] + params[name]["bias"], 0)
    assert logits.shape == (1, 2, CLASSES + 1) and deltas.shape == (1, 2, CLASSES, 4)
    for c in range(CLASSES):
        rows = slice(4 * c, 4 * c + 4)
        expected = hidden @ params["deltas"]["kernel"][:, rows] + params["deltas"]["bias"][rows]
        np.testing.assert_allclose(deltas[0, :, c], expected, atol=1e-5)


def test_box_losses_by_hand():
    far = jnp.array([0.5, -0.5, 1.0, -3.0])
    np.testing.assert_allclose(roi_heads._smooth_l1(far, 0.0), [0.5, 0.5, 1, 3])
    np.testing.assert_allclose(roi_heads._smooth_l1(far, 1.0), [0.125, 0.125, 0.5, 2.5])
    np.testing.assert_allclose(roi_heads._smooth_l1(far, 0.5), [0.25, 0.25, 0.75, 2.75])
