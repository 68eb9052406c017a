"""What an inspection found, told three ways: lines of text, report.json and an HTML page."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mixtrain_jax.inspection import boxes
from mixtrain_jax.inspection.decode import Split
from mixtrain_jax.inspection.problems import KINDS, STOPS, Problem
from mixtrain_jax.inspection.splits import box_counts
from mixtrain_jax.ops.boxes import COCO_SIZES
from mixtrain_jax.runtime import storage

_SHOWN = 20  # classes in the text


def can_start(problems: Sequence[Problem]) -> bool:
    """Whether training would start on this data."""
    return not any(problem.kind == STOPS for problem in problems)


def summary(split: Split) -> dict[str, Any]:
    """The numbers of one split, as plain JSON values."""
    dataset = split.dataset
    found = boxes.table(dataset)
    area = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    an_image = np.array([len(each) for each in dataset.boxes], int)
    sizes, often = np.unique(dataset.sizes, axis=0, return_counts=True)
    order = np.argsort(-often, kind="stable")
    classes = []
    for label, (category, count) in enumerate(
        zip(dataset.categories, box_counts(split), strict=True)
    ):
        mine = found.labels == label
        by_size = {
            name: int((mine & (area >= low) & (area < high)).sum())
            for name, (low, high) in COCO_SIZES.items()
        }
        classes.append(
            {"id": category["id"], "name": str(category["name"]), "boxes": count}
            | {"images": len(np.unique(found.rows[mine]))}
            | by_size
        )
    return {
        "name": split.name,
        "source": dataset.report.source,
        "images": len(dataset),
        "images_damaged": len(split.damaged),
        "images_without_boxes": int((an_image == 0).sum()),
        "boxes": int(an_image.sum()),
        "boxes_an_image": _spread(an_image),
        "heights": _spread(dataset.sizes[:, 0]),
        "widths": _spread(dataset.sizes[:, 1]),
        "commonest_sizes": [
            {"height": int(sizes[i, 0]), "width": int(sizes[i, 1]), "images": int(often[i])}
            for i in order[:5]
        ],
        "classes": classes,
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {"least": 0, "median": 0, "most": 0, "mean": 0}
    return {
        "least": int(values.min()),
        "median": float(np.median(values)),
        "most": int(values.max()),
        "mean": round(float(values.mean()), 2),
    }


def text(splits: Sequence[Split], problems: Sequence[Problem]) -> str:
    """The report as lines for the terminal."""
    lines = []
    for split in splits:
        numbers = summary(split)
        sides = "{least:g} to {most:g}"
        lines += [
            f"{split.name}: {numbers['images']:,} images, {numbers['boxes']:,} boxes, "
            f"{len(numbers['classes'])} classes ({numbers['source']})",
            f"  heights {sides.format(**numbers['heights'])}, widths "
            f"{sides.format(**numbers['widths'])} pixels; boxes per image "
            f"{sides.format(**numbers['boxes_an_image'])}, {numbers['boxes_an_image']['mean']:g} "
            "on average",
            *_table(numbers["classes"]),
        ]
    for kind in KINDS:
        mine = [problem for problem in problems if problem.kind == kind]
        if mine:
            lines += [f"{kind}:", *(f"  {problem}" for problem in mine)]
    if not problems:
        lines.append("nothing odd was found")
    stops = sum(problem.kind == STOPS for problem in problems)
    lines.append(
        "training can start"
        if not stops
        else f"training cannot start: see {'the line' if stops == 1 else 'the lines'} under "
        f"'{STOPS}'"
    )
    return "\n".join(lines)


def _table(classes: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of the classes with most boxes: boxes, images, and objects of COCO's three sizes."""
    columns = ("boxes", "images", *COCO_SIZES)
    shown = sorted(classes, key=lambda each: -each["boxes"])[:_SHOWN]
    wide = max([5, *(len(each["name"]) for each in shown)])
    lines = [f"  {'class':{wide}} " + " ".join(f"{name:>8}" for name in columns)]
    for each in shown:
        numbers = " ".join(f"{each[name]:8,}" for name in columns)
        lines.append(f"  {each['name']:{wide}} {numbers}")
    if len(classes) > _SHOWN:
        lines.append(f"  and {len(classes) - _SHOWN} classes with fewer boxes, see report.json")
    return lines


def write_json(
    folder: epath.Path, splits: Sequence[Split], problems: Sequence[Problem]
) -> epath.Path:
    """Writes report.json: the numbers of each split and all problems with all their places.

    Raises:
      UserError: the file cannot be written.
    """
    path = folder / "report.json"
    content = {
        "can_start": can_start(problems),
        "splits": [summary(split) for split in splits],
        "problems": [
            {
                "kind": problem.kind,
                "split": problem.split,
                "what": problem.what,
                "count": problem.count,
                "where": list(problem.where),
                "done": problem.done,
            }
            for problem in problems
        ],
    }
    storage.write_json(path, content, indent=2)
    return path


def write_page(
    folder: epath.Path, title: str, splits: Sequence[Split], problems: Sequence[Problem]
) -> epath.Path | None:
    """Writes check.html with plots and sample images; None where jinja2 is not installed."""
    try:
        from mixtrain_jax.pages import check as page
    except ImportError:
        return None
    readable: dict[str, tuple[Split, int]] = {}
    tables = []
    sizes: list[np.ndarray] = []
    for split in splits:
        found = boxes.table(split.dataset)
        tables.append((found.rows + len(readable), found.boxes, found.labels))
        for row in range(len(split.dataset)):
            readable[f"{split.name}/{row}: {split.dataset.file_name(row)}"] = split, row
        sizes.append(split.dataset.sizes)
    names = list(readable)
    good = [
        number for number, (split, row) in enumerate(readable.values()) if not split.seen[row].error
    ]
    spread = np.linspace(0, len(good) - 1, min(page.SAMPLES, len(good))).round().astype(int)

    def read(name: str) -> Image.Image:
        split, row = readable[name]
        return split.dataset.picture(row)

    rows, all_boxes, labels = (np.concatenate(column) for column in zip(*tables))
    with storage.folder(folder) as local:
        page.write(
            local,
            title=title,
            about="; ".join(f"{split.name}: {split.dataset.report.source}" for split in splits),
            class_names=splits[0].dataset.class_names,
            sizes=np.concatenate(sizes),
            image=rows,
            boxes=all_boxes,
            labels=labels,
            file_names=names,
            problems=[
                {
                    "what": f"{problem.split}: {problem.what}",
                    "count": problem.count,
                    "where": problem.example,
                    "done": problem.done,
                }
                for problem in problems
            ],
            read=read,
            samples=[good[number] for number in spread.tolist()],
        )
    return folder / "check.html"
