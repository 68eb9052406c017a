"""What recipes share: the base config, Cascade's head, and the words of a recipe's argument.

A recipe is a file in configs/ with `get_config(argument)`: it takes the base, changes what differs,
and hands the argument to `variants`.
"""

from ml_collections import ConfigDict

from mixtrain_jax.config import schema

# Rows of the paper's ablation: each is all of its switches, whatever the recipe has.
# Boxes that are left out are covered by the soft background, so the two go together.
ABLATIONS = {
    "mixed_augmentation": dict(replace_boxes=False, add_missing=False, soft_background=True),
    "replace_only": dict(replace_boxes=True, add_missing=False, soft_background=True),
    "missing_only": dict(replace_boxes=False, add_missing=True, soft_background=True),
    "hard_background": dict(replace_boxes=True, add_missing=True, soft_background=False),
}
WORDS = ("plain", "strong", "random", "released", *ABLATIONS, "epochs=N", "steps=N")


def base() -> ConfigDict:
    """Returns the base of every recipe; all fields stand in `mixtrain_jax/config/schema.py`."""
    return schema.default()


def cascade_head(model: ConfigDict) -> None:
    """Gives a model config, Faster R-CNN's, the three stages of Cascade R-CNN."""
    model.roi_head.update(
        positive_ious=(0.5, 0.6, 0.7),
        delta_stds=((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)),
        loss_weights=(1.0, 0.5, 0.25),
        class_agnostic=True,
        smooth_l1_beta=1.0,
    )
    model.rpn.update(border=0, train_proposals=2000)


def small_detector(model: ConfigDict) -> None:
    """Makes a model config that of a small detector: a narrow ResNet-18 that needs no weights."""
    model.dtype = "float32"
    model.backbone.update(name="resnet", depth=18, base_channels=32, style="pytorch", norm="group")
    model.fpn.channels = 64
    model.rpn.update(
        channels=64,
        anchor_scale=4.0,
        samples=128,
        train_candidates=200,
        train_proposals=96,
        test_candidates=200,
        test_proposals=96,
    )
    model.roi_head.update(fc_channels=256, samples=48, class_agnostic=True, nms_candidates=300)


def variants(config: ConfigDict, argument: str | None) -> ConfigDict:
    """Applies a recipe's argument: comma-separated words such as `plain,strong,epochs=24`.

    Words: `plain` (the teacher follows and is not asked), `strong` or `random` (augmentation of a
    plain run), `released` (the released code's augmentation and teacher), one word for each row of
    the paper's ablation table (see docs/ablations.md), and `epochs=N` or `steps=N`.

    Raises:
      ValueError: the argument has a word that no recipe knows.
    """
    method = config.mixtraining
    for word in filter(None, (argument or "").split(",")):
        name, _, value = word.partition("=")
        if word == "plain":
            method.enabled = False
        elif word in ("strong", "random"):
            method.enabled = False
            config.data.train.augmentation = word
        elif word == "released":
            config.data.augment.released_augmentation = True
            method.gt_score_threshold = 1.0
            method.teacher_drop_path = True
            method.rate_boxes = "strong"
        elif word in ABLATIONS:
            method.update(ABLATIONS[word])
        elif name == "epochs" and value:
            config.update(epochs=float(value), steps=None)
        elif name == "steps" and value:
            config.steps = int(value)
        else:
            raise ValueError(f"unknown variant {word!r}; choose from {', '.join(WORDS)}")
    return config
