"""An exported archive detects what we detect, in a process that has jax and nothing of ours."""

import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

import mixtrain_jax
from mixtrain_jax import cli
from mixtrain_jax.errors import UserError
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import checkpoint
from tests.mixtraining import small
from tools import export_model

CLASSES = ("cat", "dog", "cow")
SIZES = (
    (64, 64),
    (40, 40),
    (30, 64),
    (64, 33),
    (128, 128),
    (100, 60),
    (75, 96),
    (7, 9),
    (48, 64),
    (200, 120),
)

ALONE = """
import json, sys
import numpy as np
sys.path.insert(0, ".")
import load_model
detect = load_model.load("model.zip")
images = np.load("images.npz")
found = [detect(images[f"{i}"], threshold=0.0) for i in range(len(images.files))]
ours = {"flax", "mixtrain_jax", "tensorflow", "orbax", "optax", "absl", "ml_collections"}
print(json.dumps({
    "loaded": sorted(ours & {name.partition(".")[0] for name in sys.modules}),
    "found": [[boxes.tolist(), scores.tolist(), names] for boxes, scores, names in found],
}))
"""


def test_boxes_are_ours_in_a_process_that_has_only_jax(tmp_path):
    config = small.config(data__channels="bgr")
    config.data.val.update(scale=(64, 64), buckets=((64, 64),))
    params = jax.tree.map(np.array, detector.init(detector.build(config.model), 0))
    # Boxes that differ from image to image, and scores far enough apart to have one order.
    params["roi_head"]["head0"]["logits"]["kernel"] *= 20
    meta = {"categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 5)]}
    meta["exif"], config.data.white = "stored", 4095  # as of a run on such images
    checkpoint.save_weights(tmp_path / "weights", params, meta=meta)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in SIZES]
    np.savez(tmp_path / "images.npz", **{f"{i}": image for i, image in enumerate(images)})

    loaded = mixtrain_jax.load(tmp_path / "weights", config=config)
    ours = loaded.predict(images, threshold=0.0)
    content, told = export_model.archive(loaded.config, loaded._weights, ("cpu", "cuda", "tpu"))
    assert "1 programs" in told
    (tmp_path / "model.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        archive.extract("load_model.py", tmp_path)
        model = json.loads(archive.read("model.json"))
    assert model["classes"] == list(CLASSES) and model["category_ids"] == [5, 6, 7]
    assert model["platforms"] == ["cpu", "cuda", "tpu"]
    reading = {name: model["preprocessing"][name] for name in ("exif", "white")}
    assert reading == {"exif": "as stored", "white": 4095}

    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["loaded"] == []
    assert sum(map(len, ours)) > 40
    for mine, (boxes, scores, names) in zip(ours, answer["found"], strict=True):
        assert list(mine.names) == names
        np.testing.assert_allclose(boxes, mine.boxes, atol=1e-3)
        np.testing.assert_allclose(scores, mine.scores, atol=1e-5)


def test_platforms_are_checked_first(tmp_path):
    flags = export_model.parse().parse_args([f"--output={tmp_path}/x.zip", "--platforms=cpu,gpu"])
    flags.workdir = "somewhere"
    with pytest.raises(UserError, match="--platforms=gpu: choose from"):
        export_model.main(flags)
    with pytest.raises(SystemExit) as end:
        cli.run(export_model.main, export_model.parse(), ["--output=x.zip", "--config=quickstart"])
    assert end.value.code == cli.BAD_INPUT
