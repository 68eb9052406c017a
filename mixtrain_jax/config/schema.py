"""Every field of a config, declared once: default, one line of help, what it may hold, its kind.

`default()` makes the ml_collections ConfigDict that recipes start from. What a field may hold is
checked by `load`, what it is marked decides whether a restarted run may change it (`compare`), and
docs/config.md is written from this file by tools/config_reference.py.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mixtrain_jax.config.rules import (
    Rule,
    above,
    ascending,
    at_least,
    below_one,
    between,
    box_deltas,
    bucket_list,
    length,
    one_of,
    parts,
    scale_range,
    some,
    steps,
    texts,
)

# What a field decides, and so whether a run that is started again may have another value.
IDENTITY = "identity"  # what is learned, from what, and how: another value is another run
SCHEDULE = "schedule"  # how long, and when rates change
FREE = "free"  # what is told, kept and evaluated on the way


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    Attributes:
      default: its value in the base; of a type that overrides must have.
      help: one line.
      rule: what it may hold besides its type; None: anything.
      kind: IDENTITY, SCHEDULE or FREE.
      unset: its type, where the default is None and `resolve` fills it in.
    """

    default: Any
    help: str
    rule: Rule | None = None
    kind: str = IDENTITY
    unset: type | None = None


Group = Mapping[str, Any]  # of Fields and groups

_SHARE = between(0, 1)
_ANNOTATIONS = "COCO file, folder of VOC's XMLs, or YOLO's data.yaml or labels"
_IMAGES = "folder of the images"
_LIST = "text file that names the split's images; empty: all"
_SPLIT = "its name in a tfds source or in YOLO's data.yaml"

DATA: Group = {
    "source": Field("coco", "how annotations are written: coco, voc, yolo or tfds:NAME"),
    "classes": Field((), "of voc and yolo: their names in label order; (): those found", texts()),
    "val_share": Field(
        0.0, "so much of train is set apart as val, by the images' names; 0: nothing", below_one()
    ),
    "exif": Field(
        "auto",
        "upright: images are turned as EXIF asks; stored: they are not; auto: what fits the set",
        one_of("auto", "upright", "stored"),
    ),
    "white": Field(
        None,
        "of images of more than 8 bits, what becomes 255; unset: found in train",
        above(0),
        unset=float,
    ),
    "max_boxes": Field(100, "an image's further boxes are cut, and counted", at_least(1)),
    "mean": Field((123.675, 116.28, 103.53), "of each channel, from 0 to 255", length(3)),
    "std": Field((58.395, 57.12, 57.375), "the same", length(3, above(0))),
    "channels": Field("rgb", "order in which the network sees them", one_of("rgb", "bgr")),
    "max_bad_share": Field(0.01, "stop when more of the images cannot be read", _SHARE, FREE),
    "workers": Field(
        0,
        "images prepared at once; 0: the number of cores, fewer for very large images",
        at_least(0),
        FREE,
    ),
    "train": {
        "annotations": Field("data/coco/annotations/instances_train2017.json", _ANNOTATIONS),
        "images": Field("data/coco/train2017", _IMAGES),
        "list": Field("", _LIST),
        "split": Field("train", _SPLIT),
        "scale": Field((1333, 400, 1200), "longest long side; range of short sides", scale_range()),
        "buckets": Field((), "sizes a batch is padded to; (): chosen", bucket_list()),
        "leave_out": Field(
            (0, 1),
            "(k, K): part k of K parts of the images is not trained on; K = 1: all are",
            parts(),
        ),
        "augmentation": Field(
            "normal", "of the normal half of a batch", one_of("normal", "strong", "random")
        ),
    },
    "val": {
        "annotations": Field("data/coco/annotations/instances_val2017.json", _ANNOTATIONS),
        "images": Field("data/coco/val2017", _IMAGES),
        "list": Field("", _LIST),
        "split": Field("validation", _SPLIT),
        "scale": Field((1333, 800), "longest long side, short side", length(2, at_least(1))),
        "buckets": Field((), "sizes a batch is padded to; (): chosen", bucket_list(), FREE),
    },
    "test": {
        "annotations": Field("", f"{_ANNOTATIONS}; scale and buckets are val's", kind=FREE),
        "images": Field("", _IMAGES, kind=FREE),
        "list": Field("", _LIST, kind=FREE),
        "split": Field("", _SPLIT, kind=FREE),
    },
    "augment": {
        "flip": Field(0.5, "chance that a view is mirrored; 0 where left and right differ", _SHARE),
        "min_posterize_bits": Field(0, "bits that posterise leaves at least", between(0, 8)),
        "cutout_holes": Field((1, 5), "fewest and most holes of a strong view", ascending(2, 0)),
        "cutout_ratios": Field(
            (0.05, 0.75, 0.1, 0.125, 0.15, 0.175, 0.2),
            "sides of a hole over the view's",
            some(_SHARE),
        ),
        "released_augmentation": Field(
            False, "contrast, brightness and sharpness do nothing, as released"
        ),
    },
}

