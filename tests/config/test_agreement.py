"""What hosts compare before the first step: whatever differs is named."""

import numpy as np
import pytest

from mixtrain_jax.config import agreement, load
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.sources.annotations import from_lists
from mixtrain_jax.data.sources.dataset import assemble
from mixtrain_jax.data.sources.image_files import Reading
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import hosts

CONFIG = load.load("faster", {"steps": "1000"})
STATE = {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros(2, np.float32)}


def dataset(width=30, right=20, category="cat", label=0, of=(0, 0)):
    table = from_lists(
        images=[("1.png", "", (20, width)), ("2.png", "", (20, width))],
        boxes=[
            (of[0], label, [1, 2, right, 10], False, "line 1"),
            (of[1], 0, [2, 2, 9, 10], False, "line 2"),
        ],
        names=[category, "other"],
        source="here",
        read=lambda row: b"",
    )
    return assemble(table, Reading(), "train", 5)


def told(config=CONFIG, train=None, step=3, state=STATE):
    config = resolve(config, classes=2)
    return agreement.fingerprint(config, [train or dataset()], step, state)


def other(tree):
    return tree | {"a": tree["a"] + np.where(tree["a"] == 5, 1e-12, 0)}


@pytest.mark.parametrize(
    ("theirs", "field"),
    [
        (dict(config=load.override_all(CONFIG, {"seed": "1"})), "config.seed"),
        (dict(config=load.override_all(CONFIG, {"data.train.scale": "9,8,9"})),
         "config.data.train.scale"),
        (dict(config=load.override_all(CONFIG, {"eval.images": "5"})), "config.eval.images"),
        (dict(train=dataset(width=31)), "the image ids of train"),
        (dict(train=dataset(right=21)), "the boxes of train"),
        (dict(train=dataset(category="dog")), "the categories of train"),
        (dict(train=dataset(label=1)), "the boxes of train"),
        (dict(train=dataset(of=(0, 1))), "the boxes of train"),  # the same boxes, on other images
        (dict(step=4), "the step of the weights"),
        (dict(state=other(STATE)), "the weights"),
    ],
)  # fmt: skip
def test_what_differs_is_named(monkeypatch, theirs, field):
    assert told() == told()
    monkeypatch.setattr(hosts, "from_all", lambda name, value: [value, told(**theirs)])
    with pytest.raises(UserError, match=f"host 1 differs from host 0 in {field}: "):
        hosts.same_everywhere(told())


def test_hosts_may_find_the_same_files_in_other_places():
    own = {"data.train.images": "/b", "data.val.annotations": "/c", "init_from": "/d/weights"}
    own |= {"data.workers": "3", "data.max_bad_share": "0.5", "data.train.list": "/e/train.txt"}
    assert told(config=load.override_all(CONFIG, own)) == told()


def test_other_code_is_named(monkeypatch, tmp_path):
    ours = told()
    (tmp_path / "__init__.py").write_text("changed = True")
    monkeypatch.setattr(agreement.mixtrain_jax, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(hosts, "from_all", lambda name, value: [ours, value])
    with pytest.raises(UserError, match="host 1 differs from host 0 in the code of mixtrain_jax: "):
        hosts.same_everywhere(told())


def test_where_each_host_finds_its_files_is_its_own_affair():
    elsewhere = {"data.train.images": "/mnt/images", "data.workers": "3"}
    assert told(config=load.override_all(CONFIG, elsewhere)) == told()
