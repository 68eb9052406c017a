"""Large annotation files: how long reading and planning take, and how much memory."""

import json
import os
import pathlib
import tempfile
import time

import numpy as np
from PIL import Image

from mixtrain_jax.config import load as configs
from mixtrain_jax.data.input import plan
from mixtrain_jax.data.sources import coco, load
from tools.benchmarks import host, measure

_BLOCK = 100_000  # entries written at once
_LINKS = 50_000  # names of one file; file systems allow some 65,000


def run(images: int, boxes: int) -> list[measure.Row]:
    """Reads and checks a generated COCO file, and looks at image files as training does."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        write(place, images, boxes)
        size = (place / "annotations.json").stat().st_size / 1e9
        row = _measured(
            f"annotations of {images:,} images with {boxes:,} boxes, {size:.2f} GB",
            lambda: load.complete(
                coco.read(str(place / "annotations.json"), str(place / "images")), "train", 100
            ),
        )
    return [row]


def run_plan(sizes: int) -> list[measure.Row]:
    """Chooses buckets for images of as many different sizes, and plans the first step."""
    rng = np.random.default_rng(0)
    every = np.unique(rng.integers(300, 1500, (2 * sizes, 2)), axis=0)
    dataset = host.declared(rng.permutation(every)[:sizes])
    config = configs.load(str(configs.ROOT / "configs/faster.py"))

    def first_step() -> plan.Step:
        return next(plan.steps(plan.Stream(dataset, 0, config.data.train), 16, 0))

    return [_measured(f"buckets and first step of {sizes:,} different sizes", first_step)]


def _measured(case: str, call) -> measure.Row:
    """Seconds of one call, and how much the resident memory grew by at most."""
    measure.reset_peak()
    before, begin = measure.peak_gb(), time.perf_counter()
    call()
    took = time.perf_counter() - begin
    return {"case": case, "median": took, "grown_gb": measure.peak_gb() - before}


def write(place: pathlib.Path, images: int, boxes: int) -> None:
    """Writes annotations.json, and images that are links to a few small files."""
    rng = np.random.default_rng(0)
    (place / "images").mkdir()
    for number in range(images):
        path = place / "images" / f"{number:012d}.jpg"
        if number % _LINKS == 0:
            Image.new("L", (640, 480)).save(path)
            file = path
        else:
            os.link(file, path)
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    with (place / "annotations.json").open("w") as out:
        out.write('{"images": [')
        for start in range(0, images, _BLOCK):
            entries = (
                {"id": n, "file_name": f"{n:012d}.jpg", "height": 480, "width": 640}
                for n in range(start, min(start + _BLOCK, images))
            )
            out.write("," * (start > 0) + json.dumps(list(entries))[1:-1])
        out.write('], "annotations": [')
        for start in range(0, boxes, _BLOCK):
            count = min(_BLOCK, boxes - start)
            corners = rng.uniform(1, 200, (count, 4)).round(2).tolist()
            rows, kinds = rng.integers(images, size=count), rng.integers(1, 81, size=count)
            entries = (
                {
                    "id": start + n + 1,
                    "image_id": row,
                    "category_id": kind,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
                for n, (row, kind, box) in enumerate(zip(rows.tolist(), kinds.tolist(), corners))
            )
            out.write("," * (start > 0) + json.dumps(list(entries))[1:-1])
        out.write(f'], "categories": {json.dumps(categories)}}}')
