"""Corrected labels go back into the format that they came in."""

import shutil

import numpy as np
import pytest
from etils import epath

from mixtrain_jax.auditing.corrections import Corrected
from mixtrain_jax.auditing.findings import MISSING, PLACE, Findings
from mixtrain_jax.auditing.labels import Labels, from_coco
from mixtrain_jax.config import load, own_data, recipes
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.evaluation.audit import too_weak, write_labels
from tests.data import cases


def read(folder):
    overrides = own_data.of_folder(str(folder), {"data.val_share": "0"})
    data = load.override_all(recipes.base(), overrides).data
    return data.source, load_dataset(data, "train")


@pytest.fixture(params=["voc", "yolo"])
def people(request, tmp_path):
    """A data set of this format: its `config.data.source` and itself."""
    {"voc": cases.voc, "yolo": cases.yolo}[request.param](tmp_path / "people")
    return read(tmp_path / "people")


def test_corrected_labels_are_written_as_they_came(people, tmp_path):
    source, dataset = people
    human, _, _ = from_coco(dataset.ground_truth, "people")
    # The first box moves, the second goes, and one is added to the third image.
    moved, added = np.float32([2, 3, 30, 33]), np.float32([5, 6, 27, 28])
    kept = np.delete(np.arange(len(human)), 1)
    boxes = np.concatenate([human.boxes[kept], added[None]])
    boxes[0] = moved
    table = Labels(
        np.append(human.image[kept], 2).astype(np.int32),
        boxes,
        np.append(human.labels[kept], 1).astype(np.int32),
    )
    finding = np.full(len(table), -1, np.int32)
    finding[0], finding[-1] = 0, 1
    corrected = Corrected(
        table, np.append(kept, -1).astype(np.int32), finding, np.array([1]), np.zeros(0, int)
    )
    found = Findings(
        image=np.array([human.image[0], 2], np.int32),
        kind=np.array([PLACE, MISSING], np.int8),
        score=np.array([0.9, 0.8], np.float32),
        human=np.array([0, -1]),
        detection=np.array([0, 1]),
        boxes=np.stack([moved, added]),
        labels=table.labels[[0, -1]],
    )
    output = epath.Path(tmp_path / "corrected.json")
    for _ in range(2):  # a second audit replaces the first one's files
        write_labels(dataset, source, corrected, found, output)

    folder = tmp_path / "corrected"
    images = folder / ("JPEGImages" if source == "voc" else "images/train")
    assert not images.exists()  # labels alone were written
    images.mkdir(parents=True)
    for file in (tmp_path / "people").rglob("*.jpg"):
        shutil.copy(file, images)
    again, there = read(folder)
    assert again == source
    names = [dataset.names(row).split("/")[-1] for row in range(len(dataset))]
    by_name = {there.names(row).split("/")[-1]: row for row in range(len(there))}
    assert by_name.keys() == set(names)
    for image, name in enumerate(names):
        mine = table.image == image
        row = by_name[name]
        # VOC has whole pixels.
        order = np.lexsort(np.rint(np.asarray(there.boxes[row])).T)
        expected = np.lexsort(np.rint(table.boxes[mine]).T)
        np.testing.assert_allclose(
            np.asarray(there.boxes[row])[order], table.boxes[mine][expected], atol=0.51
        )
        labels = [there.categories[label]["name"] for label in np.asarray(there.labels[row])[order]]
        ours = [dataset.categories[label]["name"] for label in table.labels[mine][expected]]
        assert labels == ours


@pytest.mark.parametrize(("missing", "human", "doubted"), [(300, 100, False), (301, 100, True)])
def test_a_detector_that_misses_boxes_everywhere_is_doubted(missing, human, doubted):
    summary = [
        {"class": "cat", "kind": "missing", "errors": missing},
        {"class": "all", "kind": "place", "errors": 0.0},
        {"class": "all", "kind": "missing", "errors": missing},
    ]
    said = too_weak({"summary": summary, "data": {"human_boxes": human}})
    assert ("301 boxes seem to be missing where people drew 100" in said) == doubted == bool(said)
