"""The released step, number by number: teacher, ratings, targets, weights, losses, gradients."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax.config import load as configs
from mixtrain_jax.mixtraining import targets as mixing
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.models import detector, rpn, torch_names
from mixtrain_jax.models.rpn import Proposals
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.ops import matching
from mixtrain_jax.types import Targets
from tests.golden import mixstep_cascade as golden

pytestmark = pytest.mark.golden

NORMAL, STRONG, WEAK = (0, 1), (2, 4), (3, 5)


def evenly(mask, count):
    """The released test's stand-in for chance: all candidates, or every (i n // count)-th of n."""
    n = mask.sum()
    slot = jnp.arange(count)
    place = jnp.where(n <= count, slot, slot * n // count)
    order = jnp.argsort(~mask, stable=True)
    return order[jnp.minimum(place, len(order) - 1)], jnp.minimum(n, count)


def sample(key, positive, negative, count, max_positive):
    del key
    first, positives = evenly(positive, max_positive)
    # How many negatives are wanted depends on the positives, so spread by hand.
    n, wanted = negative.sum(), count - positives
    slot = jnp.arange(count)
    place = jnp.where(n <= wanted, slot, slot * n // jnp.maximum(wanted, 1))
    order = jnp.argsort(~negative, stable=True)
    second = order[jnp.minimum(place, len(order) - 1)]
    drawn = positives + jnp.minimum(n, wanted)
    index = jnp.where(
        slot < positives,
        first[jnp.minimum(slot, max_positive - 1)],
        second[jnp.maximum(slot - positives, 0)],
    )
    return matching.Sample(jnp.where(slot < drawn, index, 0), slot < positives, slot < drawn)


def build(dtype):
    config = configs.load(str(configs.ROOT / "configs" / "cascade.py")).model
    config.num_classes = 80
    config.dtype = dtype
    config.backbone.update(embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), drop_path=0.0)
    config.fpn.channels = config.rpn.channels = 64
    config.roi_head.fc_channels = 128
    return detector.build(config)


@pytest.fixture(scope="module")
def model():
    return build("float32")


@pytest.fixture(scope="module")
def weights(model):
    shapes = jax.eval_shape(lambda: detector.init(model, 0))
    return golden.params(shapes), golden.params(shapes, "teacher.detector.")


def features(model, params, rows):
    """Features as the released code computes them: the batch's padding is seen."""
    images, sizes = golden.images(rows)
    everything = jnp.full_like(sizes, golden.SIDE)
    call = jax.jit(lambda p, x: model.apply({"params": p}, x, everything, method="features"))
    return call(params, images), sizes


def stored_proposals(name, rows):
    boxes = np.stack([golden.arrays()[name.format(row)] for row in rows])
    return Proposals(boxes[..., :4], np.ones(boxes.shape[:2], bool))


def human_boxes(rows):
    boxes, valid = golden.padded("in{}_gt_bboxes", rows)
    labels, _ = golden.padded("in{}_gt_labels", rows)
    return Targets(boxes, labels, valid)


@contextlib.contextmanager
def released_clip():
    """Boxes mapped to the weak view are clipped with the strong view's size, as released."""
    _, strong_size = golden.images(STRONG)
    transform = box_ops.transform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_ops, "transform", lambda boxes, m, _: transform(boxes, m, strong_size))
        yield


def see(model, weights):
    """The teacher's look at the weak views, with the released matrices."""
    pyramid, size = features(model, weights[1], WEAK)
    to_weak = [
        golden.arrays()[f"in{w}_trans_matrix"]
        @ np.linalg.inv(golden.arrays()[f"in{s}_trans_matrix"])
        for w, s in zip(WEAK, STRONG, strict=True)
    ]
    to_weak = np.stack(to_weak).astype(np.float32)
    return teaching.TeacherFeatures(pyramid, size, np.linalg.inv(to_weak), to_weak)


