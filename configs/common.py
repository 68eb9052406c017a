"""The base of every config: all fields, their types, and the values of the released models."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
    """Returns the base; a config file changes what differs and nothing else."""
    return ConfigDict(
        dict(
            seed=0,
            batch_size=16,  # images a step, over all devices; half of them mixed
            epochs=placeholder(float),  # length of training
            steps=placeholder(int),  # the same in steps; where set, it counts
            steps_per_epoch=placeholder(int),  # unset: one pass over the training images
            accumulate=1,  # each device takes its share in this many parts, one after the other
            init_from="",  # a checkpoint to start from: weights only, step 0
            data=data(),
            model=model(),
            optimizer=optimizer(),
            mixtraining=mixtraining(),
            eval=dict(
                every=7330,  # steps between evaluations; 0: only after the last step
                batch_size=8,
                weights="student",  # student, teacher or both
                dtype="float32",  # of the network's arithmetic; bfloat16 is faster
                images=0,  # evaluate the first so many only; 0: all
            ),
            checkpoint=dict(every=1000, keep=2),  # newest ones kept, besides the best by AP
            log=dict(every=50, pictures_every=2000),
            max_bad_steps=10,  # stop after so many steps in a row with a loss that is not finite
        )
    )


def data() -> ConfigDict:
    """Where the pictures are and how they are seen."""
    return ConfigDict(
        dict(
            source="coco",  # or tfds:NAME
            max_boxes=100,  # a picture's further boxes are cut, and counted
            mean=(123.675, 116.28, 103.53),  # RGB
            std=(58.395, 57.12, 57.375),
            channels="rgb",  # order the network sees; mean and std are in this order
            max_bad_share=0.01,  # stop when more than this share of the pictures cannot be read
            workers=0,  # pictures prepared at once; 0: the number of CPU cores
            train=dict(
                annotations="data/coco/annotations/instances_train2017.json",
                images="data/coco/train2017",
                split="train",  # of a tfds source
                scale=(1333, 400, 1200),  # longest long side; range of the short side
                buckets=(),  # (height, width) a batch may be padded to; (): chosen for the data
                augmentation="normal",  # of the normal half: normal, strong or random
            ),
            val=dict(
                annotations="data/coco/annotations/instances_val2017.json",
                images="data/coco/val2017",
                split="validation",
                scale=(1333, 800),  # longest long side, short side
                buckets=(),
            ),
            augment=dict(
                min_posterize_bits=0,
                cutout_holes=(1, 5),
                cutout_ratios=(0.05, 0.75, 0.1, 0.125, 0.15, 0.175, 0.2),
                released_augmentation=False,  # True: contrast, brightness and sharpness do nothing
            ),
        )
    )


def model() -> ConfigDict:
    """A Faster R-CNN on Swin-S; Cascade is the same with three stages in `roi_head`."""
    return ConfigDict(
        dict(
            num_classes=placeholder(int),  # unset: as many as the annotations have categories
            dtype="bfloat16",  # of the network; parameters, boxes and losses are float32
            remat=False,  # recompute backbone blocks in the backward pass: less memory, more time
            backbone=dict(
                name="swin",  # swin or resnet
                # Swin
                embed_dim=96,
                depths=(2, 2, 18, 2),
                num_heads=(3, 6, 12, 24),
                window_size=7,
                drop_path=0.2,  # of the last block, growing linearly from 0
                # ResNet
                depth=50,  # 18, 34, 50 or 101
                base_channels=64,
                style="caffe",  # which convolution of a bottleneck has the stride: caffe or pytorch
                norm="frozen_batch",  # or group, to train from random weights
                frozen_stages=1,  # with frozen_batch: the stem and so many stages do not train
            ),
            fpn=dict(channels=256),
            rpn=dict(
                channels=256,
                anchor_scale=8.0,  # side of the square anchor over the level's stride
                anchor_ratios=(0.5, 1.0, 2.0),  # height over width
                border=-1,  # >= 0: anchors further outside the image than this do not train
                positive_iou=0.7,
                negative_iou=0.3,
                samples=256,  # anchors a picture
                positive_share=0.5,
                nms_iou=0.7,
                train_candidates=2000,  # a level, before NMS
                train_proposals=1000,  # a picture, after NMS
                test_candidates=1000,
                test_proposals=1000,
            ),
            roi_head=dict(
                fc_channels=1024,
                positive_ious=(0.5,),  # one entry a stage
                delta_stds=((0.1, 0.1, 0.2, 0.2),),
                loss_weights=(1.0,),
                class_agnostic=False,  # one box a RoI, or one for each class
                smooth_l1_beta=0.0,  # 0: L1
                samples=512,  # RoIs a picture
                positive_share=0.25,
                score_threshold=0.05,
                nms_iou=0.5,
                nms_candidates=2000,  # (box, class) pairs that enter NMS
                detections=100,
            ),
        )
    )


def cascade_head(config: ConfigDict) -> None:
    """Turns the RoI head of a model config into Cascade R-CNN's three stages."""
    config.roi_head.update(
        positive_ious=(0.5, 0.6, 0.7),
        delta_stds=((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)),
        loss_weights=(1.0, 0.5, 0.25),
        class_agnostic=True,
        smooth_l1_beta=1.0,
    )
    config.rpn.update(border=0, train_proposals=2000)


