"""The Python API: what the commands do, with arrays in place of files.

    detector = mixtrain_jax.load("runs/mine")
    found = detector.predict("image.jpg")
    print(found.names, found.boxes)
    found.plot().save("found.png")

A mistake in what is given raises `mixtrain_jax.UserError` with one line that says what to do.
Everything here hands over to the functions that the commands use.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from mixtrain_jax import process
from mixtrain_jax.config import asked as config_asked
from mixtrain_jax.config import load as configs
from mixtrain_jax.config import own_data, saved
from mixtrain_jax.data.input.read_errors import ReadErrors
from mixtrain_jax.data.sources import plain_images
from mixtrain_jax.errors import STOPPED, UserError, memory_in_one_line
from mixtrain_jax.evaluation import detect, predict
from mixtrain_jax.evaluation.audit import FOLDERS
from mixtrain_jax.evaluation.evaluate import evaluate
from mixtrain_jax.pages import draw, fonts
from mixtrain_jax.runtime import parallel, processes
from mixtrain_jax.training.folds import audit_split
from mixtrain_jax.training.run import run

ImageLike = str | os.PathLike[str] | np.ndarray  # a file, or [height, width, 3] uint8 RGB
Changes = Mapping[str, Any]  # fields of the config by dotted name: {"data.max_boxes": 50}


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found in one image, best first.

    Attributes:
      boxes: [n, 4] float32 x1 y1 x2 y2 in pixels of the image as `pixels` shows it; the left edge
        of its first pixel is 0.
      scores: [n] float32 in [0, 1].
      labels: [n] int32, places in the detector's `classes`.
      classes: the detector's, in label order.
      size: height and width of the image in pixels.
      path: of the image's file; "image 0" and so on where it was an array.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    size: tuple[int, int]
    path: str
    _read: Callable[[], np.ndarray] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[tuple[str, float, list[float]]]:
        """Name, score and box of each detection."""
        yield from zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)

    @property
    def names(self) -> tuple[str, ...]:
        """The class of each detection."""
        return tuple(self.classes[label] for label in self.labels)

    def pixels(self) -> np.ndarray:
        """The image that the boxes are in, [height, width, 3] uint8 RGB; a file is read again."""
        return self._read()

    def plot(self) -> Image.Image:
        """The image with boxes, names and scores drawn in; small images are enlarged."""
        names = fonts.drawable(list(self.classes))
        picture = draw.draw_detections(self.pixels(), self.boxes, self.scores, self.labels, names)
        return Image.fromarray(picture)

    def to_supervision(self) -> Any:
        """The same as a `supervision.Detections`, class names in `data["class_name"]`.

        Raises:
          UserError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError("to_supervision needs a package: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )


class Detector:
    """A trained detector; `mixtrain_jax.load` makes it.

    Attributes:
      classes: their names, in label order.
      source: the checkpoint that its weights are from.
      step: how many steps they were trained; None where the checkpoint does not say.
      config: as the run was asked for, with changes.
    """

    def __init__(self, asked: ConfigDict, weights: detect.Weights, workdir: epath.Path | None):
        """Places the weights on the devices; nothing is compiled yet."""
        self.config = asked
        self.source = weights.source
        self.step: int | None = weights.meta.get("step")
        self._weights = weights
        self._workdir = workdir
        self._resolved, categories = predict.settle(asked, weights)
        self.classes = tuple(str(category["name"]) for category in categories)
        self._params = parallel.replicate(weights.params)
        model, data = self._resolved.model, self._resolved.data
        self._predict = detect.predictor(model, data, self._resolved.eval.dtype)

    def __repr__(self) -> str:
        return (
            f"Detector({self.source}, {self._weights.which} weights, {len(self.classes)} classes)"
        )

    @overload
    def predict(  # type: ignore[overload-overlap] # a str is a file, though a sequence of str
        self, images: ImageLike, threshold: float = 0.3
    ) -> Found: ...

    @overload
    def predict(self, images: Sequence[ImageLike], threshold: float = 0.3) -> list[Found]: ...

    def predict(
        self, images: ImageLike | Sequence[ImageLike], threshold: float = 0.3
    ) -> Found | list[Found]:
        """Detects in an image, or in a list of images.

        The first image of a new shape (a bucket of `config.data.val`, and one image or a batch of
        `config.eval.batch_size`) takes the time of a compilation.

        Args:
          images: files, or arrays [height, width, 3] uint8 RGB. The images of a list are read
            alike: how deep they are, and whether EXIF turns them, is decided for all together.
          threshold: a detection's score is above it, and above the config's
            `model.roi_head.score_threshold` in any case.

        Returns:
          What was found; of a list, a list in its order.

        Raises:
          UserError: an image cannot be used, the threshold is none, or memory does not suffice.
        """
        predict.check_threshold(threshold)
        if not isinstance(images, Sequence) or isinstance(images, str | bytes):
            (found,) = self._found_in([images], 1, threshold)
            return found
        return self._found_in(list(images), self._resolved.eval.batch_size, threshold)

    def _found_in(self, images: list[ImageLike], batch_size: int, threshold: float) -> list[Found]:
        if not images:
            return []
        for number, each in enumerate(images):
            if not isinstance(each, np.ndarray | str | os.PathLike):
                raise UserError(
                    f"image {number} is a {type(each).__name__}: give a file's path, or an array "
                    "[height, width, 3] uint8 RGB"
                )
        given = [each if isinstance(each, np.ndarray) else os.fspath(each) for each in images]
        dataset = plain_images.in_memory(given, self._resolved.data)
        _refuse(predict.fitting_no_bucket(dataset, self._resolved.data.val))
        errors = ReadErrors(max_share=1.0)
        with memory_in_one_line(detect.LESS_MEMORY):
            batches = predict.detect_in(
                dataset,
                self._resolved,
                self._predict,
                self._params,
                batch_size,
                threshold,
                errors,
            )
            found = dict(itertools.chain.from_iterable(batches))
        _refuse({dataset.file_name(row): why for row, why in errors.reasons.items()})
        return [
            Found(
                found[row].boxes,
                found[row].scores,
                found[row].labels,
                self.classes,
                found[row].size,
                found[row].path,
                functools.partial(dataset.pixels, row),
            )
            for row in range(len(dataset))
        ]

    def evaluate(
        self,
        split: str = "val",
        *,
        data: str | os.PathLike[str] | None = None,
        changes: Changes | None = None,
        output: str | os.PathLike[str] | None = None,
    ) -> dict[str, Any]:
        """Scores the detector, as `python -m mixtrain_jax.evaluate` does.

        Args:
          split: "val" or "test" of the run's data.
          data: a folder with other data.
          changes: fields of the config, {"eval.images": 500}.
          output: a file for the detections; the scores are written beside it. None: no files.

        Returns:
          COCO's twelve numbers, AP, AP50 and so on, and "per_class": {name: {"AP", "AP50"}}; -1
          where there is nothing to find.

        Raises:
          UserError: the data cannot be used, or has other classes.
        """
        if changes and "eval.weights" in changes:
            raise UserError("changes: eval.weights is chosen by load(..., weights=...)")
        if split not in ("val", "test"):
            raise UserError(f"split={split!r}: choose 'val' or 'test'")
        config = _changed(self.config, changes, data, run=True)
        target = None if output is None else epath.Path(output)
        with memory_in_one_line(detect.LESS_MEMORY):
            return evaluate(config, self._weights, target, split)

    def audit(
        self,
        split: str = "train",
        *,
        folds: int = 0,
        threshold: float = 0.5,
        calibration: str | os.PathLike[str] = "",
        output: str | os.PathLike[str] | None = None,
    ) -> dict[str, Any]:
        """Tells which labels are probably wrong, as `python -m mixtrain_jax.audit` does.

        Args:
          split: "train" or "val" of the run's data; the labels are never written over.
          folds: how many detectors to train first, each without a part of the images; 0: none.
          threshold: findings from this score on are applied in corrected.json.
          calibration: "own" learns from errors planted into these very labels; or what
            `tools/benchmark_audit.py --fit` wrote; "own,FILE": missing and doubled ones by it; "":
            the package's.
          output: directory for audit.json, corrected.json and audit.html; default: audit in the
            run's workdir, audit_val for val.

        Returns:
          The contents of audit.json; the findings are in "findings", likeliest first.

        Raises:
          UserError: the detector is not of a run, so there are no teacher and no labels.
          KeyboardInterrupt: asked to stop while folds were trained; called again, it resumes.
        """
        if self._workdir is None:
            raise UserError(f"{self.source} is not of a run: audit needs a run's workdir")
        if split not in FOLDERS:
            raise UserError(f"split={split!r}: choose 'train' or 'val'")
        target = self._workdir / FOLDERS[split] if output is None else epath.Path(output)
        with memory_in_one_line(detect.LESS_MEMORY):
            found = audit_split(
                self.config,
                self.source,
                self._workdir,
                target,
                split=split,
                folds=folds,
                threshold=threshold,
                calibration=os.fspath(calibration),
                in_program=True,
            )
        if found is None:
            raise KeyboardInterrupt
        return found


def load(
    source: str | os.PathLike[str],
    *,
    weights: str | None = None,
    config: str | os.PathLike[str] | ConfigDict | None = None,
    changes: Changes | None = None,
) -> Detector:
    """Loads a trained detector.

    Of the process it is called in it changes three things: TensorFlow, which reads images here,
    leaves accelerators alone; Pillow opens images of up to half a billion pixels; and paths of
    object stores go through fsspec, whose environment variables are set.

    Args:
      source: a run's workdir (its newest checkpoint is taken), "WORKDIR:best" for the one with the
        highest AP, or a checkpoint's path.
      weights: "student" or "teacher"; None: `config.eval.weights`, the student where that is both.
      config: of a checkpoint that is of no run: a recipe's file or name, or a config. None: the
        run's own.
      changes: fields of the config, {"data.val.scale": (1333, 800)}.

    Raises:
      UserError: there is no such checkpoint or config, or they do not fit each other.
    """
    if weights not in (None, "student", "teacher"):
        raise UserError(f"weights={weights!r}: choose 'student' or 'teacher'")
    process.share()
    name = os.fspath(source)
    workdir = saved.workdir_of(name)
    if config is not None:
        whole = config if isinstance(config, ConfigDict) else configs.load(os.fspath(config))
        asked = _changed(whole, changes)
    elif workdir is not None:
        asked, _ = config_asked.of_run(workdir, _texts(changes))
    else:
        raise UserError(f"{name} is not of a run: say config=, the recipe that it was trained by")
    read = detect.read_weights(name, detect.which_weights(weights, asked))
    if workdir is not None and "step" in read.meta:  # not whatever is the newest later
        read = read._replace(source=os.fspath(workdir / "checkpoints" / str(read.meta["step"])))
    return Detector(asked, read, workdir)


def train(
    config: str | os.PathLike[str] | ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    changes: Changes | None = None,
    allow_changes: bool = False,
    from_scratch: bool = False,
) -> Detector:
    """Trains a detector, as `python -m mixtrain_jax.train` does; it resumes what is in the workdir.

    It prepares the process as the command does (see `mixtrain_jax/process.py`), so call it before
    JAX is used.

    Args:
      config: a recipe's file or name with its argument, such as "cascade:plain", or a config.
      workdir: directory of the run.
      data: a folder in COCO, VOC or YOLO format, as `--data` takes it.
      changes: fields of the config, {"epochs": 12, "batch_size": 8}.
      allow_changes: resume a run although fields differ that make it another run.
      from_scratch: train a backbone from random weights that is made for pretrained ones.

    Returns:
      The detector after the last step.

    Raises:
      UserError: bad input.
      KeyboardInterrupt: asked to stop (Ctrl-C, SIGTERM); after the step at hand, compiled first if
        need be, the state is saved, and called again it resumes. Asked twice it is raised at once.
    """
    process.prepare_storage()  # the config may be in a bucket
    if isinstance(config, ConfigDict):
        asked, origin = _changed(config, changes, data), saved.Origin("", _texts(changes))
    else:
        folder = None if data is None else os.fspath(data)
        asked, origin = config_asked.of_file(os.fspath(config), _texts(changes), folder)
    process.prepare(asked, training=True)
    processes.start()
    code = run(asked, epath.Path(workdir), origin, allow_changes, from_scratch, in_program=True)
    if code == STOPPED:
        raise KeyboardInterrupt
    return load(workdir)


def _refuse(unusable: Mapping[str, str]) -> None:
    """Raises UserError if images cannot be used; it names each and says why."""
    if unusable:
        raise UserError("; ".join(f"{name}: {why}" for name, why in unusable.items()))


def _texts(changes: Changes | None) -> dict[str, str]:
    """Values as a command line writes them."""
    return {name: str(value) for name, value in (changes or {}).items()}


def _changed(
    config: ConfigDict,
    changes: Changes | None,
    data: str | os.PathLike[str] | None = None,
    run: bool = False,
) -> ConfigDict:
    """The config (a run's, or one to train by) with changes, on a folder's data if one is named."""
    texts = _texts(changes)
    if data is not None:
        texts = own_data.of_folder(os.fspath(data), texts, config.data if run else None)
    return configs.override_all(config, texts | own_data.with_val(config, texts))
