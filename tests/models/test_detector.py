"""The whole detector: equal to the released one, and blind to how far a batch is padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mixtrain_jax.config import load as configs
from mixtrain_jax.models import detector, roi_heads
from mixtrain_jax.ops import matching
from mixtrain_jax.types import Targets
from tests.golden import micro_cascade as golden


def tiny(file, **backbone):
    config = configs.load(str(configs.ROOT / "configs" / file)).model
    config.num_classes = 4
    config.backbone.update(**backbone)
    config.fpn.channels = config.rpn.channels = 16
    config.rpn.update(samples=32, train_candidates=40, test_candidates=40)
    config.rpn.update(train_proposals=30, test_proposals=30, anchor_scale=4.0)
    config.roi_head.update(fc_channels=32, samples=16, score_threshold=0.01, nms_candidates=120)
    return detector.build(config, "float32")


MODELS = {
    "cascade on Swin": lambda: tiny(
        "cascade.py", embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "faster on ResNet with group norm": lambda: tiny(
        "faster.py", name="resnet", depth=18, base_channels=8, style="pytorch", norm="group"
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def params(model):
    """Weights that make scores and boxes differ clearly: the usual first ones are too timid."""
    fresh = detector.init(model, 0)
    keys = iter(jax.random.split(jax.random.key(1), 1000))

    def louder(path, leaf):
        last = jax.tree_util.keystr(path)
        if "deltas" in last or "logits" in last or "objectness" in last:
            return leaf * 20 + 0.05 * jax.random.normal(next(keys), leaf.shape)
        return leaf + 0.02 * jax.random.normal(next(keys), leaf.shape)

    return jax.tree_util.tree_map_with_path(louder, fresh)


SIZES = np.array([[90, 120], [128, 61]], np.int32)


def batch(height, width, slots):
    """Two pictures with boxes, in a bucket of the given size and with so many box slots."""
    rng = np.random.default_rng(0)
    image = np.zeros((2, height, width, 3), np.float32)
    boxes, labels = np.zeros((2, slots, 4), np.float32), np.zeros((2, slots), np.int32)
    for i, (h, w) in enumerate(SIZES):
        image[i, :h, :w] = rng.normal(size=(h, w, 3))
        corner = rng.uniform(0, (w - 40, h - 40), (3, 2))
        boxes[i, :3] = np.concatenate([corner, corner + rng.uniform(8, 40, (3, 2))], axis=-1)
        labels[i, :3] = rng.integers(4, size=3)
    valid = np.tile(np.arange(slots) < 3, (2, 1))
    return jnp.array(image), Targets(jnp.array(boxes), jnp.array(labels), jnp.array(valid))


def look(model, params, height, width, slots):
    """Features, proposals and detections in one bucket."""
    image, _ = batch(height, width, slots)

    def forward(m):
        pyramid = m.features(image, SIZES)
        proposals = m.proposals(pyramid, SIZES)
        return pyramid, proposals, m.detect(pyramid, SIZES)[0]

    return jax.jit(lambda p: model.apply({"params": p}, method=forward))(params)


def learn(model, params, height, width, slots):
    """Losses and gradients in one bucket."""
    image, targets = batch(height, width, slots)
    keys = jax.random.split(jax.random.key(7), 2)

    def losses(params):
        def forward(m):
            pyramid = m.features(image, SIZES)
            return m.losses(pyramid, SIZES, targets, keys, lambda x: x)[0]

        found = model.apply({"params": params}, method=forward)
        return sum(found.values()), found

    (_, found), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(params)
    return found, grads


def first_ones(key, positive, negative, count, max_positive):
    """Sampling without chance, since chance is drawn per anchor and buckets differ in anchors."""
    del key
    slot = jnp.arange(count)
    positives = jnp.minimum(positive.sum(), max_positive)
    hits, misses = jnp.argsort(~positive, stable=True), jnp.argsort(~negative, stable=True)
    last = len(positive) - 1
    index = jnp.where(
        slot < positives,
        hits[jnp.minimum(slot, last)],
        misses[jnp.clip(slot - positives, 0, last)],
    )
    drawn = positives + jnp.minimum(negative.sum(), count - positives)
    return matching.Sample(jnp.where(slot < drawn, index, 0), slot < positives, slot < drawn)


def test_detections_do_not_depend_on_padding(model, params):
    pyramid, proposals, found = look(model, params, 128, 128, 4)
    pyramid2, proposals2, found2 = look(model, params, 160, 224, 4)
    for level, level2 in zip(pyramid, pyramid2, strict=True):
        height, width = level.shape[1:3]
        np.testing.assert_allclose(level, level2[:, :height, :width], atol=2e-4)
        assert not np.any(level2[:, height:]) and not np.any(level2[:, :, width:])
    same(proposals, proposals2, scored=False)
    same(found, found2, scored=True)
    assert found.valid.any()


def test_losses_and_gradients_do_not_depend_on_padding(model, params, monkeypatch):
    monkeypatch.setattr(matching, "sample", first_ones)
    # Anchors are visited row by row: for the same first negatives buckets differ in height alone.
    losses, grads = learn(model, params, 128, 128, 4)
    losses2, grads2 = learn(model, params, 192, 128, 6)
    for name, value in losses.items():
        np.testing.assert_allclose(value, losses2[name], rtol=2e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(grads2), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * max(1e-3, float(jnp.abs(a).max())))


def same(ours, theirs, scored):
    """The same boxes and scores, if they have any; only equal scores may change places."""
    np.testing.assert_array_equal(ours.valid, theirs.valid)
    if scored:
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    for i, valid in enumerate(np.asarray(ours.valid)):
        columns = [np.asarray(x.boxes[i]) for x in (ours, theirs)]
        if scored:
            scores = [200 * np.asarray(x.scores[i])[:, None] for x in (ours, theirs)]
            columns = [np.concatenate(pair, axis=1) for pair in zip(columns, scores, strict=True)]
        distance = np.abs(columns[0][valid][:, None] - columns[1][valid][None]).max(-1)
        assert (distance.min(axis=0) < 2e-2).all()
        assert (distance.min(axis=1) < 2e-2).all()


@pytest.mark.golden
def test_released_detector_finds_the_same_boxes():
    config = configs.load(str(configs.ROOT / "configs" / "cascade.py")).model
    model = detector.build(golden.model_config(config), "float32")
    weights = golden.params(jax.eval_shape(lambda: detector.init(model, 0)))
    image, size = golden.network_input()

    @jax.jit
    def detect(weights):
        def forward(m):
            pyramid = m.features(image, size)
            proposals = m.proposals(pyramid, size)
            return proposals, *m.detect(pyramid, size, jnp.ones((1, 2)))

        return model.apply({"params": weights}, method=forward)

    proposals, found, exact = detect(weights)
    assert exact.all()
    theirs = golden.arrays()["proposals"]
    distance = np.abs(theirs[:, None] - np.asarray(proposals.boxes[0])).max(-1)
    assert (distance.min(axis=1) < 0.01).mean() > 0.995
    dets = golden.arrays()["detections"]  # x1 y1 x2 y2 score label
    valid = np.asarray(found.valid[0])
    assert valid.sum() == len(dets)
    order = np.argsort(-dets[:, 4], kind="stable")
    np.testing.assert_allclose(np.asarray(found.scores[0])[valid], dets[order, 4], atol=1e-3)
    for row in dets:
        distance = np.abs(np.asarray(found.boxes[0])[valid] - row[:4]).max(-1)
        other = np.asarray(found.labels[0])[valid] != int(row[5])
        assert (distance + 1e6 * other).min() < 0.1


def test_training_proposes_as_many_as_it_is_to(monkeypatch):
    model = tiny("faster.py", name="resnet", depth=18, base_channels=8, style="pytorch",
                 norm="group")  # fmt: skip
    options = ConfigDict(model.config.to_dict())
    options.num_classes = model.num_classes
    options.rpn.update(train_candidates=25, test_candidates=12, train_proposals=21,
                       test_proposals=9)  # fmt: skip
    model = detector.build(options, "float32")
    params = jax.eval_shape(lambda: detector.init(model, 0))
    seen = {}

    def losses(self, pyramid, size, proposals, *_):
        seen["training"] = proposals.boxes.shape[1]
        return {}, []

    monkeypatch.setattr(roi_heads.RoIHead, "losses", losses)
    targets = Targets(jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))

    def run(params, image, size, keys):
        bound = detector.bind(model, params)
        pyramid = bound.features(image, size)
        seen["testing"] = bound.proposals(pyramid, size).boxes.shape[1]
        return bound.losses(pyramid, size, targets, keys, lambda x: x)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    image, size = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), jnp.array([[64, 64]])
    jax.eval_shape(run, params, image, size, keys)
    assert seen == {"training": 21, "testing": 9}
