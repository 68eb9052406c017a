"""What is odd about files, classes and the splits among each other; and whether training can start.

Also takes up what the readers found when they read the annotations.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixtrain_jax.data.input.read_errors import most_unreadable
from mixtrain_jax.data.sources import report
from mixtrain_jax.inspection import boxes
from mixtrain_jax.inspection.decode import Split
from mixtrain_jax.inspection.problems import (
    DOUBT,
    KINDS,
    MISTAKE,
    NOTE,
    STOPS,
    Problem,
    of_places,
)

FEW = 10  # boxes of a class from which something can be learned
_KINDS = {report.LEFT_OUT: DOUBT, report.MENDED: NOTE, report.WARNING: DOUBT, report.NOTE: NOTE}


def check(splits: Sequence[Split], config: Any) -> list[Problem]:
    """Everything that is odd about a data set, the most serious first.

    Args:
      splits: of which one is called "train", with all boxes of each image.
      config: the whole config that is to train on them.
    """
    found: list[Problem] = []
    for split in splits:
        found += _files(split, config.data.max_bad_share)
        found += _trainable(split, config.data.max_boxes)
        found += boxes.check(boxes.table(split.dataset), tuple(config.data.val.scale), config.model)
        found += _read(split)
    found += _classes(splits) + _names(splits) + _duplicates(splits)
    return sorted(found, key=lambda problem: KINDS.index(problem.kind))


def _files(split: Split, max_bad_share: float) -> list[Problem]:
    dataset = split.dataset
    damaged = split.damaged
    stops = len(damaged) > most_unreadable(len(dataset), max_bad_share)
    stops |= bool(damaged) and len(damaged) == len(dataset)
    needed = split.name in ("train", "val")  # test is for a command of its own
    done = (
        f"more than config.data.max_bad_share = {max_bad_share:g}: "
        f"{'training' if split.name == 'train' else 'evaluation'} would stop"
        if stops
        else "skipped"
    )
    flat = [dataset.file_name(row) for row, seen in enumerate(split.seen) if seen.flat]
    return [
        *of_places(
            STOPS if stops and needed else DOUBT,
            split.name,
            "images cannot be used",
            [f"{dataset.file_name(row)}: {split.seen[row].error}" for row in damaged],
            done,
        ),
        *of_places(MISTAKE, split.name, "images are of one colour", flat, "trained on"),
    ]


def _trainable(split: Split, max_boxes: int) -> list[Problem]:
    counts = [len(each) for each in split.dataset.boxes]
    empty = [split.dataset.file_name(row) for row, count in enumerate(counts) if not count]
    if split.name == "train" and not split.dataset.trainable().any():
        return [Problem(STOPS, split.name, "boxes to train on", 0, (), "nothing can be learned")]
    done = "no part of the normal half" if split.name == "train" else "scored as empty images"
    found = of_places(NOTE, split.name, "images have no boxes", empty, done)
    if split.name == "train":
        found += of_places(
            DOUBT,
            split.name,
            f"images have more boxes than config.data.max_boxes = {max_boxes}",
            [f"{split.dataset.file_name(r)}: {n}" for r, n in enumerate(counts) if n > max_boxes],
            "those beyond are not trained on",
        )
    return found


def _read(split: Split) -> list[Problem]:
    """What the reader left out, mended or wondered about."""
    return [
        Problem(
            _KINDS[each.kind],
            split.name,
            each.text,
            each.count,
            tuple(f"{each.of} {example}".strip() for example in each.examples),
            each.kind,
        )
        for each in split.dataset.report.findings
    ]


def _classes(splits: Sequence[Split]) -> list[Problem]:
    """Classes without objects, with few, and in one split only."""
    counts = {split.name: box_counts(split) for split in splits}
    names = [str(category["name"]) for category in splits[0].dataset.categories]
    train = counts.get("train", next(iter(counts.values())))
    found = of_places(
        DOUBT,
        "train",
        "classes have no box to train on",
        [name for name, count in zip(names, train) if not count],
        "never detected",
    )
    found += of_places(
        DOUBT,
        "train",
        f"classes have less than {FEW} boxes",
        [f"{name} ({count})" for name, count in zip(names, train) if 0 < count < FEW],
        "trained on, hardly learned",
    )
    for name, others in counts.items():
        if name != "train" and "train" in counts:
            found += of_places(
                MISTAKE,
                name,
                "classes have boxes here and none in train",
                [each for each, a, b in zip(names, train, others) if b and not a],
                "scored as never found",
            )
            found += of_places(
                NOTE,
                name,
                "classes have boxes in train and none here",
                [each for each, a, b in zip(names, train, others) if a and not b],
                "not scored",
            )
    return found


def box_counts(split: Split) -> list[int]:
    """Boxes to train on of each class, in label order."""
    labels = np.concatenate([np.zeros(0, np.int32), *split.dataset.labels])
    counts = np.bincount(labels, minlength=len(split.dataset.categories))
    return [int(count) for count in counts]


def _names(splits: Sequence[Split]) -> list[Problem]:
    """Class names that differ by capitals, spaces or signs only."""
    alike: dict[str, list[str]] = collections.defaultdict(list)
    for category in splits[0].dataset.categories:
        name = str(category["name"])
        alike["".join(sign for sign in name.casefold() if sign.isalnum()) or name].append(name)
    return of_places(
        MISTAKE,
        "train",
        "class names differ in capitals, spaces or signs only",
        [" and ".join(map(repr, names)) for names in alike.values() if len(set(names)) > 1],
        "they stay classes of their own",
    )


def _duplicates(splits: Sequence[Split]) -> list[Problem]:
    """Image files that are byte by byte the same, inside a split and across splits."""
    places: dict[str, list[tuple[Split, int]]] = collections.defaultdict(list)
    for split in splits:
        for row, seen in enumerate(split.seen):
            if seen.digest:
                places[seen.digest].append((split, row))
    inside: dict[str, list[str]] = collections.defaultdict(list)
    across: dict[str, list[str]] = collections.defaultdict(list)
    for group in places.values():
        (first, row), *others = group
        for split, other in others:
            text = f"{split.dataset.file_name(other)} as {first.dataset.file_name(row)}"
            if split is first:
                inside[split.name].append(text)
            else:
                across[split.name].append(f"{text} of {first.name}")
    found: list[Problem] = []
    for name, texts in inside.items():
        found += of_places(
            DOUBT, name, "images are byte by byte the same as another", texts, "each is used"
        )
    for name, texts in across.items():
        found += of_places(
            MISTAKE,
            name,
            "images are byte by byte the same as one of another split",
            texts,
            "scores are too good: take them out of one of the splits",
        )
    return found
