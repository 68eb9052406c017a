"""Where training starts from: fresh parameters, or the weights of another checkpoint."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import logging
from flax import traverse_util

from mixtrain_jax.config.trained import other_meanings
from mixtrain_jax.errors import UserError
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import checkpoint, parallel
from mixtrain_jax.types import Params

Name = tuple[str, ...]  # of an array in the tree of parameters

# By backbone: the file of ImageNet weights, where it is had, and the recipe that converts it.
PRETRAINED = {
    "swin": (
        "swin_small_patch4_window7_224.pth",
        "release v1.0.0 of github.com/SwinTransformer/storage",
        "configs/faster.py",
    ),
    "resnet": (
        "resnet50_msra-5891d200.pth",
        "pretrain/third_party of OpenMMLab's downloads",
        "configs/faster_r50.py",
    ),
}


def initial_parameters(
    model: detector.Detector, config: Any, categories: Sequence[Mapping[str, Any]]
) -> Params:
    """Fresh parameters, or those of a checkpoint as far as they fit.

    Arrays the checkpoint lacks (all but the backbone's, in a classifier's) or has in another shape
    stay as initialised, and are named in the log. So do the last layers of box heads where the
    checkpoint names other classes, be they as many.

    Args:
      model: the detector.
      config: the whole config: `seed` is that of fresh parameters, `init_from` names the
        checkpoint ("": none), and fields that give its arrays another meaning are named in the log.
      categories: 'name' of each class to train on; (): unknown.

    Raises:
      UserError: there is no such checkpoint, or nothing in it fits.
    """
    params = detector.init(model, config.seed)
    if not config.init_from:
        return params
    ours = traverse_util.flatten_dict(params)
    arrays, meta = checkpoint.load_weights(config.init_from)
    taken = fitting(ours, traverse_util.flatten_dict(arrays))
    parts = {name[0] for name in taken}
    if differ := other_meanings(config, meta, parts):
        logging.warning("%s was trained otherwise: %s", config.init_from, "; ".join(differ))
    if other_classes(meta.get("categories", ()), categories):
        last = ("logits",) if model.config.roi_head.class_agnostic else ("logits", "deltas")
        taken = {n: a for n, a in taken.items() if n[0] != "roi_head" or n[-2] not in last}
    if not taken:
        raise UserError(f"config.init_from={config.init_from}: none of its arrays fits this model")
    rest = ", ".join(outline(ours.keys() - taken.keys(), taken.keys()))
    parallel.say(
        f"took {len(taken)} of {len(ours)} arrays from {config.init_from}"
        + (f"; as initialised: {rest}" if rest else "")
    )
    return traverse_util.unflatten_dict(ours | taken)


def fitting(ours: Mapping[Name, Any], theirs: Mapping[Name, Any]) -> dict[Name, Any]:
    """Those of their arrays that ours has under the same name and in the same shape."""
    return {n: theirs[n] for n in ours if n in theirs and theirs[n].shape == ours[n].shape}


def other_classes(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> bool:
    """Whether both sides name their classes, and not the same ones in the same order."""
    names = [[str(category["name"]) for category in categories] for categories in (before, now)]
    return all(names) and names[0] != names[1]


def lacks_weights(config: Any) -> bool:
    """Whether a backbone that only learns from pretrained weights is to start without any.

    Frozen batch norm keeps the statistics it starts with, and a frozen stem never learns; Swin
    learns from random weights, but on detection data alone hardly.
    """
    backbone = config.model.backbone
    if config.init_from or backbone.name not in PRETRAINED:
        return False
    return backbone.name != "resnet" or backbone.norm == "frozen_batch"


def require_weights(config: Any) -> None:
    """Refuses to train from random weights what only learns from pretrained ones.

    Args:
      config: the whole config.

    Raises:
      UserError: it names the weights, where they are had, and the command that converts them.
    """
    if not lacks_weights(config):
        return
    backbone = config.model.backbone
    file, place, recipe = PRETRAINED[backbone.name]
    trouble = "frozen batch norm" if backbone.name == "resnet" else "a Swin backbone"
    raise UserError(
        f"config.init_from is not set: {trouble} does not learn from random weights. Take {file} "
        f"({place}), run python tools/convert_torch.py --config={recipe} --input={file} "
        f"--output=weights/{backbone.name}, and add --config.init_from=weights/{backbone.name} "
        "(docs/weights.md); --from_scratch trains all the same"
    )


def outline(names: Collection[tuple[str, ...]], others: Collection[tuple[str, ...]]) -> list[str]:
    """Names arrays by the largest parts of the model that hold none of the others."""
    mixed = {name[:length] for name in others for length in range(len(name) + 1)}
    wholes = {
        next(name[:length] for length in range(len(name) + 1) if name[:length] not in mixed)
        for name in names
    }
    return sorted("/".join(whole) for whole in wholes)
