import dataclasses

import numpy as np
import pytest

from mixtrain_jax.auditing import dump, noise
from mixtrain_jax.errors import UserError
from tests.auditing import simulated


@pytest.fixture
def example() -> dump.Dump:
    clean, sizes = simulated.truth(seed=0, images=8)
    planted = noise.plant(clean, sizes, simulated.CLASSES, 0.1, seed=0)
    looks = [simulated.look(clean, planted.labels, sizes, seed) for seed in (0, 1)]
    return dump.Dump(
        image_ids=np.arange(100, 108),
        file_names=[f"{n}.png" for n in range(8)],
        sizes=sizes,
        class_names=["a", "b", "c", "d"],
        human=planted.labels,
        look=looks[0],
        views={"flip": looks[1]},
        fold=np.arange(8, dtype=np.int32) % 2,
        truth=clean,
        truth_known=np.ones(8, bool),
        source=planted.source,
        note="simulated",
    )


def same(a, b):
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return np.array_equal(a, b)


def test_a_dump_comes_back_as_it_was(example, tmp_path):
    dump.write(tmp_path / "one.npz", example)
    assert same(example, dump.read(tmp_path / "one.npz"))


def test_what_is_optional_may_be_left_out(example, tmp_path):
    bare = dump.Dump(
        example.image_ids,
        example.file_names,
        example.sizes,
        example.class_names,
        example.human,
        dump.Look(example.look.detections),
    )
    dump.write(tmp_path / "bare.npz", bare)
    back = dump.read(tmp_path / "bare.npz")
    assert back.look.probabilities is None and back.truth is None and not back.views
    assert not back.truth_known.any()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("det_scores", None, "has no 'det_scores'"),
        ("det_scores", np.zeros(3), "det_scores has shape"),
        ("human_labels", 4, "human_labels has numbers outside 0..3"),
        ("det_image", -1, "det_image has numbers outside 0..7"),
        ("human_refined", np.nan, "human_refined holds numbers that are not finite"),
        ("flip_human_probabilities", np.zeros((2, 5)), "flip_human_probabilities has shape"),
    ],
)
def test_a_broken_dump_is_one_clear_line(example, tmp_path, key, value, message):
    dump.write(tmp_path / "one.npz", example)
    with np.load(tmp_path / "one.npz") as file:
        arrays = dict(file)
    if value is None:
        del arrays[key]
    elif np.ndim(value):
        arrays[key] = value
    else:
        arrays[key] = arrays[key].copy()
        arrays[key].flat[0] = value
    np.savez(tmp_path / "broken.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        dump.read(tmp_path / "broken.npz")
    assert "broken.npz" in str(caught.value)


def test_a_file_that_is_no_dump_is_one_clear_line(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("text.npz", "none.npz", "empty.npz", "array.npy"):
        with pytest.raises(UserError, match=name):
            dump.read(tmp_path / name)