MODEL: Group = {
    "num_classes": Field(
        None, "unset: as many as the annotations have categories", at_least(1), unset=int
    ),
    "dtype": Field("bfloat16", "of the network's arithmetic", one_of("float32", "bfloat16")),
    "remat": Field(
        False, "compute the backbone's blocks again in the backward pass: less memory", kind=FREE
    ),
    "backbone": {
        "name": Field("swin", "which network: swin, resnet, or one of your own"),
        "embed_dim": Field(96, "swin: channels of the first stage", at_least(1)),
        "depths": Field((2, 2, 18, 2), "swin: blocks of each stage", length(4, at_least(1))),
        "num_heads": Field((3, 6, 12, 24), "swin: attention heads", length(4, at_least(1))),
        "window_size": Field(7, "swin: side of an attention window in tokens", at_least(1)),
        "drop_path": Field(0.2, "swin: stochastic depth of the last block", below_one()),
        "depth": Field(50, "resnet: layers", one_of(18, 34, 50, 101)),
        "base_channels": Field(64, "resnet: channels of the stem", at_least(1)),
        "style": Field(
            "caffe", "resnet: which convolution has the stride", one_of("caffe", "pytorch")
        ),
        "norm": Field(
            "frozen_batch",
            "resnet: group trains from random weights",
            one_of("frozen_batch", "group"),
        ),
        "frozen_stages": Field(
            1, "resnet, frozen_batch: the stem and so many stages do not train", between(-1, 4)
        ),
    },
    "fpn": {"channels": Field(256, "of every level", at_least(1))},
    "rpn": {
        "channels": Field(256, "of the hidden layer", at_least(1)),
        "anchor_scale": Field(8.0, "side of the square anchor over the level's stride", above(0)),
        "anchor_ratios": Field((0.5, 1.0, 2.0), "height over width", some(above(0))),
        "border": Field(-1, "0 or more: pixels an anchor may reach out of its image to be trained"),
        "positive_iou": Field(0.7, "least IoU of a positive anchor", _SHARE),
        "negative_iou": Field(0.3, "IoU below which an anchor is negative", _SHARE),
        "samples": Field(256, "anchors of an image that are trained on", at_least(1)),
        "positive_share": Field(0.5, "most positives among them", _SHARE),
        "nms_iou": Field(0.7, "overlapping proposals of a level are suppressed", _SHARE),
        "train_candidates": Field(2000, "proposals of a level before NMS, training", at_least(1)),
        "train_proposals": Field(1000, "proposals of an image after NMS, training", at_least(1)),
        "test_candidates": Field(1000, "proposals of a level before NMS, detection", at_least(1)),
        "test_proposals": Field(1000, "proposals of an image after NMS, detection", at_least(1)),
    },
    "roi_head": {
        "fc_channels": Field(1024, "of the two hidden layers", at_least(1)),
        "positive_ious": Field((0.5,), "least IoU of a positive RoI, one per stage", some(_SHARE)),
        "delta_stds": Field(((0.1, 0.1, 0.2, 0.2),), "of the deltas, one per stage", box_deltas()),
        "loss_weights": Field((1.0,), "of the losses, one per stage", some(at_least(0))),
        "class_agnostic": Field(False, "one box a RoI instead of one for each class"),
        "smooth_l1_beta": Field(0.0, "where the loss turns linear; 0: L1", at_least(0)),
        "samples": Field(512, "RoIs of an image that are trained on", at_least(1)),
        "positive_share": Field(0.25, "most positives among them", _SHARE),
        "score_threshold": Field(0.05, "detections have a score above it", _SHARE),
        "nms_iou": Field(0.5, "overlapping detections of a class are suppressed", _SHARE),
        "nms_candidates": Field(2000, "pairs of box and class that enter NMS", at_least(1)),
        "detections": Field(100, "most detections of an image", at_least(1)),
    },
}