def ask(model, weights, look):
    """Detections with the stored proposals, ratings, pseudo boxes and combined targets."""
    _, strong_size = golden.images(STRONG)
    limits = golden.facts()["thresholds"]

    @jax.jit
    def detect(params, look, proposals):
        def forward(m):
            return m.roi_head.detect(look.pyramid, look.size, proposals)

        return model.apply({"params": params}, method=forward)

    proposals = stored_proposals("teacher{}_proposals", (0, 1))
    found, exact = detect(weights[1], look, proposals)
    above = found.replace(valid=found.valid & (found.scores > limits["score_thr"]))
    human = human_boxes(STRONG)
    with released_clip():
        ratings = jax.jit(
            lambda params, look, human: teaching.rate_boxes(
                model, params, look, teaching.back_to_weak(human, look)
            )
        )(weights[1], look, human)
    pseudo = teaching.pseudo_boxes(above, look, strong_size)
    config = configs.load(str(configs.ROOT / "configs" / "cascade.py")).mixtraining
    config.update(gt_score_threshold=limits["gt_score_thr"], iou_threshold=limits["iou_thr"])
    combined, assignment = mixing.combine(human, ratings, pseudo, config, limits["gt_score_thr"])
    return found, exact, above, ratings, pseudo, combined, assignment


@pytest.fixture(scope="module")
def look(model, weights):
    return see(model, weights)


@pytest.fixture(scope="module")
def teacher_output(model, weights, look):
    return ask(model, weights, look)


def assert_same_boxes(ours, labels, valid, theirs, their_labels, atol=0.02):
    """Compares sets of labelled boxes, each matched to the nearest of the other."""
    ours, labels = np.asarray(ours)[np.asarray(valid)], np.asarray(labels)[np.asarray(valid)]
    assert len(ours) == len(theirs)
    for box, label in zip(theirs[:, :4], their_labels, strict=True):
        distance = np.abs(ours - box).max(-1) + 1e6 * (labels != label)
        assert distance.min() < atol


def test_teacher_finds_the_same_boxes(teacher_output):
    found, exact, above, *_ = teacher_output
    assert exact.all()
    for i in range(2):
        theirs = golden.arrays()[f"teacher{i}_dets_all"]
        labels = theirs[:, 5].astype(int)
        assert_same_boxes(found.boxes[i], found.labels[i], found.valid[i], theirs, labels)
        scores = np.asarray(found.scores[i])[np.asarray(found.valid[i])]
        np.testing.assert_allclose(scores, np.sort(theirs[:, 4])[::-1], atol=5e-4)
        theirs = golden.arrays()[f"teacher{i}_pseudo_bboxes_teacher_view"]
        labels = golden.arrays()[f"teacher{i}_pseudo_labels_teacher_view"]
        assert_same_boxes(above.boxes[i], above.labels[i], above.valid[i], theirs, labels)


def test_human_boxes_are_rated_the_same(teacher_output):
    ratings = teacher_output[3]
    for i in range(2):
        theirs = golden.arrays()[f"unsup{i}_gt_own_label_score"]
        np.testing.assert_allclose(ratings[i, : len(theirs)], theirs, atol=5e-4)


def test_pseudo_boxes_and_targets_are_the_same(teacher_output):
    *_, pseudo, combined, assignment = teacher_output
    for i in range(2):
        for ours, name in ((pseudo, "pseudo_{}_student_view"), (combined, "target_{}")):
            theirs = golden.arrays()[f"unsup{i}_" + name.format("bboxes")]
            labels = golden.arrays()[f"unsup{i}_" + name.format("labels")]
            assert_same_boxes(ours.boxes[i], ours.labels[i], ours.valid[i], theirs, labels)
    assert (
        assignment.kept.any()
        and assignment.replaced.any()
        and assignment.dropped.any()
        and assignment.missing.any()
    )


