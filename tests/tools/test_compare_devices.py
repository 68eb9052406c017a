"""What two machines compute is compared by sketches, and of the same step alone."""

import json
import re

import numpy as np
import pytest

from mixtrain_jax import cli
from mixtrain_jax.config import load
from tests import tiny
from tools import compare_devices

RECIPE = f"{load.ROOT}/tests/tiny.py:shapes"  # which are not read


def test_sketches_tell_how_far_arrays_lie_apart():
    rng = np.random.default_rng(0)
    one = {name: rng.normal(size=(40, 50)) for name in "abcdefgh"}
    two = {name: array + 0.01 * rng.normal(size=array.shape) for name, array in one.items()}
    before, now = (
        {name: compare_devices.sketch(name, array) for name, array in arrays.items()}
        for arrays in (one, two)
    )
    assert compare_devices.difference(list(one), before, before) == 0
    assert compare_devices.difference(list(one), before, now) == pytest.approx(0.01, rel=0.3)


@pytest.fixture
def run(capsys):
    def call(*flags):
        arguments = [f"--config={RECIPE}", "--size=64", *map(str, flags)]
        with pytest.raises(SystemExit) as ended:
            cli.run(compare_devices.main, compare_devices.parse(), arguments)
        return ended.value.code, capsys.readouterr()

    return call


def test_a_step_is_written_and_compared(run, tmp_path):
    path = tmp_path / "here.json"
    assert run(f"--write={path}")[0] == 0
    kept = json.loads(path.read_text())
    assert kept["metrics"]["boxes/human"] == 10
    code, said = run(f"--compare={path}")
    assert code == 0
    rows = dict(row.split(" | ") for row in said.out.splitlines() if row.endswith("0.0e+00 |"))
    assert list(rows) == [
        "| RPN",
        "| features",
        *(f"| gradient {part}" for part in ("backbone", "fpn", "roi_head", "rpn")),
    ]
    doubled = {
        name: [2 * number for number in sketch] if name.startswith("features") else sketch
        for name, sketch in kept["arrays"].items()
    }
    rows = "\n".join(compare_devices.table(kept, kept | {"arrays": doubled}))
    (found,) = re.findall(r"\| features \| (.*) \|", rows)
    assert float(found) == pytest.approx(1, rel=0.3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --write=FILE, or --compare=FILE"),
        (["--compare=none.json"], "--compare=none.json: No such file"),
        (["--config.mixtraining.ema_momentum=0.9"], "of another step: config.mixtraining.ema"),
        (["--batch=2"], "of another step: --size=64 --batch=1"),
    ],
)
def test_what_cannot_be_compared_is_one_line(run, tmp_path, flags, message):
    path = tmp_path / "there.json"
    path.write_text(
        json.dumps(
            {
                "config": load.override_all(
                    tiny.get_config("shapes").lock(), compare_devices.SEEN
                ).to_dict(),
                "size": [64, 64],
                "batch": 1,
            }
        )
    )
    if flags and not flags[0].startswith("--compare"):
        flags = [f"--compare={path}", *flags]
    code, said = run(*flags)
    assert code == 2 and message in said.err and said.err.count("\n") == 1
