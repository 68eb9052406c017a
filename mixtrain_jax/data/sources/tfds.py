"""Detection sets of TensorFlow Datasets (coco/2017, voc/2012, one's own builder) as `Annotations`.

Images are read by row, so the set must be prepared in a format with random access (array_record).
Sizes are not part of the features, so the header of each image is read, once on a machine
(`tfds_tables`). Categories are numbered by their labels: TensorFlow Datasets does not keep COCO's
own ids. Images are numbered by their rows where the set gives them no ids, or gives one twice. What
VOC calls difficult is to be ignored, as crowds are.
"""

import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mixtrain_jax.data.sources import image_files, tfds_tables
from mixtrain_jax.data.sources.annotations import Annotations
from mixtrain_jax.errors import UserError


def read(dataset: str, split: str) -> Annotations:
    """Opens a split of a prepared data set with the features `image` and `objects/{bbox,label}`.

    Args:
      dataset: as `tfds.builder` takes it, such as 'coco/2017'; looked for in TFDS_DATA_DIR or the
        default folder.
      split: such as 'train' or 'validation[:10%]'.

    Raises:
      UserError: there is no such set or split, it is not prepared for random access, or it is not a
        detection set.
    """
    builder = _builder(dataset)
    categories = _categories(dataset, builder.info.features)
    source = _source(dataset, builder, split)
    table = tfds_tables.kept(builder.data_dir, split, lambda: _table(source))
    return Annotations(
        source=f"tfds {dataset}",
        files=table.files.tolist(),
        paths=(),
        image_ids=table.ids,
        sizes=table.sizes,
        categories=categories,
        ids=range(1, len(table.rows) + 1),
        rows=table.rows,
        labels=table.labels,
        boxes=table.boxes,
        areas=table.areas,
        crowd=table.crowd,
        read=lambda row: source[row]["image"],
    )


def _table(source: Any) -> tfds_tables.Table:
    """Reads all records, for what they say beside their pixels."""
    ids, files, sizes = [], [], []
    rows, labels, areas, crowd = [], [], [], []
    boxes: list[np.ndarray] = [np.zeros([0, 4])]
    for row in range(len(source)):
        record = source[row]
        objects = record["objects"]
        ids.append(_number(record.get("image/id", row), row))
        files.append(_text(record.get("image/filename", f"row {row}")))
        sizes.append(_size(record["image"]))
        found = _boxes(objects, sizes[-1])
        boxes.append(found)
        rows += [row] * len(found)
        labels += [int(label) for label in objects["label"]]
        # Of COCO's sets: pixels of the mask, by which APs, APm and APl tell sizes apart.
        areas += [float(area) for area in objects.get("area", [np.nan] * len(found))]
        ignored = objects.get("is_crowd", objects.get("is_difficult", [False] * len(found)))
        crowd += [bool(each) for each in ignored]
    if len(set(ids)) < len(ids):
        ids = list(range(len(ids)))
    if len(set(files)) < len(files):  # of several folders, which are not told
        files = [f"{row:06d}_{file}" for row, file in enumerate(files)]
    return tfds_tables.Table(
        ids=np.array(ids, np.int64),
        files=np.array(files, np.str_),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        rows=np.array(rows, np.int64),
        labels=np.array(labels, np.int32),
        boxes=np.concatenate(boxes),
        areas=np.array(areas, np.float64),
        crowd=np.array(crowd, bool),
    )


def _builder(dataset: str) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(dataset)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"config.data.source 'tfds:{dataset}' cannot be opened: {first}") from None


def _categories(dataset: str, features: tfds.features.FeaturesDict) -> list[dict[str, Any]]:
    try:
        label = features["objects"]["label"]
        names = [label.int2str(i) for i in range(label.num_classes)]
        usable = "image" in features and "bbox" in features["objects"]
    except (KeyError, AttributeError, TypeError):
        usable = False
    if not usable:
        raise UserError(
            f"config.data.source 'tfds:{dataset}' is not a detection set: it needs the features "
            "'image', 'objects/bbox' and 'objects/label'"
        )
    return [{"id": i, "name": name} for i, name in enumerate(names)]


def _source(dataset: str, builder: tfds.core.DatasetBuilder, split: str) -> Any:
    if not builder.info.splits:
        raise UserError(
            f"config.data.source 'tfds:{dataset}' is not prepared in {builder.data_dir}; run: "
            f"tfds build {dataset} --file_format=array_record"
        )
    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError:
        raise UserError(
            f"config.data.source 'tfds:{dataset}' is prepared as {builder.info.file_format.value}, "
            f"without random access; delete {builder.data_dir} and run: tfds build {dataset} "
            "--file_format=array_record"
        ) from None
    except (ValueError, KeyError, AssertionError):
        raise UserError(
            f"config.data.*.split '{split}' is not a split of 'tfds:{dataset}', which has "
            f"{', '.join(builder.info.splits)}"
        ) from None


def _size(data: bytes) -> tuple[int, int]:
    """Height and width as stored; of an unreadable image 1 and 1, which decoding will deny."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image_files.stored_size(image)
    except Exception:  # Pillow's decoders raise nearly anything on damaged files
        return 1, 1


def _boxes(objects: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """[n, 4] x y width height in pixels, of boxes y1 x1 y2 x2 in shares of the sides."""
    boxes = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
    boxes = boxes * [size[1], size[0], size[1], size[0]]
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _number(value: Any, row: int) -> int:
    """An id as a number; of one that is text, the row."""
    try:
        return int(value)
    except ValueError:
        return row


def _text(value: str | bytes) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
