"""Cascade R-CNN on Swin-S with MixTraining, 48 epochs (the paper's 4x).

python -m mixtrain_jax.train --config=configs/cascade.py --workdir=runs/cascade

Batch 32; the released model reaches 52.8 box mAP on COCO val2017 (published, not yet reproduced
here). Start from ImageNet weights: --config.init_from=PATH (docs/weights.md). Plain training at
the same settings: --config=configs/cascade.py:plain.
"""

from ml_collections import ConfigDict

from mixtrain_jax.config import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    config = recipes.base()
    config.batch_size = 32
    config.epochs = 48.0
    config.images_per_epoch = 7330 * 32  # the released code's epoch of 7330 steps, COCO twice
    recipes.cascade_head(config.model)
    return recipes.variants(config, argument)
