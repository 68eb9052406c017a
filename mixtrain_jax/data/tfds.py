"""Detection sets of TensorFlow Datasets (coco/2017, voc/2012, one's own builder) as a `Dataset`.

Photographs are read by row, so the set must be prepared in a format with random access
(array_record). Sizes are not part of the features, so the header of each image is read once at
start-up. Categories are numbered by their labels: TensorFlow Datasets does not keep COCO's own ids.
Photographs are numbered by their rows where the set gives them no ids, or gives one twice.
"""

import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mixtrain_jax.data import records
from mixtrain_jax.runtime.errors import UserError


def load(dataset: str, split: str, max_boxes: int, *, name: str = "tfds") -> records.Dataset:
    """Opens a split of a prepared data set with the features `image` and `objects/{bbox,label}`.

    Args:
      dataset: as `tfds.builder` takes it, such as 'coco/2017'; looked for in TFDS_DATA_DIR or the
        default folder.
      split: such as 'train' or 'validation[:10%]'.
      max_boxes: a photograph's further boxes are cut.
      name: how messages call this data set.

    Raises:
      UserError: there is no such set or split, it is not prepared for random access, or it is not a
        detection set.
    """
    builder = _builder(dataset)
    categories = _categories(dataset, builder.info.features)
    source = _source(dataset, builder, split)
    ids, files, sizes, objects = [], [], [], []
    for row in range(len(source)):
        record = source[row]
        ids.append(int(record.get("image/id", row)))
        files.append(_text(record.get("image/filename", f"row {row}")))
        sizes.append(_size(record["image"]))
        objects.append(record["objects"])
    if len(set(ids)) < len(ids):
        ids = list(range(len(ids)))

    targets = records.Targets(max_boxes)
    boxes, labels = [], []
    truth: list[dict[str, Any]] = []
    for key, size, group in zip(ids, sizes, objects, strict=True):
        found = _annotations(group, size, key, first=len(truth) + 1)
        xyxy = np.array([each["bbox"] for each in found], np.float64).reshape(-1, 4)
        xyxy[:, 2:] += xyxy[:, :2]
        kept = targets.select(
            size,
            xyxy,
            np.array([each["category_id"] for each in found], np.int32),
            np.array([each["iscrowd"] for each in found], bool),
            [each["id"] for each in found],
        )
        boxes.append(kept[0])
        labels.append(kept[1])
        truth += found

    return records.Dataset(
        name=name,
        image_ids=np.array(ids, np.int64),
        sizes=np.array(sizes, np.int32),
        boxes=boxes,
        labels=labels,
        categories=categories,
        read=lambda row: source[row]["image"],
        names=lambda row: files[row],
        ground_truth={
            "info": {},
            "images": [
                {"id": key, "file_name": file, "height": size[0], "width": size[1]}
                for key, file, size in zip(ids, files, sizes, strict=True)
            ],
            "annotations": [each for each in truth if np.isfinite(each["bbox"]).all()],
            "categories": categories,
        },
        report=records.report(name, f"tfds {dataset}", labels, categories, targets.left_out),
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
            return image.height, image.width
    except Exception:  # Pillow's decoders raise nearly anything on damaged files
        return 1, 1


def _annotations(
    objects: dict[str, Any], size: tuple[int, int], image_id: int, first: int
) -> list[dict[str, Any]]:
    """COCO annotations of boxes y1 x1 y2 x2 in shares of the sides; VOC's difficult are crowds."""
    boxes = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
    boxes = boxes * [size[1], size[0], size[1], size[0]]
    boxes[:, 2:] -= boxes[:, :2]
    ignored = objects.get("is_crowd", objects.get("is_difficult", [False] * len(boxes)))
    return [
        {
            "id": first + i,
            "image_id": image_id,
            "category_id": int(objects["label"][i]),
            "bbox": boxes[i].tolist(),
            "area": float(boxes[i, 2] * boxes[i, 3]),
            "iscrowd": int(ignored[i]),
        }
        for i in range(len(boxes))
    ]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
