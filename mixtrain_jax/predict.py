"""Detects objects in image files.

python -m mixtrain_jax.predict --config=configs/quickstart.py --checkpoint=runs/quickstart
--output=out IMAGE ...

Writes each picture with boxes, names and scores, and detections.json: for each image its
detections, best first, as class name, category id, box (x1 y1 x2 y2 in pixels of the image) and
score.
"""

import argparse

import jax
import numpy as np
from absl import logging
from etils import epath

from mixtrain_jax import cli
from mixtrain_jax.data import records, views
from mixtrain_jax.evaluate import check_parameters
from mixtrain_jax.evaluation import detect, pictures
from mixtrain_jax.runtime import checkpoint, events, files, parallel
from mixtrain_jax.runtime.errors import UserError
from mixtrain_jax.types import View


def main(flags: argparse.Namespace) -> None:
    """Detects in the images the flags name."""
    parallel.start()
    config = flags.config
    params, meta = checkpoint.load_weights(flags.checkpoint, flags.weights)
    categories = meta.get("categories")
    if categories is None:
        raise UserError(f"{flags.checkpoint} does not say what its classes are called")
    config.model.num_classes = len(categories)
    check_parameters(flags.checkpoint, params, config)
    names = [category["name"] for category in categories]
    output = epath.Path(flags.output)

    predict = detect.predictor(config)
    params = parallel.place(params)
    report, unreadable = [], []
    for path in map(epath.Path, flags.images):
        try:
            photograph = records.decode(path.read_bytes())
            view = views.single_view(photograph, config)
        except (OSError, records.Unreadable) as error:
            unreadable.append(f"{path} ({error})")
            continue
        found = next(detect.detect(predict, params, [_for_all_devices(view)]))[1]
        keep = found.valid[0] & (found.scores[0] > flags.threshold)
        boxes, scores, labels = (
            np.asarray(x[0])[keep] for x in (found.boxes, found.scores, found.labels)
        )
        report.append(
            {
                "image": str(path),
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
        target = output / f"{path.stem}.png"
        files.write(target, events.png(picture))
        print(f"{path}: {len(boxes)} objects, {target}", flush=True)
    files.write_json(output / "detections.json", report)
    if unreadable:
        raise UserError(f"{len(unreadable)} images could not be read: {', '.join(unreadable)}")


def _for_all_devices(view: View) -> View:
    """Repeats a view of one image so that every device has one."""
    return jax.tree.map(lambda x: np.repeat(x, jax.local_device_count(), axis=0), view)


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or a run's directory")
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
