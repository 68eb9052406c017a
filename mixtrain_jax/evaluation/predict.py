"""Detection in image files: pictures with boxes, and reports as JSON, COCO or YOLO files.

Images are sorted into buckets and go through the detector in batches over all devices; threads
draw and write the pictures of one batch while the devices work on the next.
"""

import concurrent.futures
import numbers
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from mixtrain_jax.config import load
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.input import batches, buckets
from mixtrain_jax.data.input.read_errors import ReadErrors
from mixtrain_jax.data.input.single import single_view
from mixtrain_jax.data.sources import plain_images, report
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.data.sources.image_files import UnreadableImage, why
from mixtrain_jax.data.sources.load import val_categories
from mixtrain_jax.data.views import geometry
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import detect, result_files
from mixtrain_jax.evaluation.detect import Predict, Weights
from mixtrain_jax.pages import draw, fonts
from mixtrain_jax.runtime import parallel, storage
from mixtrain_jax.types import Params, View

PICTURES = ("jpg", "png", "none")


def predict(
    asked: ConfigDict,
    source: str,
    which: str,
    images: Sequence[str],
    output: epath.Path,
    threshold: float,
    *,
    save_as: str = "png",
    form: str = "json",
) -> None:
    """Detects in image files, and writes a picture of each and a report.

    Args:
      asked: the whole config.
      source: a checkpoint, as `checkpoint.load_weights` takes it.
      which: "student" or "teacher".
      images: files, folders or patterns.
      output: directory for pictures and reports.
      threshold: a detection's score is above it.
      save_as: kind of the pictures, one of PICTURES.
      form: of the report beside detections.json, one of `result_files.FORMATS`.

    Raises:
      UserError: images are missing, cannot be used or their pictures not be written (after the
        others are), or the checkpoint is no such detector.
    """
    check_threshold(threshold)
    floor = min(threshold, asked.model.roi_head.score_threshold)
    asked = load.override_all(asked, {"model.roi_head.score_threshold": str(floor)})
    stems = plain_images.find(images, without=output)
    pictures = choose_outputs(stems, output, save_as)
    weights = detect.read_weights(source, which)
    config, categories = settle(asked, weights)
    reports = result_files.files_of(output, stems, form)
    result_files.claim(output, [*pictures.values(), *reports])
    parallel.say(detect.describe(weights, config.data.val.scale))

    dataset = plain_images.dataset(list(stems), config.data)
    unusable = fitting_no_bucket(dataset, config.data.val)
    if unusable:
        dataset = plain_images.dataset(
            [path for path in stems if path not in unusable], config.data
        )
    for finding in dataset.report.findings:
        if finding.kind == report.NOTE:  # what was guessed: how they are turned and scaled
            parallel.say(str(finding))
    errors = ReadErrors(max_share=1.0)
    found = detect_in(
        dataset,
        config,
        detect.predictor(config.model, config.data, config.eval.dtype),
        parallel.replicate(weights.params),
        min(config.eval.batch_size, len(dataset)),
        threshold,
        errors,
    )
    begin = time.perf_counter()
    results, not_drawn = _drawn(dataset, found, pictures, categories)
    seconds = time.perf_counter() - begin
    unusable |= {dataset.file_name(row): reason for row, reason in errors.reasons.items()}

    in_order = [results[path] for path in stems if path in results]
    written = result_files.write(output, in_order, stems, categories, form)
    objects = sum(len(each.scores) for each in in_order)
    parallel.say(
        f"{len(in_order)} images, {objects} objects with scores above {threshold:g}, "
        f"{len(in_order) / max(seconds, 1e-9):.1f} images/s with compiling; wrote "
        + ", ".join(map(str, written))
    )
    failed = []
    for those, what in (
        (unusable, "images could not be used and were skipped"),
        (not_drawn, "pictures could not be written; what was found there is in the report"),
    ):
        if those:
            listed = ", ".join(f"{path} ({reason})" for path, reason in those.items())
            failed.append(f"{len(those)} of {len(stems)} {what}: {listed}")
    if failed:
        raise UserError("; ".join(failed))


def check_threshold(threshold: float) -> None:
    """Raises UserError unless a threshold of scores is a number from 0 to less than 1."""
    if not isinstance(threshold, numbers.Real) or not 0 <= threshold < 1:
        raise UserError(f"threshold {threshold!r}: give a number from 0 to less than 1")


def settle(asked: ConfigDict, weights: Weights) -> tuple[Any, list[dict[str, Any]]]:
    """The resolved config for images nobody has seen yet, and 'id' and 'name' of each class.

    Raises:
      UserError: the weights are no detector's, or another model's.
    """
    categories = name_classes(class_count(weights), weights.meta, asked.data)
    asked = detect.as_trained(asked, weights)
    if asked.data.exif == "auto" and weights.meta.get("exif") == "stored":
        asked = load.override_all(asked, {"data.exif": "stored"})
        parallel.say("images are not turned as EXIF asks: those it was trained on are not either")
    config = resolve(asked, classes=len(categories))
    detect.check_parameters(weights.source, weights.params, config.model)
    return config, categories


