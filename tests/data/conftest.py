"""A factory of small COCO-format data sets on disk, and a config that fits them."""

import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mixtrain_jax.config import recipes
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.sources.load import load_dataset


@pytest.fixture
def config() -> ConfigDict:
    """Small scales and buckets, batches of four, a mixed half from the first step on."""
    config = recipes.base()
    config.batch_size = 4
    config.mixtraining.start_step = 0
    config.data.max_boxes = 5
    config.data.train.scale = (96, 32, 64)
    config.data.train.buckets = ((64, 64), (64, 96), (96, 64), (96, 96))
    config.data.val.scale = (96, 48)
    config.data.val.buckets = ((64, 64), (64, 96), (96, 64), (96, 96))
    config.data.workers = 2
    return config


@pytest.fixture
def coco_files(tmp_path: pathlib.Path, config: ConfigDict) -> Callable[..., dict]:
    """Writes a data set, points the config's train and val at it and returns the JSON's content.

    `sizes` are the (height, width) of the pictures, `boxes` their (x, y, w, h); `edit` may change
    the content before it is written.
    """

    def write(sizes, boxes, *, edit=None, pictures=True) -> dict:
        rng = np.random.default_rng(0)
        content: dict = {"images": [], "annotations": [], "categories": []}
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for i, (height, width) in enumerate(sizes):
            content["images"].append(
                {"id": 10 + i, "file_name": f"{i}.png", "height": height, "width": width}
            )
            if pictures:
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png", compress_level=0)
        for i, group in enumerate(boxes):
            for bbox in group:
                n = len(content["annotations"])
                category = (7, 3)[n % 2]
                content["annotations"].append(
                    {"id": 100 + n, "image_id": 10 + i, "category_id": category, "bbox": list(bbox)}
                )
        content["categories"] = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
        if edit:
            content = edit(content) or content
        (tmp_path / "set.json").write_text(json.dumps(content))
        for part in (config.data.train, config.data.val):
            part.annotations, part.images = str(tmp_path / "set.json"), str(folder)
        return content

    return write


@pytest.fixture
def dataset(coco_files: Callable[..., dict], config: ConfigDict) -> Dataset:
    """Nine images of several sizes, the last without boxes."""
    sizes = [(40, 60), (60, 40), (48, 48), (40, 60), (60, 40), (50, 55)]
    sizes += [(40, 60), (60, 40), (64, 32)]
    one, two, large = [(4, 6, 20, 20)], [(1, 1, 9, 9), (9, 9, 12, 30)], [(8, 8, 30, 30)]
    coco_files(sizes, [one, two, large, one, two, large, one, one, []])
    return load_dataset(config.data, "train")
