"""The errors page of an evaluation: detections and truth as tables, analysed and drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from mixtrain_jax.auditing import corrections, labels
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import errors
from mixtrain_jax.runtime import storage


def require() -> None:
    """Raises UserError where the package that pages need is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise UserError("--page needs jinja2: pip install jinja2") from error


def write(
    dataset: Dataset,
    results: Sequence[dict[str, Any]],
    folder: epath.Path,
    about: str,
    suffix: str = "",
) -> epath.Path:
    """Writes errors.html and the images it shows.

    Crowds, and boxes without area, are no objects here; the scores of COCO count the latter. What
    is found in a crowd is neither right nor wrong, as there.

    Args:
      dataset: the images that were looked at, and their annotations.
      results: the entries of a COCO results file, as `detect.evaluate` returns them.
      folder: where to.
      about: a line on what was evaluated.
      suffix: of the names of the page and of the folder of its images.

    Returns:
      The page's path.
    """
    from mixtrain_jax.pages import errors as page

    human, _, ids = labels.from_coco(dataset.ground_truth, dataset.name)
    label_of = {category["id"]: label for label, category in enumerate(dataset.categories)}
    own = np.array([label_of[number] for number in ids], np.int32)
    truth = errors.Boxes(human.image, human.boxes, own[human.labels])
    crowds = [each for each in dataset.ground_truth["annotations"] if each["iscrowd"]]
    found = errors.counted(
        _table(dataset, label_of, results), truth, _table(dataset, label_of, crowds), len(dataset)
    )
    names = dataset.class_names
    files = [dataset.file_name(row) for row in range(len(dataset))]
    row_of = {name: row for row, name in enumerate(files)}
    with storage.folder(folder) as local:
        written = page.write(
            local,
            errors.analyse(found, truth, names, len(dataset)),
            found=found,
            truth=truth,
            file_names=files,
            read=lambda name: dataset.picture(row_of[name]),
            title=f"Errors on {dataset.name}",
            about=about,
            suffix=suffix,
        )
    return folder / written.name


def _table(
    dataset: Dataset, label_of: dict[int, int], results: Sequence[dict[str, Any]]
) -> errors.Boxes:
    """Entries of a COCO file as a table; those without a score have 0."""
    row_of = {int(number): row for row, number in enumerate(dataset.image_ids)}
    return errors.Boxes(
        image=np.array([row_of[each["image_id"]] for each in results], np.int32),
        boxes=corrections.from_bbox([each["bbox"] for each in results]),
        labels=np.array([label_of[each["category_id"]] for each in results], np.int32),
        scores=np.array([each.get("score", 0) for each in results], np.float64),
    )
