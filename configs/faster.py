"""Faster R-CNN on Swin-S with MixTraining, 48 COCO epochs (the paper's 4x).

python -m mixtrain_jax.train --config=configs/faster.py --workdir=runs/faster

Batch 16; the released model reaches 50.3 box mAP on COCO val2017 (published, not yet reproduced
here). Start from ImageNet weights: --config.init_from=PATH (docs/weights.md). Plain training at
the same settings: --config=configs/faster.py:plain,epochs=24.
"""

from ml_collections import ConfigDict

from mixtrain_jax.config import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    config = recipes.base()
    config.epochs = 48.0
    config.images_per_epoch = 7330 * 16  # the released code's epoch of 7330 steps: 351,840 in all
    return recipes.variants(config, argument)
