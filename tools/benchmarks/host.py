"""The host's work: input against OpenCV, padding, scoring, and how long a start takes."""

import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from mixtrain_jax.config import load as configs
from mixtrain_jax.data.input import buckets, plan
from mixtrain_jax.data.sources.annotations import from_lists
from mixtrain_jax.data.sources.dataset import Dataset, assemble
from mixtrain_jax.data.sources.image_files import Reading
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.data.views import geometry
from mixtrain_jax.errors import UserError
from tools.benchmarks import measure

# Height and width of images and how many in a hundred have them: an assumption, made to
# resemble COCO train2017.
COCO_LIKE = {
    (480, 640): 27,
    (640, 480): 9,
    (427, 640): 16,
    (640, 427): 5,
    (426, 640): 9,
    (640, 426): 3,
    (428, 640): 4,
    (375, 500): 7,
    (500, 375): 3,
    (333, 500): 5,
    (500, 333): 2,
    (360, 640): 3,
    (640, 640): 3,
    (612, 612): 2,
    (424, 640): 2,
}
_PICTURES, _SIZE = 32, (480, 640)
_STEPS = 20_000  # that padding is averaged over


def run_input(budget: float) -> list[measure.Row]:
    """Photographs a second: tf.data's pipeline, and the same views by OpenCV, in turns.

    Half of the images give a normal view, half a weak and a strong one. Both pipelines read
    the same files in as many threads as there are cores.
    """
    if not importlib.util.find_spec("cv2"):
        raise UserError("the input is compared with OpenCV: pip install opencv-python-headless")
    from mixtrain_jax.data.input import batches
    from tools.benchmarks import opencv

    with tempfile.TemporaryDirectory() as place:
        config = _write_images(pathlib.Path(place))
        dataset = load_dataset(config.data, "train")
        ours = batches.train_batches(
            dataset,
            config.data,
            seed=config.seed,
            batch_size=config.batch_size,
            first_mixed_step=plan.first_mixed_step(config.mixtraining),
        )
        theirs = opencv.train_batches(dataset, config)
        for _ in range(4):  # threads started, queues full
            next(ours), next(theirs)
        rounds: dict[str, list[tuple[float, float]]] = {"tf.data": [], "OpenCV": []}
        count = 8
        end = time.perf_counter() + budget
        while len(rounds["OpenCV"]) < 3 or time.perf_counter() < end:
            for name, stream in (("tf.data", ours), ("OpenCV", theirs)):
                _wait_until_idle()
                begin, used = time.perf_counter(), time.process_time()
                for _ in itertools.islice(stream, count):
                    pass
                _wait_until_idle()  # as much has been made as was taken
                spent = time.perf_counter() - begin, time.process_time() - used
                rounds[name].append(spent)
    done = count * config.batch_size
    rows = []
    for name, found in rounds.items():
        wall, cpu = np.median(found, axis=0)
        rows.append(
            {
                "case": f"normal, weak and strong views of 640x480 JPEGs: {name}",
                "per_second": done / wall,
                "per_core_second": done / cpu,
                "runs": len(found),
            }
        )
    ratio = rows[0]["per_core_second"] / rows[1]["per_core_second"]
    rows[0]["ratio"] = ratio
    return rows


def _wait_until_idle() -> None:
    """Returns when the threads of this process have filled their queues."""
    busy = True
    while busy:
        used = time.process_time()
        time.sleep(0.05)
        busy = time.process_time() - used > 0.005


