"""Exports a detector as one archive that detects on raw images with jax alone.

python tools/export_model.py --workdir=runs/mine --output=mine.zip

The archive holds a StableHLO program (jax.export) for each bucket of `config.data.val`, lowered for
all of --platforms, the weights once, model.json with classes and preprocessing, and load_model.py,
the few lines that detect with it.
"""

import argparse
import functools
import io
import json
import pathlib
import sys
import time
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from mixtrain_jax import cli, process
from mixtrain_jax.data.input import buckets
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import detect, predict
from mixtrain_jax.models import detector, pixels
from mixtrain_jax.runtime import storage
from mixtrain_jax.types import Array

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FORMAT = 1
LOADER = pathlib.Path(__file__).with_name("load_model.py")

Found = tuple[Array, Array, Array, Array]


def main(flags: argparse.Namespace) -> None:
    """Exports what the flags name."""
    source = flags.checkpoint or flags.workdir
    if source is None:
        raise UserError("say what to export: --workdir=DIR or --checkpoint=PATH")
    platforms = tuple(flags.platforms.split(","))
    if unknown := set(platforms) - set(PLATFORMS):
        raise UserError(f"--platforms={','.join(sorted(unknown))}: choose from {PLATFORMS}")
    process.prepare()
    begin = time.perf_counter()
    weights = detect.read_weights(source, detect.which_weights(flags.weights, flags.config))
    content, told = archive(flags.config, weights, platforms)
    output = epath.Path(flags.output)
    storage.write(output, content)
    print(
        f"wrote {output}: {len(content) / 1e6:.1f} MB ({told}), for {', '.join(platforms)}, "
        f"{time.perf_counter() - begin:.1f} s"
    )


def archive(asked: Any, weights: detect.Weights, platforms: tuple[str, ...]) -> tuple[bytes, str]:
    """Makes the archive.

    Args:
      asked: the whole config.
      weights: of the detector.
      platforms: to lower the programs for.

    Returns:
      The file's bytes, and a few words on what in it is how large.

    Raises:
      UserError: the weights are of another model.
    """
    config, categories = predict.settle(asked, weights)
    leaves, structure = jax.tree.flatten(weights.params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(weights.params)]
    network = detector.build(config.model, config.eval.dtype)
    run = functools.partial(_detect, network, structure, config.data)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    programs, sizes = {}, {}
    for height, width in sorted(buckets.of_any(config.data.val), key=lambda b: b[0] * b[1]):
        exported = export.export(jax.jit(run), platforms=platforms)(
            shapes,
            jax.ShapeDtypeStruct((height, width, 3), jnp.uint8),
            jax.ShapeDtypeStruct((2,), jnp.int32),
            jax.ShapeDtypeStruct((2,), jnp.float32),
        )
        file = f"{height}x{width}.stablehlo"
        programs[file], sizes[file] = exported.serialize(), [height, width]
    model = {
        "format": FORMAT,
        "classes": [str(category["name"]) for category in categories],
        "category_ids": [category["id"] for category in categories],
        "scale": list(config.data.val.scale),
        "least_score": config.model.roi_head.score_threshold,
        "programs": sizes,
        "platforms": list(platforms),
        "weights": names,
        "preprocessing": {
            "exif": "as stored" if config.data.exif == "stored" else "turned upright",
            "white": config.data.white,
            "resize": "bilinear, half-pixel centres, no antialiasing, rounded to whole levels",
            "in the programs": {
                "mean": list(config.data.mean),
                "std": list(config.data.std),
                "channels": config.data.channels,
            },
        },
        "source": f"{weights.source}, {weights.which}, step {weights.meta.get('step')}",
        "jax": jax.__version__,
    }
    arrays, whole = io.BytesIO(), io.BytesIO()
    numbered: dict[str, Any] = {f"{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    np.savez(arrays, **numbered)
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as writing:
        writing.writestr("model.json", json.dumps(model, indent=1))
        writing.writestr("load_model.py", LOADER.read_text())
        for name, program in programs.items():
            writing.writestr(name, bytes(program))
        writing.writestr("weights.npz", arrays.getvalue(), zipfile.ZIP_STORED)
    told = (
        f"weights {len(arrays.getvalue()) / 1e6:.1f} MB, {len(programs)} programs "
        f"{sum(map(len, programs.values())) / 1e6:.1f} MB before compression"
    )
    return whole.getvalue(), told


def _detect(
    network: detector.Detector,
    structure: Any,
    data: Any,
    leaves: list[Array],
    image: Array,
    size: Array,
    scale: Array,
) -> Found:
    """What an archive's program computes.

    Args:
      network: the detector.
      structure: of its parameters.
      data: `config.data`.
      leaves: the parameters, in the structure's order.
      image: [H, W, 3] uint8 RGB, resized and padded to a bucket; padding may hold anything.
      size: [2] int32 height and width before padding.
      scale: [2] float32, how many pixels of the resized image (x, y) a pixel of the original is.

    Returns:
      Boxes [K, 4] float32 in pixels of the original image, scores [K] float32, labels [K] int32,
      and valid [K] bool, best first.
    """
    params = jax.tree.unflatten(structure, leaves)
    if data.channels == "bgr":
        image = image[..., ::-1]
    rows, columns = (jnp.arange(side) for side in image.shape[:2])
    inside = (rows < size[0])[:, None] & (columns < size[1])
    seen = pixels.normalised_image(image, inside, data.mean, data.std)
    found, _ = detect.in_original(network, params, seen[None], size[None], scale[None])
    return found.boxes[0], found.scores[0], found.labels[0], found.valid[0]


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", help="a run's directory: its newest checkpoint is exported")
    parser.add_argument(
        "--checkpoint", help="a checkpoint's path instead, or WORKDIR:best for a run's best by AP"
    )
    parser.add_argument(
        "--weights",
        choices=("student", "teacher"),
        help="default: config.eval.weights, the student where that is both",
    )
    parser.add_argument("--output", required=True, metavar="FILE.zip", help="the archive")
    parser.add_argument(
        "--platforms",
        default="cpu,cuda,tpu",
        help=f"where it is to run, of {', '.join(PLATFORMS)} (default cpu,cuda,tpu)",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
