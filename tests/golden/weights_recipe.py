"""Deterministic weights for golden checks. Needs only numpy.

value = scale * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape), float32
(the product is formed in float64 and then rounded to float32).

`name` is the parameter name in the official (mmdet / PyTorch) state dict and `shape` its official
(PyTorch, i.e. OIHW / out,in) shape.  `prefix` is prepended to the name only for the seed, so a
second, different set of weights (a teacher) is made with prefix="teacher.detector.".
`gains` overrides DEFAULT_GAINS (each fixture's config.json records the gains it used).
"""

import zlib

import numpy as np

# multiplies the 1/sqrt(fan_in) scale of the named layers
DEFAULT_GAINS = {
    "fc_cls": 30.0,  # roi_head.bbox_head(.i).fc_cls.weight
    "fc_reg": 1.0,  # roi_head.bbox_head(.i).fc_reg.weight
    "rpn_cls": 4.0,  # rpn_head.rpn_cls.weight
    "rpn_reg": 0.3,  # rpn_head.rpn_reg.weight
    "conv1": 1.0,  # backbone.conv1.weight (ResNet stem only)
    "shared_fcs": 1.0,  # roi_head.bbox_head(.i).shared_fcs.j.weight
    "bn_weight": 1.0,  # every BatchNorm weight (after 1 + 0.1 n)
    "bg_bias": 0.0,  # added to the last (background) entry of every fc_cls.bias
}
# layers that read a ReLU output: each output row of the weight is made zero-mean over its inputs,
# so that the common positive part of the features does not drown the differences between boxes
ZERO_MEAN_ROWS = ("fc_cls", "fc_reg", "rpn_cls", "rpn_reg", "shared_fcs.1")


def is_generated(name):
    """False for integer buffers that are not made by the recipe."""
    return not name.endswith(("relative_position_index", "num_batches_tracked"))


def kind(name, shape):
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_mean":
        return "bn_mean"
    if leaf == "running_var":
        return "bn_var"
    if leaf == "relative_position_bias_table":
        return "rel_bias"
    if leaf == "bias":
        return "bias"
    if leaf == "weight" and len(shape) == 1:
        return "norm_weight"
    if leaf == "weight":
        return "weight"
    raise ValueError(name)


def make(name, shape, prefix="", gains=None):
    g = dict(DEFAULT_GAINS)
    g.update(gains or {})
    shape = tuple(int(s) for s in shape)
    rng = np.random.default_rng(zlib.crc32((prefix + name).encode()))
    n = rng.standard_normal(shape)
    k = kind(name, shape)
    if k == "bn_mean":
        v = 0.1 * n
    elif k == "bn_var":
        v = 1.0 + 0.1 * np.abs(n)
    elif k == "rel_bias":
        v = 0.2 * n
    elif k == "bias":
        v = 0.05 * n
        if name.endswith("fc_cls.bias"):
            v[-1] += g["bg_bias"]
    elif k == "norm_weight":
        v = 1.0 + 0.1 * n
        if ".bn" in name or "downsample.1" in name:
            v = v * g["bn_weight"]
    else:
        fan_in = int(np.prod(shape[1:]))
        if any("." + z + ".weight" in "." + name for z in ZERO_MEAN_ROWS):
            n = n - n.reshape(shape[0], -1).mean(axis=1).reshape((-1,) + (1,) * (len(shape) - 1))
        s = 1.0 / np.sqrt(fan_in)
        for key in ("fc_cls", "fc_reg", "rpn_cls", "rpn_reg", "shared_fcs"):
            if "." + key + "." in "." + name:
                s *= g[key]
        if name.endswith("backbone.conv1.weight"):
            s *= g["conv1"]
        v = s * n
    return np.asarray(v, np.float64).astype(np.float32)
