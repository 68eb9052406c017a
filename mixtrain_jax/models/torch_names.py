"""Names and layouts of our parameters in mmdetection's PyTorch checkpoints, both ways.

Our parameters are a tree of dictionaries; a path such as "backbone/stem/conv/kernel" names a leaf.
One table of rules gives the name of each in PyTorch; since a model's tree is known, reading the
table backwards is a matter of inverting a dictionary. Layouts differ too: convolutions are OIHW
there and HWIO here, dense layers are transposed, and the first dense layer of a box head reads its
features channel by channel there and cell by cell here.
"""

import re
from typing import Any

import numpy as np
from flax import traverse_util

from mixtrain_jax.types import Params

SWIN = {
    "backbone/patch_embed": "backbone.patch_embed",
    "backbone/norm{i}": "backbone.norm{i}",
    "backbone/stage{i}/merge": "backbone.layers.{i-1}.downsample",
    "backbone/stage{i}/block{j}/attention": "backbone.layers.{i}.blocks.{j}.attn",
    "backbone/stage{i}/block{j}": "backbone.layers.{i}.blocks.{j}",
}
RESNET = {
    "backbone/stem/conv": "backbone.conv1",
    "backbone/stem/norm": "backbone.bn1",
    "backbone/stage{i}/block{j}/conv{k}": "backbone.layer{i+1}.{j}.conv{k}",
    "backbone/stage{i}/block{j}/norm{k}": "backbone.layer{i+1}.{j}.bn{k}",
    "backbone/stage{i}/block{j}/shortcut_conv": "backbone.layer{i+1}.{j}.downsample.0",
    "backbone/stage{i}/block{j}/shortcut_norm": "backbone.layer{i+1}.{j}.downsample.1",
}
NECK = {
    "fpn/lateral{i}": "neck.lateral_convs.{i}.conv",
    "fpn/output{i}": "neck.fpn_convs.{i}.conv",
    "rpn/conv": "rpn_head.rpn_conv",
    "rpn/objectness": "rpn_head.rpn_cls",
    "rpn/deltas": "rpn_head.rpn_reg",
}
BOX_HEAD = {"fc1": "shared_fcs.0", "fc2": "shared_fcs.1", "logits": "fc_cls", "deltas": "fc_reg"}
CASCADE = {
    f"roi_head/head{{i}}/{ours}": f"roi_head.bbox_head.{{i}}.{theirs}"
    for ours, theirs in BOX_HEAD.items()
}
FASTER = {
    f"roi_head/head0/{ours}": f"roi_head.bbox_head.{theirs}" for ours, theirs in BOX_HEAD.items()
}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "relative_position_bias": "relative_position_bias_table",
}
ROI_SIDE = 7


def flatten(params: Params) -> dict[str, Any]:
    """Turns a tree into {"backbone/stem/conv/kernel": leaf, ...}."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def names(params: Params) -> dict[str, str]:
    """Maps the path of each parameter of a detector to its name in mmdetection.

    Args:
      params: a detector's tree, or the tree of its shapes.
    """
    rules = dict(SWIN if "patch_embed" in params["backbone"] else RESNET)
    rules |= NECK
    rules |= FASTER if len(params["roi_head"]) == 1 else CASCADE
    return {path: _name(path, rules) for path in flatten(params)}


def _name(path: str, rules: dict[str, str]) -> str:
    module, leaf = path.rsplit("/", 1)
    for ours, theirs in rules.items():
        pattern = re.sub(r"\{(\w)\}", r"(?P<\1>\\d+)", ours) + r"(?P<rest>(/\w+)*)"
        if found := re.fullmatch(pattern, module):
            return _fill(theirs, found) + found["rest"].replace("/", ".") + "." + LEAVES[leaf]
    raise ValueError(f"no rule names {path}")


def _fill(template: str, found: re.Match[str]) -> str:
    """Puts numbers in the place of "{i}" or "{i+1}"."""
    return re.sub(r"\{(\w)([+-]\d)?\}", lambda m: str(int(found[m[1]]) + int(m[2] or 0)), template)


def to_torch(path: str, value: np.ndarray) -> np.ndarray:
    """Brings a parameter of ours into PyTorch's layout."""
    if not path.endswith("/kernel"):
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if _reads_rois(path):
        cells = value.reshape(ROI_SIDE, ROI_SIDE, -1, value.shape[1])
        return cells.transpose(3, 2, 0, 1).reshape(value.shape[::-1])
    return value.T


def from_torch(path: str, value: np.ndarray) -> np.ndarray:
    """Brings a PyTorch parameter into our layout; the inverse of `to_torch`."""
    if not path.endswith("/kernel"):
        return value
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if _reads_rois(path):
        cells = value.reshape(value.shape[0], -1, ROI_SIDE, ROI_SIDE)
        return cells.transpose(2, 3, 1, 0).reshape(value.shape[::-1])
    return value.T


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a parameter of ours has in PyTorch."""
    return to_torch(path, np.broadcast_to(np.float32(0), shape)).shape


def _reads_rois(path: str) -> bool:
    return path.startswith("roi_head/") and path.endswith("/fc1/kernel")
