"""Detects objects in image files.

python -m mixtrain_jax.predict --config=FILE --checkpoint=PATH --output=DIR IMAGE [IMAGE ...]

Writes each picture with boxes, names and scores, and detections.json: for each image its
detections, best first, as class name, category id, box (x1 y1 x2 y2 in pixels of the image) and
score. The picture of a second image x.jpg is x_2.png. Images that cannot be used are named at the
end, when all others are written.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from mixtrain_jax import cli
from mixtrain_jax.data import records, sources, views
from mixtrain_jax.evaluation import detect, pictures
from mixtrain_jax.runtime import events, files, parallel
from mixtrain_jax.runtime.errors import UserError
from mixtrain_jax.types import Params, View

REPORT = "detections.json"


def main(flags: argparse.Namespace) -> None:
    """Detects in the images the flags name."""
    config, output = flags.config, epath.Path(flags.output)
    targets = plan([epath.Path(image) for image in flags.images], output)

    parallel.start()
    params, meta = detect.load_weights(flags.checkpoint, flags.weights)
    categories = name_classes(class_count(flags.checkpoint, params), meta, config)
    config.model.num_classes = len(categories)
    detect.check_parameters(flags.checkpoint, params, config)
    names = [category["name"] for category in categories]

    predict = detect.predictor(config)
    params = parallel.place(params)
    report, unusable = [], []
    for target, image in targets.items():
        try:
            photograph = records.decode(image.read_bytes())
            view = views.single_view(photograph, config)
        except (OSError, records.Unreadable, UserError) as error:
            unusable.append(f"{image} ({error})")
            continue
        found = next(detect.detect(predict, params, [_for_all_devices(view)]))[1]
        keep = found.valid[0] & (found.scores[0] > flags.threshold)
        boxes, scores, labels = (
            np.asarray(x[0])[keep] for x in (found.boxes, found.scores, found.labels)
        )
        report.append(
            {
                "image": str(image),
                "detections": [
                    {
                        "category": names[label],
                        "category_id": categories[label]["id"],
                        "box": [round(float(x), 2) for x in box],
                        "score": round(float(score), 4),
                    }
                    for box, score, label in zip(boxes, scores, labels, strict=True)
                ],
            }
        )
        picture = pictures.of_detections(photograph, boxes, scores, labels, names)
        files.write(target, events.png(picture))
        print(f"{image}: {len(boxes)} objects, {target}", flush=True)
    files.write_json(output / REPORT, report)
    if unusable:
        raise UserError(
            f"{len(unusable)} of {len(targets)} images could not be used: {', '.join(unusable)}"
        )


def plan(images: Sequence[epath.Path], output: epath.Path) -> dict[epath.Path, epath.Path]:
    """Chooses a picture for each image; returns the images by the pictures' paths.

    Raises:
      UserError: images are missing, or one would be overwritten.
    """
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        raise UserError(f"no such image file: {', '.join(missing)}")
    targets: dict[epath.Path, epath.Path] = {}
    for image in images:
        target, number = output / f"{image.stem}.png", 1
        while target in targets:
            number += 1
            target = output / f"{image.stem}_{number}.png"
        targets[target] = image
    inputs = {image.resolve() for image in images}
    for path in (*targets, output / REPORT):
        if path.resolve() in inputs:
            raise UserError(f"{path} is an input and would be overwritten; change --output")
    return targets


def class_count(source: str, params: Params) -> int:
    """How many classes a detector's parameters tell apart; raises UserError if it is none."""
    try:
        return len(params["roi_head"]["head0"]["logits"]["bias"]) - 1  # the last is background
    except KeyError:
        raise UserError(f"{source} is no detector: it lacks roi_head/head0/logits/bias") from None


def name_classes(count: int, meta: dict, config: Any) -> list[dict[str, Any]]:
    """Returns 'id' and 'name' of each class, in label order.

    They are the checkpoint's; where it names none, those of the config's val annotations if these
    are there and list as many; else "class 1" and so on.
    """
    categories = meta.get("categories") or sources.val_categories(config.data)
    if len(categories) == count:
        return categories
    return [{"id": i, "name": f"class {i}"} for i in range(1, count + 1)]


def _for_all_devices(view: View) -> View:
    """Repeats a view of one image so that every device has one."""
    return jax.tree.map(lambda x: np.repeat(x, jax.local_device_count(), axis=0), view)


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a checkpoint, a run's directory for its newest, or WORKDIR:best for its best by AP",
    )
    parser.add_argument("--weights", default="student", choices=("student", "teacher"))
    parser.add_argument(
        "--output", required=True, help="directory for pictures and detections.json"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="least score of a detection (default 0.3)"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    return parser


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    cli.run(main, parse())
