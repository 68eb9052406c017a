"""A small Cascade R-CNN with Swin that the released code was run on: weights, input, features.

`weights_recipe.py` makes every weight from its PyTorch name and shape, which `micro_cascade.json`
lists. `micro_cascade.npz` holds, for one image: `image` [200, 300, 3] uint8 RGB; `backbone0`
to `backbone3` [H, W, C / 4], every fourth channel; `fpn0` to `fpn4` [H, W, 32]; `proposals`
[1000, 4] and `detections` [60, 6] (box, score, label) in pixels of the image; and
`detections2`, `detections3` of the two pictures in `images`, which are resized first.
"""

import functools
import json
import pathlib

import numpy as np

from mixtrain_jax.models import torch_names
from tests.golden import weights_recipe

FOLDER = pathlib.Path(__file__).parent
SWIN = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
FPN_CHANNELS = 32
MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])


@functools.cache
def arrays():
    with np.load(FOLDER / "micro_cascade.npz") as file:
        return dict(file)


def network_input():
    """The normalised image [1, 224, 320, 3], padded as the network sees it, and its size."""
    image = arrays()["image"]
    height, width, _ = image.shape
    padded = np.zeros((1, -(-height // 32) * 32, -(-width // 32) * 32, 3), np.float32)
    padded[0, :height, :width] = (image - MEAN) / STD
    return padded, np.array([[height, width]], np.int32)


def state_dict():
    """All weights by their PyTorch names, in PyTorch's layout, as numpy arrays."""
    config = json.loads((FOLDER / "micro_cascade.json").read_text())
    return {
        name: weights_recipe.make(name, shape, config["prefix"] or "", config["gains"])
        for name, shape in config["param_shapes"].items()
        if weights_recipe.is_generated(name)
    }


def params(shapes):
    """The weights as our tree; `shapes` is a detector's tree of arrays or of shapes."""
    state = state_dict()
    return torch_names.unflatten(
        {
            path: torch_names.from_torch(path, state[name])
            for path, name in torch_names.names(shapes).items()
        }
    )


def model_config(config):
    """Shrinks `config.model` of configs/cascade.py to this model."""
    config.num_classes = 80
    config.backbone.update(**SWIN)
    config.fpn.channels = config.rpn.channels = FPN_CHANNELS
    config.roi_head.fc_channels = 64
    return config
