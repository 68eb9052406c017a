"""Turns a PyTorch checkpoint into one that train, evaluate and predict take.

Reads MixTraining's own checkpoints, mmdetection's Faster and Cascade R-CNN with Swin or ResNet,
ImageNet files of Swin and torchvision's ResNet, and safetensors of any of these. What a file lacks,
such as the heads where it holds a backbone alone, is left out, for training to initialise. Prints
what became of every tensor. No code in the file is ever run. See docs/weights.md for the command
for each published file.
"""

import argparse
import fnmatch
import io
import json
import math
import pathlib
import pickle
import re
import sys
import warnings
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from etils import epath

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from mixtrain_jax import cli
from mixtrain_jax.data.sources.load import val_categories
from mixtrain_jax.errors import UserError
from mixtrain_jax.models import detector, torch_names
from mixtrain_jax.runtime import checkpoint, storage
from mixtrain_jax.types import Params

State = dict[str, np.ndarray]  # arrays by PyTorch's names, or by our paths

PARTS = ("backbone.", "neck.", "rpn_head.", "roi_head.")
HARMLESS = re.compile(
    r".*\.(relative_position_index|attn_mask|num_batches_tracked)"
    r"|backbone\.(norm|head|fc)\.(weight|bias)"  # an ImageNet classifier
    r"|roi_head\.mask_head\..*"
)
SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
ERRORS = ("missing", "wrong shape", "not in model")  # statuses of an Entry
COCO_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_NAMES = """
person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign
parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella
handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard
surfboard tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange
broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv laptop
mouse remote keyboard cell_phone microwave oven toaster sink refrigerator book clock vase scissors
teddy_bear hair_drier toothbrush
"""


class Entry(NamedTuple):
    """What became of one tensor, of the file or of the model."""

    status: str  # used, unused, unknown, initial, missing, wrong shape or not in model
    name: str
    note: str


def main(flags: argparse.Namespace) -> None:
    """Converts what the flags name."""
    sets = split(read(epath.Path(flags.input)))
    if flags.weights not in sets:
        raise UserError(
            f"{flags.input} has no {flags.weights} weights; choose --weights={next(iter(sets))}"
        )
    config = flags.config
    config.model.num_classes = config.model.num_classes or classes(sets[flags.weights])
    model = detector.build(config.model)
    shapes = jax.eval_shape(lambda: detector.init(model, config.seed))

    matched: dict[str, State] = {}
    problems = []
    for which, state in sets.items():
        matched[which], entries = match(state, shapes, flags.allow_missing)
        print(f"{flags.input}, {which} weights:")
        for entry in entries:
            print(f"  {entry.status:12} {entry.name}  {entry.note}".rstrip())
        print(f"{which}: {summary(entries)}")
        problems += [entry for entry in entries if entry.status in ERRORS]
    if problems:
        raise UserError(explain(flags.input, problems))

    params = {which: torch_names.unflatten(found) for which, found in matched.items()}
    categories = name_classes(config)
    meta = {"config": _without_data(config)} | ({"categories": categories} if categories else {})
    checkpoint.save_weights(flags.output, params[flags.weights], params.get("teacher"), meta)
    print(f"wrote {flags.output}")


def _without_data(config: Any) -> dict[str, Any]:
    """The config's fields without paths of data: what the weights have seen is not known."""
    fields = config.to_dict()
    for split in ("train", "val", "test"):
        fields["data"][split] |= {"annotations": "", "images": "", "list": "", "split": ""}
    return fields


def read(path: epath.Path) -> State:
    """Reads the tensors of a file by their names in it, as numpy arrays.

    Raises:
      UserError: the file is missing, damaged, holds no tensors or more than data, or needs PyTorch.
    """
    try:
        content = storage.read(path)
    except FileNotFoundError:
        raise UserError(f"cannot read {path}: there is no such file") from None
    state = (
        _read_safetensors(path, content)
        if path.suffix == ".safetensors"
        else _read_torch(path, content)
    )
    if not state:
        raise UserError(f"{path} holds no tensors by name, so it is no checkpoint of weights")
    return state


def _read_torch(path: epath.Path, content: bytes) -> State:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"reading {path} needs PyTorch: pip install torch (.safetensors files need nothing)"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old kinds of pickle
            file = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "it is no plain file of tensors"
        raise UserError(
            f"refused {path}: {reason}, and code in checkpoints is never run; get the file from "
            "its authors, or save its state_dict alone with torch.save"
        ) from error
    except Exception as error:  # PyTorch has no one kind of error for damaged files
        raise UserError(f"{path} is damaged or no PyTorch file; get it anew") from error
    for key in ("state_dict", "model"):
        if isinstance(file, dict) and isinstance(file.get(key), dict):
            file = file[key]
    if not isinstance(file, dict):
        return {}
    tensors = {str(k): v for k, v in file.items() if isinstance(v, torch.Tensor)}
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in tensors.items()
    }