def learn(model, weights, look):
    """Losses, RoI records and gradients of the student on the released targets and proposals."""
    limits = golden.facts()["thresholds"]
    boxes, valid = golden.padded("unsup{}_target_bboxes", (0, 1), 32)
    labels, _ = golden.padded("unsup{}_target_labels", (0, 1), 32)
    wanted = Targets(boxes, labels, valid)
    ask_teacher = teaching.make_ask_teacher(
        model, weights[1], look, None, people=wanted, others=wanted
    )
    images, sizes = golden.images(NORMAL + STRONG)
    keys = jax.random.split(jax.random.key(0), 4)
    proposals = stored_proposals("student{}_proposals", (0, 1, 2, 3))

    def losses(params):
        everything = jnp.full_like(sizes, golden.SIDE)

        def forward(m):
            pyramid = m.features(images, everything)
            predictions = m.rpn(pyramid, everything)
            out = []
            for rows, targets, weight in (
                (slice(0, 2), human_boxes(NORMAL), None),
                (slice(2, 4), wanted, ask_teacher),
            ):
                own = rpn.Predictions(
                    predictions.logits[rows], predictions.deltas[rows], predictions.shapes
                )
                found = rpn.losses(own, sizes[rows], targets, keys[rows], m.config.rpn, lambda x: x)
                more, records = m.roi_head.losses(
                    [level[rows] for level in pyramid],
                    sizes[rows],
                    Proposals(*(x[rows] for x in proposals)),
                    targets,
                    keys[rows],
                    lambda x: x,
                    weight,
                )
                out.append((found | more, records))
            return out

        (normal, _), (mixed, _) = out = model.apply({"params": params}, method=forward)
        loss = sum(normal.values()) + limits["unsup_weight"] * sum(mixed.values())
        return loss, [(half, rec) for half, rec in out]

    with released_clip(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "sample", sample)
        (loss, halves), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(weights[0])
    return float(loss), halves, grads


@pytest.fixture(scope="module")
def student(model, weights, look):
    return learn(model, weights, look)


def test_losses_are_the_same(student):
    total, ((normal, _), (mixed, _)), _ = student
    theirs = golden.facts()["losses"]
    names = {"loss_rpn_cls": "rpn_objectness", "loss_rpn_bbox": "rpn_boxes"}
    names |= {f"s{k}.loss_cls": f"stage{k}_class" for k in range(3)}
    names |= {f"s{k}.loss_bbox": f"stage{k}_boxes" for k in range(3)}
    for name, ours in names.items():
        np.testing.assert_allclose(
            normal[ours] + 2 * mixed[ours], theirs[name], rtol=1e-4, err_msg=name
        )
    np.testing.assert_allclose(total, theirs["loss"], rtol=1e-4)


@pytest.mark.parametrize(("half", "place"), [("sup", 0), ("unsup", 1)])
def test_losses_of_each_half_are_the_same(student, half, place):
    ours = student[1][place][0]
    for name, mine in (("cls", "rpn_objectness"), ("bbox", "rpn_boxes")):
        theirs = golden.arrays()[f"loss_{half}_raw_loss_rpn_{name}_per_level"].sum()
        np.testing.assert_allclose(ours[mine], theirs, rtol=1e-4)
    for stage, share in enumerate((1, 0.5, 0.25)):
        for name, mine in (("cls", "class"), ("bbox", "boxes")):
            theirs = golden.arrays()[f"loss_{half}_s{stage}_raw_loss_{name}"]
            np.testing.assert_allclose(ours[f"stage{stage}_{mine}"], share * theirs, rtol=1e-4)


@pytest.mark.parametrize(("half", "place"), [("sup", 0), ("unsup", 1)])
def test_rois_and_weights_are_the_same(student, half, place):
    for stage, record in enumerate(student[1][place][1]):
        theirs = golden.arrays()[f"loss_{half}_s{stage}_label_weights"]
        mask = np.asarray(record.valid)
        np.testing.assert_allclose(np.asarray(record.weights)[mask], theirs, rtol=1e-3, atol=1e-4)
        if stage == 0:
            rois = golden.arrays()[f"loss_{half}_s0_rois"][:, 1:]
            np.testing.assert_allclose(np.asarray(record.rois)[mask], rois, atol=1e-3)


