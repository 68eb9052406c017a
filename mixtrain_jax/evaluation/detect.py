"""The detector over a data set: views in, detections in pixels of the original photographs out."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mixtrain_jax.data import batches
from mixtrain_jax.data.records import Dataset
from mixtrain_jax.evaluation import coco
from mixtrain_jax.models import detector
from mixtrain_jax.runtime import checkpoint, parallel
from mixtrain_jax.types import Array, Detections, Params, View

Predict = Callable[[Params, View], tuple[Detections, Array]]


def predictor(config: Any) -> Predict:
    """Returns the compiled detector, mapped over devices.

    Args:
      config: the whole config, `config.model.num_classes` set; computes in `config.eval.dtype`.

    Returns:
      A function of (parameters, view with a device axis); boxes come in pixels of the original
      photograph.
    """
    model = detector.build(config.model, config.eval.dtype)

    def predict(params: Params, view: View) -> tuple[Detections, Array]:
        scale = jnp.stack([view.matrix[:, 0, 0], view.matrix[:, 1, 1]], axis=-1)
        pyramid = detector.call(model, params, "features", view.image, view.size)
        proposals = detector.call(model, params, "proposals", pyramid, view.size)
        return detector.call(model, params, "detect", pyramid, view.size, proposals, scale)

    return parallel.map_predict(predict)


def detect(
    predict: Predict, params: Params, views: Iterable[View]
) -> Iterator[tuple[np.ndarray, Detections, np.ndarray]]:
    """Runs the detector over views.

    While the devices work on one batch, the results of the one before are handed out.

    Args:
      predict: what `predictor` returned.
      params: parameters, placed on all devices.
      views: batches of numpy arrays, as `batches.eval_batches` yields them.

    Yields:
      For each batch, as numpy arrays: the photographs' rows [B] (-1 for a filler), their
      detections in pixels of the original photographs, and [B] bool, False where candidates beyond
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
    predict: Predict, params: Params, dataset: Dataset, config: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Detects in every photograph of a data set once, on all hosts together, and scores the result.

    Args:
      predict: what `predictor` returned.
      params: parameters, placed on all devices.
      dataset: the photographs and their annotations.
      config: the whole config.

    Returns:
      Metrics as `coco.score` gives them, and the entries of a COCO results file; the same on all
      hosts.
    """
    host, hosts = parallel.host()
    rows = np.arange(config.eval.images or len(dataset))[: len(dataset)]
    views = batches.eval_batches(
        dataset, config, config.eval.batch_size, host_index=host, host_count=hosts, rows=rows
    )
    results, overfull = [], 0
    for index, found, exact in detect(predict, params, views):
        results += coco.results(found, index, dataset)
        overfull += int((~exact & (index >= 0)).sum())
    if overfull:
        logging.warning(
            "In %d pictures more boxes than config.model.roi_head.nms_candidates = %d passed the "
            "score threshold; the lowest were not looked at.",
            overfull,
            config.model.roi_head.nms_candidates,
        )
    results = parallel.collect(results)
    return coco.score(dataset.ground_truth, results, dataset.image_ids[rows]), results


def load_weights(source: str, which: str) -> tuple[Params, dict]:
    """Reads a checkpoint as `checkpoint.load_weights` does; WORKDIR:best is a run's best by AP."""
    workdir = source.removesuffix(":best")
    return checkpoint.load_weights(workdir, which, step=None if workdir == source else "best")


def check_parameters(source: str, params: Params, config: Any) -> None:
    """Raises UserError, naming the first array that differs, unless parameters fit the model."""
    checkpoint.check_same_arrays(source, parameter_shapes(config), params)


def parameter_shapes(config: Any) -> Params:
    """Returns the shapes of the parameters that `config.model` needs, without computing any."""
    model = detector.build(config.model)
    return jax.eval_shape(lambda: detector.init(model, 0))