def _read_safetensors(path: epath.Path, content: bytes) -> State:
    """An 8-byte length, a JSON header of that length, and the arrays' bytes."""
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        state = {}
        for name, field in header.items():
            dtype, shape = np.dtype(SAFETENSORS[field["dtype"]]), field["shape"]
            begin, end = field["data_offsets"]
            if end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(name)
            array = np.frombuffer(content[start + begin : start + end], dtype).reshape(shape)
            floating = dtype.kind == "f" or dtype == ml_dtypes.bfloat16
            state[name] = array.astype(np.float32) if floating else array
        return state
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or no safetensors file; get it anew") from error


def split(state: State) -> dict[str, State]:
    """Sorts tensors into "student" and "teacher", under mmdetection's names.

    A file of one detector, or of a backbone, is a student.
    """
    state = {name.removeprefix("module."): array for name, array in state.items()}
    sets: dict[str, State] = {}
    for name, array in state.items():
        which, inner, rest = name.partition(".detector.")
        if inner and which in ("student", "teacher"):
            sets.setdefault(which, {})[rest] = array
    if sets:
        return sets
    if not any(name.startswith(PARTS) for name in state):
        state = {f"backbone.{name}": array for name, array in state.items()}
    return {"student": state}


def classes(state: State) -> int:
    """The number of classes a detector was made for; COCO's where its tensors do not say."""
    for name, array in state.items():
        if name.endswith("fc_cls.bias") and array.ndim == 1:
            return len(array) - 1
    return len(COCO_NAMES.split())


def match(state: State, shapes: Params, allow_missing: list[str]) -> tuple[State, list[Entry]]:
    """Brings tensors into our layout, by our paths, and tells what became of each."""
    backbone_only = not any(name.startswith(PARTS[1:]) for name in state)
    paths = {name: path for path, name in torch_names.names(shapes).items()}
    flat = torch_names.flatten(shapes)
    found, entries = {}, []
    for name, path in paths.items():
        shape = torch_names.torch_shape(path, flat[path].shape)
        allowed = any(fnmatch.fnmatchcase(name, pattern) for pattern in allow_missing)
        if name in state and state[name].shape == shape:
            found[path] = np.asarray(torch_names.from_torch(path, state[name]), np.float32)
            entries.append(Entry("used", name, f"{_text(shape)} as {path}"))
        elif name in state:
            note = f"{_text(state[name].shape)} in the file, {_text(shape)} in the model"
            entries.append(Entry("initial" if allowed else "wrong shape", name, note))
        else:
            head = not name.startswith("backbone.") or re.match(r"backbone\.norm\d\.", name)
            fresh = allowed or (backbone_only and head)
            entries.append(Entry("initial" if fresh else "missing", name, _text(shape)))
    # A name like those of the model but for its numbers belongs to a model with more blocks.
    known = {re.sub(r"\d+", "#", name) for name in paths}
    for name, array in state.items():
        if name not in paths:
            foreign = "not in model" if re.sub(r"\d+", "#", name) in known else "unknown"
            status = "unused" if HARMLESS.fullmatch(name) else foreign
            entries.append(Entry(status, name, _text(array.shape)))
    return found, entries


def summary(entries: list[Entry]) -> str:
    """Counts by status, in words."""
    words = {
        "used": "tensors used",
        "initial": "left out",
        "unused": "unused and known to be of no use here",
        "unknown": "unused and unknown",
    }
    counts = {status: sum(e.status == status for e in entries) for status in (*words, *ERRORS)}
    return ", ".join(f"{n} {words.get(status, status)}" for status, n in counts.items() if n)


def explain(source: str, problems: list[Entry]) -> str:
    """One line for all tensors that do not fit."""
    parts = []
    for status in ERRORS:
        names = [
            f"{e.name} ({e.note})" if status == "wrong shape" else e.name
            for e in problems
            if e.status == status
        ]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{len(names)} {status}: {', '.join(names[:3])}{more}")
    hint = "check that the config names the file's model"
    if any(e.status != "not in model" for e in problems):
        hint += ", or leave some out with --allow-missing=PATTERN"
    return f"{source} does not fit the config's model; {'; '.join(parts)}; {hint}"


def name_classes(config: Any) -> list[dict[str, Any]] | None:
    """Categories for the checkpoint: those of the config's annotations, or COCO's, if they fit."""
    count = config.model.num_classes
    named = val_categories(config.data)
    if len(named) == count:
        return named
    names = [name.replace("_", " ") for name in COCO_NAMES.split()]
    ids = [i for i in range(1, 91) if i not in COCO_UNUSED_IDS]
    if len(names) == count:
        return [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
    print(
        f"the classes stay unnamed, as {config.data.val.annotations} does not list {count}; to "
        "name them set --config.data.val.annotations, here or in predict"
    )
    return None


def _text(shape: tuple[int, ...]) -> str:
    return str(list(shape))


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--input", required=True, help="PyTorch or safetensors file")
    parser.add_argument("--output", required=True, help="checkpoint to write, a new directory")
    parser.add_argument(
        "--weights",
        choices=("student", "teacher"),
        default="student",
        help="which weights of a MixTraining file become the student's, those evaluated and "
        "trained by default; the teacher's are kept beside them either way",
    )
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out PyTorch parameters of this name (* stands for anything) where "
        "the file lacks them or has another shape; may be given again",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
