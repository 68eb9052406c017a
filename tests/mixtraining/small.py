"""A detector and a batch small enough to compile in seconds, for tests of the step."""

import jax
import numpy as np

from mixtrain_jax.config import load as configs
from mixtrain_jax.models import detector
from mixtrain_jax.training.optimizer import make_optimizer
from mixtrain_jax.training.update import create_state, make_step
from mixtrain_jax.types import Batch, View

CLASSES = 3
SIDE = 64
SLOTS = 4


def config(**changes):
    """The quickstart's config, shrunk, with MixTraining on from the first step."""
    result = configs.load(str(configs.ROOT / "configs" / "quickstart.py"))
    result.steps = 100
    result.model.num_classes = CLASSES
    result.model.backbone.update(base_channels=8)
    result.model.fpn.channels = result.model.rpn.channels = 8
    result.model.rpn.update(samples=16, train_candidates=20, test_candidates=20)
    result.model.rpn.update(train_proposals=16, test_proposals=16)
    result.model.roi_head.update(fc_channels=16, samples=16, nms_candidates=40, detections=8)
    result.mixtraining.update(start_step=0, mixed_loss_weight=2.0, ema_momentum=0.999)
    # Low thresholds, or a teacher of random weights would neither find nor keep anything.
    result.model.roi_head.score_threshold = 0.01
    result.mixtraining.update(pseudo_score_threshold=0.26, gt_score_threshold=0.2)
    for name, value in changes.items():
        configs.override(result, name.replace("__", "."), str(value))
    return result


def view(seed, count, first_index=0):
    """A view of `count` random images with one to three boxes each."""
    rng = np.random.default_rng(seed)
    size = rng.integers(48, SIDE + 1, (count, 2)).astype(np.int32)
    image = rng.normal(size=(count, SIDE, SIDE, 3)).astype(np.float32)
    boxes = np.zeros((count, SLOTS, 4), np.float32)
    for i, (height, width) in enumerate(size):
        image[i, height:], image[i, :, width:] = 0, 0
        corner = rng.uniform(0, 20, (SLOTS, 2))
        boxes[i] = np.concatenate([corner, corner + rng.uniform(10, 28, (SLOTS, 2))], axis=-1)
    valid = np.arange(SLOTS) < rng.integers(1, SLOTS, (count, 1))
    return View(
        image=image,
        size=size,
        matrix=np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)),
        boxes=boxes * valid[..., None],
        labels=rng.integers(CLASSES, size=(count, SLOTS)).astype(np.int32) * valid,
        valid=valid,
        index=np.arange(first_index, first_index + count, dtype=np.int32),
    )


def flipped(weak):
    """The same images seen in a mirror, with the matrix and boxes that belong to it."""
    width = weak.size[:, 1].astype(np.float32)
    image = np.zeros_like(weak.image)
    matrix = np.tile(np.diag([-1.0, 1, 1]).astype(np.float32), (len(width), 1, 1))
    boxes = weak.boxes.copy()
    for i, w in enumerate(weak.size[:, 1]):
        image[i, :, :w] = weak.image[i, :, :w][:, ::-1]
        matrix[i, 0, 2] = w
        boxes[i, :, 0], boxes[i, :, 2] = w - weak.boxes[i, :, 2], w - weak.boxes[i, :, 0]
    return weak.replace(image=image, matrix=matrix, boxes=boxes * weak.valid[..., None])


def mixed_batch(seed, half):
    """`half` normal images and `half` mixed ones."""
    weak = view(seed + 1, half, first_index=100)
    return Batch(view(seed, half), weak, flipped(weak))


def build(config):
    """Model, optimizer and first state."""
    model = detector.build(config.model)
    optimizer = make_optimizer(config.optimizer, config.model.backbone, config.steps)
    return model, optimizer, create_state(optimizer, detector.init(model, config.seed))


def step_of(config, model, optimizer, sum_over_devices=lambda x: x):
    """The train step of these, not compiled."""
    return make_step(config, model, optimizer, sum_over_devices)


def leaves(tree):
    """Arrays of a tree as numpy, by name."""
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


class Recorder:
    """Stands in for an optimizer: its state becomes the gradients it was given."""

    def update(self, grads, state, params):
        del state, params
        return jax.tree.map(lambda g: g * 0, grads), grads