def optimizer() -> ConfigDict:
    """AdamW as used with Swin; ResNet configs switch to SGD."""
    return ConfigDict(
        dict(
            name="adamw",  # adamw or sgd
            learning_rate=1e-4,
            weight_decay=0.05,
            momentum=0.9,  # of sgd
            betas=(0.9, 0.999),  # of adamw
            schedule="steps",  # steps or cosine
            drops=(2 / 3, 11 / 12),  # shares of training after which the rate falls to a tenth
            warmup_steps=500,
            warmup_factor=0.001,  # the rate starts at this share
        )
    )


def mixtraining() -> ConfigDict:
    """The method, and a switch for each of its parts."""
    return ConfigDict(
        dict(
            enabled=True,
            start_step=0,  # before it every photograph is normal: plain training
            mixed_augmentation=True,  # human boxes the teacher rates too hard are left out
            replace_boxes=True,  # a pseudo box replaces the human boxes it overlaps
            add_missing=True,  # pseudo boxes without a human box become targets
            soft_background=True,  # background RoIs weigh as much as the teacher believes them
            gt_score_threshold=0.9,
            pseudo_score_threshold=0.9,
            iou_threshold=0.5,
            mixed_loss_weight=2.0,
            ema_momentum=0.999,
            ema_warmup_steps=100,
            teacher_drop_path=False,  # True: the teacher's stochastic depth is on, as released
        )
    )


def variants(config: ConfigDict, argument: str | None) -> ConfigDict:
    """Applies a config argument: comma-separated words such as `plain,strong,epochs=24`.

    Words: `plain` (no teacher), `strong` or `random` (augmentation of a plain run), `released` (the
    released code's augmentation and teacher), one word for each row of the paper's ablation table
    (see docs/ablations.md), and `epochs=N` or `steps=N`.

    Raises:
      ValueError: the argument has a word that no config knows.
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
        elif word in ABLATIONS:
            method.update(ABLATIONS[word])
        elif name == "epochs" and value:
            config.epochs = float(value)
        elif name == "steps" and value:
            config.steps = int(value)
        else:
            words = ["plain", "strong", "random", "released", *ABLATIONS, "epochs=N", "steps=N"]
            raise ValueError(f"unknown variant {word!r}; choose from {', '.join(words)}")
    return config


# Boxes that are left out are covered by the soft background, so the two go together.
ABLATIONS = {
    "mixed_augmentation": dict(replace_boxes=False, add_missing=False),
    "replace_only": dict(add_missing=False),
    "missing_only": dict(replace_boxes=False),
    "hard_background": dict(soft_background=False),
}
