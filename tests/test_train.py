"""Every row of the ablation table trains."""

import json

import numpy as np
import pytest

from mixtrain_jax.config import recipes
from tests import harness, tiny

pytestmark = pytest.mark.command


@pytest.mark.slow
@pytest.mark.parametrize("word", ["", "plain", "strong", "random", "released", *recipes.ABLATIONS])
def test_each_row_of_the_ablation_table_trains(shapes, tmp_path, word):
    config = recipes.variants(tiny.get_config(shapes, steps=20, log__every=1), word)
    # Below a seventh, which is what a fresh teacher gives each of six classes and the background.
    config.mixtraining.update(gt_score_threshold=0.1, pseudo_score_threshold=0.12)
    assert harness.run(config, tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 20
    for line in steps:
        assert line["update/bad"] == 0
        assert np.isfinite(line["loss"])
        assert ("mixed/rpn_objectness" in line) == config.mixtraining.enabled
    if not config.mixtraining.enabled:
        return
    fates = ("human", "kept", "replaced", "dropped", "mending", "missing")
    counts = {name: sum(line[f"boxes/{name}"] for line in steps) for name in fates}
    assert counts["kept"] > 0 and counts["human"] == pytest.approx(
        counts["kept"] + counts["replaced"] + counts["dropped"]
    )
    for name, switch in (("replaced", "replace_boxes"), ("mending", "replace_boxes"),
                         ("missing", "add_missing")):  # fmt: skip
        assert (counts[name] > 0) == config.mixtraining[switch], name