OPTIMIZER: Group = {
    "name": Field("adamw", "which optimizer", one_of("adamw", "sgd")),
    "learning_rate": Field(1e-4, "the highest", above(0)),
    "weight_decay": Field(0.05, "adamw: not of norms, nor of biases of positions", at_least(0)),
    "momentum": Field(0.9, "sgd: of the gradients", below_one()),
    "betas": Field((0.9, 0.999), "adamw: decay of the moments", length(2, below_one())),
    "schedule": Field("steps", "how the learning rate falls", one_of("steps", "cosine"), SCHEDULE),
    "drops": Field(
        (2 / 3, 11 / 12), "steps: shares of training when it falls to a tenth", _SHARE, SCHEDULE
    ),
    "drop_steps": Field(
        None, "steps: the same in steps; unset: from drops", steps(), SCHEDULE, unset=tuple
    ),
    "warmup_steps": Field(500, "steps until the learning rate is full", at_least(0), SCHEDULE),
    "warmup_factor": Field(0.001, "share of the learning rate at the first step", _SHARE, SCHEDULE),
}

MIXTRAINING: Group = {
    "enabled": Field(True, "False: plain training"),
    "start_share": Field(
        0.0, "share of training in which all images are normal: plain training", _SHARE, SCHEDULE
    ),
    "start_step": Field(
        None, "the same in steps; unset: from start_share", at_least(0), SCHEDULE, unset=int
    ),
    "mixed_augmentation": Field(True, "human boxes the teacher rates too hard are left out"),
    "replace_boxes": Field(True, "a pseudo box replaces the human boxes it overlaps"),
    "add_missing": Field(True, "pseudo boxes that overlap no human box become targets"),
    "soft_background": Field(
        True, "a background RoI is weighted by the teacher's probability of background"
    ),
    "rate_boxes": Field(
        "weak",
        "view whose human boxes the teacher rates; strong: mapped back, as released",
        one_of("weak", "strong"),
    ),
    "gt_score_threshold": Field(
        0.9, "human boxes rated at or below it are too hard; 0: none is", _SHARE
    ),
    "pseudo_score_threshold": Field(0.9, "teacher's detections above it are pseudo boxes", _SHARE),
    "replace_score_threshold": Field(
        1.0, "beyond the paper: < 1 keeps human boxes rated above it from being replaced", _SHARE
    ),
    "iou_threshold": Field(0.5, "IoU above which a pseudo box replaces a human box", _SHARE),
    "mixed_loss_weight": Field(2.0, "of the mixed half's losses", at_least(0)),
    "ema_momentum": Field(0.999, "of the teacher's moving average", below_one()),
    "ema_warmup_steps": Field(100, "steps until the momentum is full", at_least(0)),
    "mend_normal": Field(False, "beyond the paper: mixed targets for the normal half too"),
    "normal_gt_score_threshold": Field(
        0.0,
        "with mend_normal and mixed_augmentation: gt_score_threshold in the normal half; 0: none "
        "is left out",
        _SHARE,
    ),
    "soften_normal": Field(
        False, "beyond the paper: soft background or labels in the normal half too"
    ),
    "label_share": Field(
        1.0, "beyond the paper: < 1 makes soft labels of the soft background", _SHARE
    ),
    "auto_share": Field(
        False, "beyond the paper: soft labels by how often teacher and people agree"
    ),
    "must_agree": Field(False, "beyond the paper: pseudo boxes are there in the mirrored view too"),
    "agreement_iou": Field(0.7, "IoU with which a detection is there in the mirrored view", _SHARE),
    "auto_agreement": Field(
        0.0, "beyond the paper: > 0 replaces pseudo_score_threshold, see docs/method.md", _SHARE
    ),
    "auto_count": Field(
        0.0,
        "beyond the paper: > 0 replaces pseudo_score_threshold: so many found for each human box",
        at_least(0),
    ),
    "rate_given_object": Field(
        False, "beyond the paper: ratings leave out how much a box looks like background"
    ),
    "balance_classes": Field(
        False, "beyond the paper: ratings and scores as if classes were as common as labelled"
    ),
    "teacher_drop_path": Field(False, "the teacher's stochastic depth is on, as released"),
}

