"""A small detector on generated pictures: learns from random weights on a laptop's CPU.

make quickstart   (or, with data in data/shapes:)
python -m mixtrain_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

Faster R-CNN on a narrow ResNet-18 with GroupNorm, pictures of 160x160 pixels. Trains plainly until
the teacher knows something, then by MixTraining, with a mild share of the mixed half.
"""

from configs import common


def get_config(argument: str | None = None):
    config = common.base()
    config.batch_size = 8
    config.epochs = 15.0  # 2820 steps

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

    model = config.model
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

    config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup_steps=150)
    config.eval.update(every=0, batch_size=8)
    config.checkpoint.update(every=500, keep=2)
    config.log.update(every=50, pictures_every=500)
    data.augment.cutout_ratios = (0.05, 0.1, 0.15, 0.2)  # larger ones hide whole objects here
    config.mixtraining.update(
        start_step=2300,
        gt_score_threshold=0.05,
        pseudo_score_threshold=0.9,
        mixed_loss_weight=0.5,
        ema_momentum=0.99,  # over 100 steps, as there are so few
    )
    return common.variants(config, argument)
