"""Writes a checkpoint's weights as a PyTorch state dict under mmdetection's names.

What tools/convert_torch.py read comes back bit by bit. A model with group norm has no counterpart
in mmdetection; its norms are named as batch norms are.
"""

import argparse
import io
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from mixtrain_jax import cli
from mixtrain_jax.errors import UserError
from mixtrain_jax.models import swin, torch_names
from mixtrain_jax.runtime import checkpoint, storage
from mixtrain_jax.types import Params


def main(flags: argparse.Namespace) -> None:
    """Exports what the flags name."""
    try:
        import torch
    except ImportError as error:
        raise UserError("writing a PyTorch file needs PyTorch: pip install torch") from error
    if storage.exists(flags.output):
        raise UserError(f"{flags.output} exists; remove it or choose another --output")
    state: dict[str, np.ndarray] = {}
    meta: dict = {}
    for which in ("student", "teacher") if flags.weights == "both" else (flags.weights,):
        params, meta = checkpoint.load_weights(flags.checkpoint, which)
        if "roi_head" not in params:
            raise UserError(f"{flags.checkpoint} is no detector: it has {', '.join(params)} only")
        prefix = f"{which}.detector." if flags.weights == "both" else ""
        state |= {prefix + name: array for name, array in state_dict(params).items()}
    file = {
        "meta": {"CLASSES": tuple(c["name"] for c in meta.get("categories", ()))},
        "state_dict": {name: torch.from_numpy(array) for name, array in state.items()},
    }
    content = io.BytesIO()
    torch.save(file, content)
    storage.write(flags.output, content.getvalue())
    print(f"wrote {len(state)} tensors to {flags.output}")


def state_dict(params: Params) -> dict[str, np.ndarray]:
    """A detector's parameters by their names in mmdetection, with Swin's index tables."""
    flat = torch_names.flatten(params)
    state: dict[str, np.ndarray] = {}
    for path, name in torch_names.names(params).items():
        state[name] = np.array(torch_names.to_torch(path, np.asarray(flat[path])), order="C")
        if path.endswith("relative_position_bias"):
            window = (int(len(flat[path]) ** 0.5) + 1) // 2
            index = name.replace("relative_position_bias_table", "relative_position_index")
            state[index] = swin.relative_position_index(window).astype(np.int64)
    return state


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__, takes_config=False)
    parser.add_argument("--checkpoint", required=True, help="a workdir, or a checkpoint's path")
    parser.add_argument("--output", required=True, help="PyTorch file to write")
    parser.add_argument(
        "--weights",
        choices=("student", "teacher", "both"),
        default="student",
        help="both: under student.detector. and teacher.detector., as MixTraining's own files",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