def detect_in(
    dataset: Dataset,
    config: Any,
    predict: Predict,
    params: Params,
    batch_size: int,
    threshold: float,
    errors: ReadErrors,
) -> Iterator[list[tuple[int, result_files.Found]]]:
    """Detects in each image once.

    Args:
      dataset: the images.
      config: the whole config, resolved.
      predict: what `detect.predictor` returned.
      params: parameters, replicated on all devices.
      batch_size: images at once; made a multiple of the devices.
      threshold: a detection's score is above it.
      errors: where images are counted that cannot be decoded.

    Yields:
      Of each batch the rows with what was found there; nothing of images that cannot be decoded.
    """
    if not len(dataset):
        return
    devices = parallel.device_count()
    batch_size = -(-batch_size // devices) * devices
    few = len(dataset) < batch_size and devices == 1
    if few or len(dataset) == 1:  # no pipeline is worth its start
        views = _one_by_one(dataset, config.data, devices, errors)
    else:
        views = batches.eval_batches(dataset, config.data, batch_size, read_errors=errors)
    overfull, full = 0, 0
    for index, found, exact in detect.detect(predict, params, views):
        batch = []
        overfull += int((~exact & (index >= 0)).sum())
        for number, row in enumerate(index.tolist()):
            if row < 0:
                continue
            keep = found.valid[number] & (found.scores[number] > threshold)
            full += int(keep.all())
            height, width = dataset.sizes[row].tolist()
            batch.append(
                (
                    row,
                    result_files.Found(
                        path=dataset.file_name(row),
                        size=(height, width),
                        boxes=np.asarray(found.boxes[number])[keep],
                        scores=np.asarray(found.scores[number])[keep],
                        labels=np.asarray(found.labels[number])[keep],
                    ),
                )
            )
        yield batch
    if overfull:
        logging.warning("In %d images more boxes than nms_candidates were found.", overfull)
    if full:
        logging.warning(
            "In %d images as many objects were found as config.model.roi_head.detections = %d "
            "allows; there may be more.",
            full,
            config.model.roi_head.detections,
        )


def _one_by_one(dataset: Dataset, data: Any, devices: int, errors: ReadErrors) -> Iterator[View]:
    for row in range(len(dataset)):
        image = errors.read(dataset, row)
        if image is not None:
            yield single_view(image, data, devices, row)


def _drawn(
    dataset: Dataset,
    found: Iterator[list[tuple[int, result_files.Found]]],
    pictures: Mapping[str, epath.Path],
    categories: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, result_files.Found], dict[str, str]]:
    """What was found by the image's path, once its picture is written; and why some are not."""
    names = fonts.drawable([str(category["name"]) for category in categories])
    not_drawn: dict[str, str] = {}

    def write(entry: tuple[int, result_files.Found]) -> result_files.Found:
        row, detections = entry
        target = pictures.get(detections.path)
        if target is not None:
            try:
                _draw(dataset, row, detections, target, names)
            except (OSError, ValueError, UnreadableImage) as error:  # the detections are not lost
                not_drawn[detections.path] = why(error)
        return detections

    results: dict[str, result_files.Found] = {}
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        tqdm(total=len(dataset), unit=" images", desc="predict") as bar,
    ):
        for batch in found:
            for done in pool.map(write, batch):
                results[done.path] = done
            bar.update(len(batch))
    return results, not_drawn


def _draw(
    dataset: Dataset,
    row: int,
    found: result_files.Found,
    target: epath.Path,
    names: Sequence[str],
) -> None:
    picture = draw.draw_detections(
        dataset.pixels(row), found.boxes, found.scores, found.labels, names
    )
    encode = storage.jpg if target.suffix == ".jpg" else storage.png
    storage.write(target, encode(picture))


def fitting_no_bucket(dataset: Dataset, val: Any) -> dict[str, str]:
    """The images that are too large for all buckets of `config.data.val`, and what to do."""
    views = geometry.resized(dataset.sizes, *val.scale)
    without = np.flatnonzero(buckets.fitting(views, val.buckets) < 0)
    return {
        dataset.file_name(row): str(buckets.too_small(views[row], "val"))
        for row in without.tolist()
    }


def choose_outputs(
    stems: Mapping[str, str], output: epath.Path, save_as: str
) -> dict[str, epath.Path]:
    """Chooses a picture for each image.

    Args:
      stems: by path of an image, the name that its picture is to have.
      output: directory of the pictures.
      save_as: one of PICTURES; "none": there are no pictures.

    Returns:
      The pictures by the images' paths.

    Raises:
      UserError: an image would be overwritten.
    """
    targets = {path: output / f"{stem}.{save_as}" for path, stem in stems.items()}
    if save_as == "none":
        targets = {}
    inputs = {os.path.realpath(path) for path in stems}
    for target in (*targets.values(), output / result_files.REPORT):
        if os.path.realpath(os.fspath(target)) in inputs:
            raise UserError(f"{target} is an input and would be overwritten; change --output")
    return targets


def class_count(weights: Weights) -> int:
    """How many classes a detector's parameters tell apart; raises UserError if it is none."""
    try:
        bias = weights.params["roi_head"]["head0"]["logits"]["bias"]
    except KeyError:
        raise UserError(
            f"{weights.source} is no detector: it lacks roi_head/head0/logits/bias"
        ) from None
    return len(bias) - 1  # the last is background


def name_classes(count: int, meta: dict[str, Any], data: Any) -> list[dict[str, Any]]:
    """Returns 'id' and 'name' of each class, in label order.

    They are the checkpoint's; where it names none, those of the config's val annotations if these
    are there and list as many; else "class 1" and so on.
    """
    categories = meta.get("categories") or val_categories(data)
    if len(categories) == count:
        return categories
    return [{"id": i, "name": f"class {i}"} for i in range(1, count + 1)]