# By the field that says something in epochs or shares: the one that says it in steps, and counts.
IN_STEPS = {
    "epochs": "steps",
    "optimizer.drops": "optimizer.drop_steps",
    "mixtraining.start_share": "mixtraining.start_step",
}

FIELDS: Group = {
    "seed": Field(0, "of weights, order, views and samples", between(0, 2**32 - 1)),
    "batch_size": Field(16, "images per step, over all devices; half of them mixed", at_least(1)),
    "epochs": Field(None, "length of training", above(0), SCHEDULE, unset=float),
    "steps": Field(
        None, "the same in steps; where set, it counts", at_least(1), SCHEDULE, unset=int
    ),
    "images_per_epoch": Field(
        None, "what an epoch is; unset: the training images once", at_least(1), SCHEDULE, unset=int
    ),
    "accumulate": Field(
        1, "parts that a device's images are cut into, computed one after the other", at_least(1)
    ),
    "init_from": Field("", "a checkpoint to start from: its weights, not its steps"),
    "data": DATA,
    "model": MODEL,
    "optimizer": OPTIMIZER,
    "mixtraining": MIXTRAINING,
    "eval": {
        "every": Field(7330, "steps between; 0: only after the last step", at_least(0), FREE),
        "batch_size": Field(
            None,
            "images at once, over all devices; unset: 8, or one for each device",
            at_least(1),
            FREE,
            unset=int,
        ),
        "weights": Field("student", "whose weights", one_of("student", "teacher", "both"), FREE),
        "dtype": Field("float32", "of arithmetic", one_of("float32", "bfloat16"), FREE),
        "images": Field(0, "evaluate only so many images, the first; 0: all", at_least(0), FREE),
        "patience": Field(
            0,
            "stop after so many evaluations in a row without a better AP; 0: never",
            at_least(0),
            SCHEDULE,
        ),
        "scorer": Field(
            "faster_coco_eval",
            "what computes COCO's numbers, the same with either",
            one_of("faster_coco_eval", "pycocotools"),
            FREE,
        ),
    },
    "checkpoint": {
        "every": Field(1000, "steps between checkpoints; 0: only the last", at_least(0), FREE),
        "keep": Field(2, "newest good ones kept, besides the best by AP", at_least(1), FREE),
    },
    "log": {
        "every": Field(50, "steps between log lines", at_least(1), FREE),
        "pictures_every": Field(2000, "steps between pictures of a batch", at_least(0), FREE),
    },
    "mapping": Field(
        "pmap",
        "how a step runs on all devices; shard_map: less work for the hosts of many processes",
        one_of("pmap", "shard_map"),
        FREE,
    ),
    "stall_minutes": Field(
        30.0, "end all hosts when one does not move for so long; 0: never", at_least(0), FREE
    ),
    "max_memory": Field(
        1.3, "refuse a step that takes more than this times the memory; 0: never", at_least(0), FREE
    ),
    "max_bad_steps": Field(
        10, "stop after so many steps in a row with a loss that is not finite", at_least(1), FREE
    ),
}


def default() -> ConfigDict:
    """Returns the base config: every field at its default, as the paper's recipes share it."""
    return _defaults(FIELDS)


def fields(group: Group = FIELDS, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Yields every field with its dotted name, in the order of declaration."""
    for name, member in group.items():
        if isinstance(member, Field):
            yield prefix + name, member
        else:
            yield from fields(member, f"{prefix}{name}.")


def _defaults(group: Group) -> ConfigDict:
    def value(member: Field | Group) -> Any:
        if not isinstance(member, Field):
            return _defaults(member)
        return placeholder(member.unset) if member.unset else member.default

    return ConfigDict({name: value(member) for name, member in group.items()})
