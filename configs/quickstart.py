"""A small detector on generated images: learns from random weights on a laptop's CPU.

make quickstart   (or, with data in data/shapes:)
python -m mixtrain_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

Faster R-CNN on a narrow ResNet-18 with GroupNorm, images of 160x160 pixels. Trains plainly until
the teacher knows something, then by MixTraining, with a mild share of the mixed half.
"""

from ml_collections import ConfigDict

from mixtrain_jax.config import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    config = recipes.base()
    config.batch_size = 8
    config.epochs = 15.0  # 2812 steps

    data = config.data
    data.max_boxes = 20
    data.train.update(
        annotations="data/shapes/annotations/train.json",
        images="data/shapes/train",
        scale=(160, 128, 160),
        buckets=((160, 160),),
    )
    data.val.update(
        annotations="data/shapes/annotations/val.json",
        images="data/shapes/val",
        scale=(160, 160),
        buckets=((160, 160),),
    )

    recipes.small_detector(config.model)
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup_steps=150)
    config.eval.update(every=0, batch_size=8)
    config.checkpoint.update(every=500, keep=2)
    config.log.update(every=50, pictures_every=500)
    data.augment.cutout_ratios = (0.05, 0.1, 0.15, 0.2)  # larger ones hide whole objects here
    config.mixtraining.update(
        start_share=0.818,  # the teacher has to be good before it teaches
        gt_score_threshold=0.05,
        pseudo_score_threshold=0.9,
        mixed_loss_weight=0.5,
        ema_momentum=0.99,  # over 100 steps, as there are so few
    )
    return recipes.variants(config, argument)
