"""Faster R-CNN on Swin-S with MixTraining, 48 COCO epochs (the paper's 4x).

python -m mixtrain_jax.train --config=configs/faster.py --workdir=runs/faster

Batch 16; the released model reaches 50.3 box mAP on COCO val2017 (published, not yet reproduced
here). Start from ImageNet weights: --config.init_from=PATH (docs/weights.md). Plain training at
the same settings: --config=configs/faster.py:plain,epochs=24.
"""

from configs import common


def get_config(argument: str | None = None):
    config = common.base()
    config.epochs = 48.0
    config.steps_per_epoch = 7330
    return common.variants(config, argument)
