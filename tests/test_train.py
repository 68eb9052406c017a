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
    assert harness.run(config, tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 20
    for line in steps:
        assert line["update/bad"] == 0
        assert np.isfinite(line["loss"])
        assert ("mixed/rpn_objectness" in line) == config.mixtraining.enabled
    if config.mixtraining.enabled:  # a fresh teacher is sure of nothing
        dropped, human = (
            sum(line[f"boxes/{name}"] for line in steps) for name in ("dropped", "human")
        )
        assert dropped == human > 0
