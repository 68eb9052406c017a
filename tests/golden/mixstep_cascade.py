"""One MixTraining step of a small Cascade R-CNN as the released code takes it: inputs and results.

The batch holds two normal images and two mixed ones. `mixstep_cascade.npz` has the views
(`image0` to `image5`: normal, normal, strong, weak, strong, weak; cut to their own pad), human
boxes, matrices, and the numbers the released code found on the way; `mixstep_cascade.json` the
losses, sizes and weight shapes. The released code pads the whole batch to 320x320 and lets the
network see that padding.
"""

import functools
import json
import pathlib

import numpy as np

from mixtrain_jax.models import torch_names
from tests.golden import weights_recipe

FOLDER = pathlib.Path(__file__).parent
SIDE = 320
SLOTS = 8  # human boxes per image, padded


@functools.cache
def arrays():
    with np.load(FOLDER / "mixstep_cascade.npz") as file:
        return dict(file)


@functools.cache
def facts():
    return json.loads((FOLDER / "mixstep_cascade.json").read_text())


def params(shapes, prefix=""):
    """The student's weights, or with prefix "teacher.detector." the teacher's, as our tree."""
    names = torch_names.names(shapes)
    return torch_names.unflatten(
        {
            path: torch_names.from_torch(
                path,
                weights_recipe.make(name, facts()["param_shapes"][name], prefix, facts()["gains"]),
            )
            for path, name in names.items()
        }
    )


def images(rows):
    """Views [n, 320, 320, 3] float32 of the given places in the batch, and sizes [n, 2]."""
    batch = np.zeros((len(rows), SIDE, SIDE, 3), np.float32)
    for i, row in enumerate(rows):
        image = arrays()[f"image{row}"]
        batch[i, : image.shape[0], : image.shape[1]] = image
    return batch, np.array([facts()["sizes"][row] for row in rows], np.int32)


def padded(name, rows, slots=SLOTS):
    """Arrays called name.format(row), stacked and padded with zeros to `slots` rows, and a mask."""
    found = [arrays()[name.format(row)] for row in rows]
    out = np.zeros((len(rows), slots, *found[0].shape[1:]), found[0].dtype)
    for i, value in enumerate(found):
        out[i, : len(value)] = value
    return out, np.arange(slots) < np.array([[len(value)] for value in found])
