"""Faster R-CNN on ResNet-50 with MixTraining, 96 epochs (the paper's 8x).

python -m mixtrain_jax.train --config=configs/faster_r50.py --workdir=runs/faster_r50

Batch 32, SGD, ResNet-50 in caffe style with frozen BatchNorm; it needs ImageNet weights:
--config.init_from=PATH (docs/weights.md). The paper reports 44.0 box mAP on COCO val2017 against
41.7 for plain training (published, not yet reproduced here).
"""

from ml_collections import ConfigDict

from mixtrain_jax.config import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    config = recipes.base()
    config.batch_size = 32
    config.epochs = 96.0
    config.images_per_epoch = 7330 * 32  # the released code's epoch of 7330 steps, COCO twice
    config.model.backbone.name = "resnet"
    config.data.update(channels="bgr", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))
    config.optimizer.update(name="sgd", learning_rate=0.01, weight_decay=1e-4)
    return recipes.variants(config, argument)