def _write_images(place: pathlib.Path):
    """Writes JPEG files of images' size and detail with COCO annotations."""
    import cv2

    rng = np.random.default_rng(0)
    (place / "images").mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for number in range(_PICTURES):
        pixels = np.zeros((*_SIZE, 3), np.float32)
        for scale, strength in ((4, 8), (16, 20), (64, 40)):  # detail falls with its frequency
            small = rng.normal(0, strength, (_SIZE[0] // scale + 1, _SIZE[1] // scale + 1, 3))
            pixels += cv2.resize(small.astype(np.float32), _SIZE[::-1])
        name = f"{number}.jpg"
        cv2.imwrite(
            str(place / "images" / name),
            np.clip(pixels + 128, 0, 255).astype(np.uint8),
            [cv2.IMWRITE_JPEG_QUALITY, 90],
        )
        images.append({"id": number, "file_name": name, "height": _SIZE[0], "width": _SIZE[1]})
        for _ in range(7):
            x, y, w, h = (float(v) for v in rng.uniform((0, 0, 20, 20), (400, 300, 200, 150)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    file = place / "annotations.json"
    everything = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    file.write_text(json.dumps(everything))
    mixed = {"mixtraining.start_step": "0"}
    config = configs.load(str(configs.ROOT / "configs/faster.py"), mixed)
    config.batch_size = 8
    config.data.train.update(annotations=str(file), images=str(place / "images"))
    return config


def run_padding(budget: float) -> list[measure.Row]:
    """Padded area over image area of the buckets chosen for the assumed distribution."""
    del budget
    config = configs.load(str(configs.ROOT / "configs/cascade.py"))
    counts = 1000 * np.array(list(COCO_LIKE.values()))
    sizes = np.repeat(np.array(list(COCO_LIKE)), counts, axis=0)
    dataset = declared(sizes)

    small = geometry.resized(sizes, *config.data.val.scale)
    chosen = buckets.for_evaluation(sizes, config.data.val)
    kind = buckets.fitting(small, chosen)
    rows = [
        {
            "case": "evaluation",
            "waste": np.array(chosen).prod(1)[kind].sum() / small.prod(1).sum(),
            "shapes": len(chosen),
            "buckets": _said(chosen),
        }
    ]
    for case, steps in (("training", 0), ("long training", 100_000)):
        config.data.train.buckets = ()
        config.data.train.buckets = buckets.for_training(sizes, config.data.train, steps)
        rows.append({"case": case, **_waste(dataset, config)})
    return rows


def _waste(dataset: Dataset, config: ConfigDict) -> measure.Row:
    """The padding of the batches that training really makes."""
    stream = plan.Stream(dataset, config.seed, config.data.train)
    rng = np.random.default_rng(0)
    padded = seen = 0
    used = set()
    for step in itertools.islice(plan.steps(stream, config.batch_size, 0), _STEPS):
        used.add(step.bucket)
        bucket = stream.buckets.index(step.bucket)
        for places, views in ((step.normal, 1), (step.mixed, 2)):
            for place in places:
                row = stream.row(int(place))
                shorts = rng.choice(stream.shorts_for(row, bucket), views)
                size = dataset.sizes[row]
                seen += geometry.resized(size[None], stream.long, shorts).prod(1).sum()
                padded += views * step.bucket[0] * step.bucket[1]
    return {"waste": padded / seen, "shapes": len(used), "buckets": _said(stream.buckets)}


def _said(chosen: Sequence[tuple[int, int]]) -> str:
    return " ".join(f"{height}x{width}" for height, width in chosen)


def declared(sizes: np.ndarray) -> Dataset:
    """A data set to plan with: declared sizes, and a box in each image."""
    table = from_lists(
        images=[(str(row), "", (int(h), int(w))) for row, (h, w) in enumerate(sizes)],
        boxes=[(row, 0, (0, 0, 32, 32), False, str(row)) for row in range(len(sizes))],
        names=["thing"],
        source="assumed",
        read=lambda row: b"",
    )
    return assemble(table, Reading(), "assumed", max_boxes=1)


def run_scoring(budget: float) -> list[measure.Row]:
    """Scores 5,000 pictures of 7 boxes and 100 detections each, 80 classes, in both ways."""
    del budget
    from mixtrain_jax.evaluation import coco

    images, rng = 5000, np.random.default_rng(0)

    def entries(each: int):
        corner = rng.uniform(0, 400, (images * each, 2))
        side = rng.uniform(10, 200, (images * each, 2))
        boxes = np.concatenate([corner, side], axis=1)
        classes = rng.integers(1, 81, len(boxes))
        for number, (box, kind) in enumerate(zip(boxes.tolist(), classes.tolist(), strict=True)):
            yield {"image_id": number // each, "category_id": kind, "bbox": box}

    truth = {
        "images": [{"id": number} for number in range(images)],
        "categories": [{"id": number, "name": str(number)} for number in range(1, 81)],
        "annotations": list(entries(7)),
    }
    found = [entry | {"score": rng.random()} for entry in entries(100)]
    rows = []
    for scorer in coco.SCORERS:
        begin = time.perf_counter()
        coco.score(truth, found, scorer=scorer)
        title = f"{scorer}, 5,000 pictures with 100 detections each"
        rows.append({"case": title, "median": time.perf_counter() - begin})
    return rows


def run_start(budget: float) -> list[measure.Row]:
    """Seconds from the start of the quickstart's command to its first step, twice.

    The second time the compilation cache is there, which the first time was not.
    """
    del budget
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        make = [sys.executable, "tools/make_shapes.py", f"--output={place}/shapes"]
        subprocess.run([*make, "--train=64", "--val=16"], cwd=configs.ROOT, check=True)
        command = [
            *(sys.executable, "-m", "mixtrain_jax.train", "--config=configs/quickstart.py"),
            *("--config.log.every=1", "--config.log.pictures_every=0"),
        ]
        for split in ("train", "val"):
            command.append(
                f"--config.data.{split}.annotations={place}/shapes/annotations/{split}.json"
            )
            command.append(f"--config.data.{split}.images={place}/shapes/{split}")
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(place / "cache")}
        for which in ("first", "second"):
            took = _first_step([*command, f"--workdir={place}/{which}"], environment)
            rows.append({"case": f"quickstart to its first step, {which} start", "median": took})
    return rows


def _first_step(command: list[str], environment: dict[str, str]) -> float:
    """Runs a training until metrics.jsonl has a line; returns the seconds until then."""
    workdir = pathlib.Path(command[-1].partition("=")[2])
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=configs.ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        while not _has_text(workdir / "metrics.jsonl"):
            if process.poll() is not None:
                raise UserError(f"training ended with exit code {process.returncode}")
            time.sleep(0.05)
        return time.perf_counter() - begin
    finally:
        process.kill()
        process.wait()


def _has_text(file: pathlib.Path) -> bool:
    return file.exists() and file.stat().st_size > 0
