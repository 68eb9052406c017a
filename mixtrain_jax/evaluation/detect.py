"""The detector over a data set: views in, detections in pixels of the original images out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mixtrain_jax.config.trained import other_meanings, with_white
from mixtrain_jax.data.input import batches
from mixtrain_jax.data.input.read_errors import ReadErrors
from mixtrain_jax.data.sources.dataset import Dataset
from mixtrain_jax.evaluation import coco
from mixtrain_jax.models import detector, pixels
from mixtrain_jax.runtime import checkpoint, parallel, same_model
from mixtrain_jax.types import Array, Detections, Params, View

Predict = Callable[[Params, View], tuple[Detections, Array]]

LESS_MEMORY = "lower config.eval.batch_size or config.data.val.scale"


class Weights(NamedTuple):
    """Parameters of a detector, and where they were read.

    Attributes:
      source: a workdir or checkpoint, for messages.
      which: "student" or "teacher".
      params: nested dictionaries of numpy arrays.
      meta: the checkpoint's; `categories` and `step` in it where a run wrote it.
    """

    source: str
    which: str
    params: Params
    meta: dict[str, Any]


def read_weights(source: str, which: str) -> Weights:
    """Reads one of a checkpoint's sets of weights; raises as `checkpoint.load_weights` does."""
    return Weights(source, which, *checkpoint.load_weights(source, which))


def which_weights(given: str | None, config: Any) -> str:
    """What a flag says, else the config's `eval.weights`; the student where that is both."""
    asked: str = given or config.eval.weights
    return asked if asked in ("student", "teacher") else "student"


def predictor(model: Any, data: Any, dtype: str) -> Predict:
    """Returns the compiled detector, mapped over devices.

    Args:
      model: `config.model`, `num_classes` set.
      data: `config.data`; its mean and std are used.
      dtype: of the network's arithmetic.

    Returns:
      A function of (parameters, view with a device axis); boxes come in pixels of the original
      image.
    """
    network = detector.build(model, dtype)

    def predict(params: Params, view: View) -> tuple[Detections, Array]:
        scale = jnp.stack([view.matrix[:, 0, 0], view.matrix[:, 1, 1]], axis=-1)
        seen = pixels.normalise(view, data.mean, data.std)
        return in_original(network, params, seen.image, view.size, scale)

    mapped = parallel.map_predict(predict)
    seen: set[tuple[int, ...]] = set()

    def told(params: Params, view: View) -> tuple[Detections, Array]:
        if view.image.shape in seen:
            return mapped(params, view)
        seen.add(view.image.shape)
        height, width = view.image.shape[2:4]
        with parallel.timed(f"compiling detection for {height}x{width}"):
            return mapped(params, view)

    return told


def in_original(
    network: detector.Detector, params: Params, image: Array, size: Array, scale: Array
) -> tuple[Detections, Array]:
    """The whole detector on B views, with boxes in pixels of the original images.

    Args:
      network: what `detector.build` returned.
      params: its parameters.
      image: [B, H, W, 3] float32, normalised.
      size: [B, 2] int32 height and width of the views before padding.
      scale: [B, 2] float32, how many pixels of the view (x, y) a pixel of the original image is.

    Returns:
      As `RoIHead.detect`.
    """
    with detector.precise(network):
        bound = detector.bind(network, params)
        pyramid = bound.features(image, size)
        return bound.detect(pyramid, size, scale)


def detect(
    predict: Predict, params: Params, views: Iterable[View]
) -> Iterator[tuple[np.ndarray, Detections, np.ndarray]]:
    """Runs the detector over views.

    While the devices work on one batch, the results of the one before are handed out.

    Args:
      predict: what `predictor` returned.
      params: parameters, replicated on all devices.
      views: batches of numpy arrays, as `batches.eval_batches` yields them.

    Yields:
      For each batch, as numpy arrays: the images' rows [B] (-1 for a filler), their
      detections in pixels of the original images, and [B] bool, False where candidates beyond
      `nms_candidates` could have mattered.
    """
    waiting = None
    for view, placed in parallel.prefetch(iter(views)):
        running = view.index, predict(params, placed)
        if waiting is not None:
            yield waiting[0], *parallel.gather(waiting[1])
        waiting = running
    if waiting is not None:
        yield waiting[0], *parallel.gather(waiting[1])


def evaluate(
    predict: Predict, params: Params, dataset: Dataset, data: Any, options: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Detects in every image of a data set once, on all hosts together, and scores the result.

    Args:
      predict: what `predictor` returned.
      params: parameters, replicated on all devices.
      dataset: the images and their annotations.
      data: `config.data`.
      options: `config.eval`.

    Returns:
      Metrics as `coco.score` gives them, and the entries of a COCO results file; the same on all
      hosts.
    """
    host, hosts = parallel.host()
    rows = np.arange(options.images or len(dataset))[: len(dataset)]
    read_errors = ReadErrors(data.max_bad_share, of=-(-len(rows) // hosts))
    views = batches.eval_batches(
        dataset,
        data,
        options.batch_size,
        host_index=host,
        host_count=hosts,
        rows=rows,
        read_errors=read_errors,
    )
    results, overfull = [], 0
    for index, found, exact in detect(predict, params, views):
        results += coco.results(found, index, dataset)
        overfull += int((~exact & (index >= 0)).sum())
    if read_errors.reasons:
        logging.warning(
            "%s: %d images could not be read; their objects count as missed",
            dataset.name,
            len(read_errors.reasons),
        )
    if overfull:
        logging.warning(
            "In %d images more boxes than config.model.roi_head.nms_candidates passed the score "
            "threshold; the lowest were not looked at.",
            overfull,
        )
    results = parallel.collect(results)
    scores = coco.score(dataset.ground_truth, results, dataset.image_ids[rows], options.scorer)
    return scores, results


def describe(weights: Weights, scale: Sequence[int]) -> str:
    """Says in a line which weights detect, and at which scale."""
    step = f"step {weights.meta['step']}, " if "step" in weights.meta else ""
    return (
        f"{weights.source}: {step}{weights.which} weights; images are seen with a short side of "
        f"{scale[1]} pixels, a long side of at most {scale[0]}"
    )


def as_trained(asked: ConfigDict, weights: Weights) -> ConfigDict:
    """The config with what the weights know of their images; warns of what does not suit them.

    Args:
      asked: the whole config, perhaps not the one that they were trained by.
      weights: of a detector.
    """
    if differ := other_meanings(asked, weights.meta, weights.params):
        logging.warning("%s was trained otherwise: %s", weights.source, "; ".join(differ))
    return with_white(asked, weights.meta)


def check_parameters(source: str, params: Params, model: Any) -> None:
    """Raises UserError, naming the first array that differs, unless parameters fit `model`."""
    same_model.check_params(source, parameter_shapes(model), params)


def parameter_shapes(model: Any) -> Params:
    """Returns the shapes of the parameters that `config.model` needs, without computing any."""
    network = detector.build(model)
    return jax.eval_shape(lambda: detector.init(network, 0))
