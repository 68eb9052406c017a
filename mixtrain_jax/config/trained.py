"""What a checkpoint knows of the config that it was trained by, for those who use it by another.

Arrays of one shape can mean different things: with other means, channels or anchors a detector runs
and finds nonsense.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from mixtrain_jax.config import load

# Fields, by backbone, that change what arrays mean and not their shapes.
PIXELS = ("data.channels", "data.mean", "data.std")
ANCHORS = ("model.rpn.anchor_scale", "model.rpn.anchor_ratios")
MEANINGS = {
    "resnet": ("model.backbone.style", *PIXELS),
    "swin": ("model.backbone.num_heads", "model.backbone.window_size", *PIXELS),
}


def other_meanings(config: Any, meta: Mapping[str, Any], parts: Collection[str]) -> list[str]:
    """Says which fields give the same arrays another meaning than they had in their checkpoint.

    Args:
      config: the whole config.
      meta: the checkpoint's, with the config it was trained by where it tells.
      parts: of the model, those that arrays are taken for.
    """
    before = ConfigDict(meta.get("config") or {})
    differ = []
    names = MEANINGS.get(config.model.backbone.name, PIXELS)
    for name in (*names, *(ANCHORS if "rpn" in parts else ())):
        was, now = load.tuples(load.get(before, name)), load.tuples(load.get(config, name))
        if was is not None and was != now:
            differ.append(f"config.{name} is {now}, and was {was}")
    return differ


def with_white(asked: ConfigDict, meta: Mapping[str, Any]) -> ConfigDict:
    """The config with the value that was white in training, where `config.data.white` is open.

    Args:
      asked: the whole config.
      meta: of the checkpoint.
    """
    was = load.get(ConfigDict(meta.get("config") or {}), "data.white")
    if asked.data.white is not None or was is None:
        return asked
    return load.override_all(asked, {"data.white": str(was)})
