import os

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mixtrain_jax.data.input import batches
from mixtrain_jax.data.sources import image_files, tfds_tables
from mixtrain_jax.data.sources import tfds as reader
from mixtrain_jax.data.sources.load import check_same_categories, load_dataset
from mixtrain_jax.errors import UserError


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Four images with 0 to 3 boxes, as COCO is in TensorFlow Datasets."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="png"),
                    "image/id": np.int64,
                    "image/filename": tfds.features.Text(),
                    "objects": tfds.features.Sequence(
                        {
                            "bbox": tfds.features.BBoxFeature(),
                            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                            "is_crowd": np.bool_,
                            "area": np.int64,
                        }
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "validation": self._generate_examples()}

    def _generate_examples(self):
        for i in range(4):
            objects = [
                {
                    "bbox": tfds.features.BBox(0.1 * k, 0.2, 0.5, 0.6),
                    "label": k % 2,
                    "is_crowd": k == 2,
                    "area": 10 * i + k,  # of a mask, smaller than the box
                }
                for k in range(i)
            ]
            yield (
                i,
                {
                    "image": np.full((40, 50 + i, 3), 60 * i, np.uint8),
                    "image/id": 100 + i,
                    "image/filename": f"{i}.png",
                    "objects": objects,
                },
            )


class RepeatedIds(TinyShapes):
    """The same, with one id for all images."""

    def _generate_examples(self):
        for key, example in super()._generate_examples():
            yield key, example | {"image/id": 7}


class NotDetection(tfds.core.GeneratorBasedBuilder):
    """Photographs without boxes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {}

    def _generate_examples(self):
        yield from ()


@pytest.fixture
def prepared(tmp_path, monkeypatch, config):
    """Prepares the tiny set in a file format and points the config at it."""

    def prepare(file_format: str, builder=TinyShapes) -> None:
        monkeypatch.setattr(tfds_tables, "FOLDER", str(tmp_path / "cache"))
        monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
        config.data.source = f"tfds:{builder.name}"
        if file_format:
            builder(data_dir=str(tmp_path), file_format=file_format).download_and_prepare()

    return prepare


def test_content(prepared, config):
    prepared("array_record")
    dataset = load_dataset(config.data, "train")
    assert sorted(dataset.image_ids) == [100, 101, 102, 103]
    assert dataset.categories == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    for row, key in enumerate(dataset.image_ids):
        count = key - 100
        width = 50 + count
        assert dataset.file_name(row) == f"{count}.png"
        assert dataset.sizes[row].tolist() == [40, width]
        expected = [[0.2 * width, 4.0 * k, 0.6 * width, 20] for k in range(count)][:2]
        np.testing.assert_allclose(dataset.boxes[row], np.reshape(expected, (-1, 4)), rtol=1e-6)
        assert dataset.labels[row].tolist() == [0, 1][: min(count, 2)]
        pixels = image_files.decode(dataset.read(row), (40, int(width)))
        assert (pixels == 60 * count).all()
    assert "1 crowd boxes" in dataset.report.text
    truth = dataset.ground_truth
    assert len(truth["annotations"]) == 6
    assert [a["iscrowd"] for a in truth["annotations"]].count(1) == 1
    assert sorted(a["area"] for a in truth["annotations"]) == [10, 20, 21, 30, 31, 32]
    val = load_dataset(config.data, "val")
    check_same_categories(dataset, val)
    rows = np.concatenate([view.index for view in batches.eval_batches(val, config.data, 2)])
    assert sorted(rows[rows >= 0]) == [0, 1, 2, 3]


def test_repeated_ids_are_replaced_everywhere(prepared, config):
    prepared("array_record", RepeatedIds)
    dataset = load_dataset(config.data, "train")
    assert dataset.image_ids.tolist() == [0, 1, 2, 3]
    truth = dataset.ground_truth
    assert [image["id"] for image in truth["images"]] == [0, 1, 2, 3]
    for image in truth["images"]:
        found = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        assert image["file_name"] == f"{len(found)}.png"


def test_records_are_read_once_until_a_file_of_the_set_changes(
    prepared, config, tmp_path, monkeypatch, caplog
):
    prepared("array_record")
    read, calls = reader._table, []
    monkeypatch.setattr(reader, "_table", lambda source: calls.append(len(source)) or read(source))

    def annotations(split="train"):
        found = reader.read("tiny_shapes", split)
        names = ("files", "image_ids", "sizes", "rows", "labels", "boxes", "areas", "crowd")
        return [np.asarray(getattr(found, name)).tolist() for name in names]

    first = annotations()
    assert annotations() == first and calls == [4]
    assert len(annotations("train[:50%]")[0]) == 2 and calls == [
        4,
        2,
    ]  # another split, another table
    shard = next((tmp_path / "tiny_shapes").rglob("*train*array_record*"))
    os.utime(shard, (1, 1))
    assert annotations() == first and calls == [4, 2, 4]
    for table in (tmp_path / "cache").iterdir():
        table.write_bytes(table.read_bytes()[:100])
    assert annotations() == first and calls == [4, 2, 4, 4]
    assert "cannot be read, so the records are read again" in caplog.text
    assert annotations() == first and calls == [4, 2, 4, 4]


def test_needs_random_access(prepared, config):
    prepared("tfrecord")
    with pytest.raises(UserError, match=r"prepared as tfrecord, .* --file_format=array_record"):
        load_dataset(config.data, "train")


def test_not_prepared(prepared, config):
    prepared("")
    with pytest.raises(UserError, match=r"is not prepared in .*; run: tfds build tiny_shapes"):
        load_dataset(config.data, "train")


def test_not_a_detection_set(prepared, config):
    prepared("")
    config.data.source = "tfds:not_detection"
    with pytest.raises(UserError, match="is not a detection set"):
        load_dataset(config.data, "train")


def test_unknown_names(prepared, config):
    prepared("array_record")
    config.data.train.split = "exam"
    with pytest.raises(UserError, match=r"split 'exam' is not a split .* train, validation"):
        load_dataset(config.data, "train")
    config.data.source = "tfds:no_such_set"
    with pytest.raises(UserError, match="cannot be opened: Dataset no_such_set not found"):
        load_dataset(config.data, "train")


def test_ids_and_names_that_are_no_numbers_and_no_text():
    assert reader._number(b"frame_7", 3) == 3 and reader._number(b"12", 3) == 12
    assert reader._text(b"caf\xe9.jpg") == "caf\\xe9.jpg"