def test_gradients_are_the_same(student):
    grads = student[2]
    paths = torch_names.names(grads)
    flat = torch_names.flatten(grads)
    for path, name in paths.items():
        theirs = golden.facts()["gradient_norms"][name]
        np.testing.assert_allclose(np.linalg.norm(flat[path]), theirs, rtol=2e-3, err_msg=name)
        stored = golden.arrays().get(f"grad_detector.{name}")
        if stored is not None:
            ours = torch_names.to_torch(path, np.asarray(flat[path]))
            np.testing.assert_allclose(ours, stored, rtol=2e-3, atol=2e-3 * np.abs(stored).max())


@pytest.fixture(scope="module")
def in_bfloat16(weights):
    """The same step in the arithmetic that the recipes train in."""
    model = build("bfloat16")
    look = see(model, weights)
    return ask(model, weights, look), learn(model, weights, look)


def test_the_teacher_decides_alike_in_bfloat16(in_bfloat16, teacher_output):
    """Where no score, rating or overlap is nearly its threshold, boxes have the same fate.

    Nearly is 0.05: the ratings of these images differ by up to 0.034, with JAX 0.12. Of overlaps
    0.01: on cores with products of bfloat16 a box whose overlap with a better one is 0.500 goes.
    """
    limits, near = golden.facts()["thresholds"], 0.05
    nms_iou = build("float32").config.roi_head.nms_iou
    ours, theirs = in_bfloat16[0], teacher_output
    ratings = np.asarray(theirs[3])
    np.testing.assert_allclose(ours[3], ratings, atol=near)
    clear = np.abs(ratings - limits["gt_score_thr"]) > near
    for name in ("kept", "replaced", "dropped"):
        one, other = (np.asarray(getattr(each[-1], name)) for each in (ours, theirs))
        np.testing.assert_array_equal(one[clear], other[clear], err_msg=name)
    for here, there in ((ours[2], theirs[2]), (theirs[2], ours[2])):  # pseudo boxes
        overlap = box_ops.iou(here.boxes, there.boxes)
        alike = (here.labels[..., None] == there.labels[:, None]) & there.valid[:, None]
        same = alike & (overlap > 0.8)
        better = alike & (there.scores[:, None] > here.scores[..., None])
        on_edge = (better & (jnp.abs(overlap - nms_iou) < 0.01)).any(-1)
        sure = here.valid & (here.scores > limits["score_thr"] + near) & ~on_edge
        assert sure.sum() > 10
        assert same.any(-1)[sure].all()


def test_losses_in_bfloat16(in_bfloat16, student):
    _, (total, halves, _) = in_bfloat16
    np.testing.assert_allclose(total, student[0], rtol=0.02)
    for (ours, _), (theirs, _) in zip(halves, student[1], strict=True):
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=0.05, atol=0.01, err_msg=name)


def test_gradients_point_the_same_way_in_bfloat16(in_bfloat16, student):
    """By group of weights; the longest of all may differ by a twentieth in length."""
    groups = {}
    for found, which in ((in_bfloat16[1][2], 0), (student[2], 1)):
        for path, leaf in torch_names.flatten(found).items():
            group = groups.setdefault("/".join(path.split("/")[:2]), ([], []))
            group[which].append(np.asarray(leaf, np.float64).ravel())
    assert len(groups) > 8
    for name, (ours, theirs) in groups.items():
        one, other = np.concatenate(ours), np.concatenate(theirs)
        lengths = np.linalg.norm(one), np.linalg.norm(other)
        if lengths[1] == 0:
            assert lengths[0] == 0, name
            continue
        assert one @ other / (lengths[0] * lengths[1]) >= 0.99, name
        assert 0.95 < lengths[0] / lengths[1] < 1.05, name
