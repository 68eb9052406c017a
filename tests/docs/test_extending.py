"""The examples of docs/extending.md are complete: they run, one after the other, as they stand."""

import re

from mixtrain_jax.config import load as configs
from mixtrain_jax.data.sources import load
from mixtrain_jax.models import backbones


def test_the_examples_run(monkeypatch):
    text = (configs.ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert len(blocks) == text.count("```python") >= 4
    monkeypatch.setattr(backbones, "BACKBONES", dict(backbones.BACKBONES))
    monkeypatch.setattr(load, "SOURCES", dict(load.SOURCES))
    names = {"__name__": "extending"}
    for block in blocks:
        exec(compile(block, "docs/extending.md", "exec"), names)
