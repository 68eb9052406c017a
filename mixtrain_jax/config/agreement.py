"""What all hosts must have in common, compared once before they train or evaluate together.

Two hosts with other seeds, data or code would train to the end without a word and give garbage: the
sum over devices adds whatever comes, and one score is made of all hosts' detections.
"""

import functools
import hashlib
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import mixtrain_jax
from mixtrain_jax.config.compare import flat
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.runtime import hosts

# Fields in which hosts may differ: where each finds the same files, and how it reads them.
_OWN = re.compile(r"data\.(workers|max_bad_share|\w+\.(annotations|images|list))|init_from")


def check(config: Any, datasets: Sequence[Dataset], step: int | None, weights: Any) -> None:
    """Compares this host's fingerprint with those of all others.

    Args:
      config: the whole config, resolved.
      datasets: what is trained on, and what is evaluated on.
      step: steps taken so far; None of weights that tell none.
      weights: the train state to start from, or parameters, as a tree of numpy arrays.

    Raises:
      UserError: a host differs; it and the first differing field are named.
    """
    if hosts.count() > 1:
        hosts.same_everywhere(fingerprint(config, datasets, step, weights))


def fingerprint(
    config: Any, datasets: Sequence[Dataset], step: int | None, weights: Any
) -> dict[str, Any]:
    """What has to be the same on all hosts, by the name that a message gives it."""
    fields: dict[str, Any] = {
        "the version of mixtrain_jax": mixtrain_jax.__version__,
        "the code of mixtrain_jax": code(),
        "the version of JAX": jax.__version__,
    }
    for name, value in flat(config).items():
        if not _OWN.fullmatch(name):
            fields[f"config.{name}"] = repr(value)
    for dataset in datasets:
        fields[f"the categories of {dataset.name}"] = repr(dataset.categories)
        fields[f"the number of images of {dataset.name}"] = len(dataset)
        fields[f"the image ids of {dataset.name}"] = _digest([dataset.image_ids, dataset.sizes])
        fields[f"the boxes of {dataset.name}"] = _digest(
            [dataset.boxes.starts, dataset.boxes.values, dataset.labels.values]
        )
    fields["the step of the weights"] = step
    fields["the weights"] = _digest(jax.tree.leaves(weights))
    return fields


def labels_of(dataset: Dataset) -> str:
    """The images and boxes of a data set in words; another label is another digest."""
    parts = (dataset.image_ids, dataset.boxes.starts, dataset.boxes.values, dataset.labels.values)
    count = len(dataset.boxes.values)
    return f"{count:,} boxes on {len(dataset):,} images (digest {_digest(list(parts))})"


def _digest(arrays: list[Any]) -> str:
    crc = functools.reduce(
        lambda crc, array: zlib.crc32(np.ascontiguousarray(array).data, crc), arrays, 0
    )
    return f"{crc:08x}"


def code() -> str:
    """A digest of the package's source files."""
    folder = pathlib.Path(mixtrain_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
