"""A look gives everything back in pixels of the original image, seen in a mirror or not."""

import json

import numpy as np
import pytest
from PIL import Image

from mixtrain_jax.config import load
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.evaluation import looks
from mixtrain_jax.runtime import parallel
from mixtrain_jax.types import Detections

BOXES = {"a.png": [(4, 5, 20, 30), (30, 2, 12, 9)], "b.png": [(1, 40, 9, 15)]}  # x, y, w, h
SIZES = {"a.png": (40, 60), "b.png": (64, 32)}  # height, width: enlarged and made smaller


@pytest.fixture
def seen(tmp_path):
    """A data set of a lying and a standing image, and its config."""
    images, entries = [], []
    for number, (name, (height, width)) in enumerate(SIZES.items(), 1):
        Image.new("RGB", (width, height)).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        entries += [
            {"id": len(entries) + n, "image_id": number, "category_id": 1, "bbox": box}
            for n, box in enumerate(BOXES[name], 1)
        ]
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "x.json").write_text(json.dumps(content))
    changes = {"data.train.annotations": str(tmp_path / "x.json")}
    changes |= {"data.train.images": str(tmp_path), "data.max_boxes": "4"}
    changes |= {"data.val.scale": "(96,48)", "data.val.buckets": "((96,96),)"}
    data = load.load("quickstart", changes).data
    return load_dataset(data, "train"), data


@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_come_back_to_where_they_were(seen, mirrored):
    dataset, data = seen

    def rate(params, view):  # what it finds and how it redraws: the boxes of the view themselves
        count = view.boxes.shape[-2]
        found = Detections(view.boxes, view.valid * 0.5, view.labels, view.valid)
        return found, np.ones((*view.boxes.shape[:-1], 2)) * np.arange(count)[:, None], view.boxes

    batch = 2 * parallel.device_count()
    by_row = looks.look(rate, None, dataset, data, batch, mirrored=mirrored)
    assert sorted(by_row) == [0, 1]
    for row, name in enumerate(BOXES):
        boxes, scores, labels, probabilities, refined = by_row[row]
        x, y, w, h = np.array(BOXES[name], float).T
        expected = np.stack([x, y, x + w, y + h], axis=1)
        np.testing.assert_allclose(boxes, expected, atol=1e-3)
        np.testing.assert_allclose(refined, expected, atol=1e-3)
        assert scores.tolist() == [0.5] * len(expected) and labels.tolist() == [0] * len(expected)
        assert probabilities[:, 0].tolist() == list(range(len(expected)))  # in the boxes' order
