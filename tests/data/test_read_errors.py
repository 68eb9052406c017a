"""When unreadable images stop a run: by the share of images that are bad, not of draws."""

import dataclasses

import numpy as np
import pytest

from mixtrain_jax.data.input.read_errors import ReadErrors
from mixtrain_jax.data.sources import load
from mixtrain_jax.data.sources.annotations import from_lists
from mixtrain_jax.data.sources.dataset import assemble
from mixtrain_jax.data.sources.image_files import Reading
from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage


def dataset(count, bad):
    """So many images of 1x1, of which the first are empty files."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    table = from_lists(
        images=[(f"{row}.png", "", (1, 1)) for row in range(count)],
        boxes=[],
        names=["a"],
        source="here",
        read=lambda row: b"" if row < bad else file.getvalue(),
    )
    return assemble(table, Reading(), "train", 5)


def read(errors, found, rows):
    return [errors.read(found, row) is not None for row in rows]


def test_an_image_counts_once_however_often_it_is_drawn():
    errors, found = ReadErrors(0.1), dataset(20, 4)
    for _ in range(50):
        assert read(errors, found, range(6)) == [False] * 4 + [True] * 2
    assert (errors.drawn, errors.count, len(errors.reasons)) == (300, 200, 4)


@pytest.mark.parametrize(
    ("count", "bad", "share", "borne"),
    [
        (1000, 10, 0.01, 10),
        (1000, 11, 0.01, 10),
        (20, 5, 0.0, 4),  # a few are always borne
        (6, 4, 0.0, 3),  # but no more than half
        (1, 1, 0.0, 0),
        (8, 8, 1.0, 8),
    ],
)
def test_the_share_of_the_set(count, bad, share, borne):
    errors, found = ReadErrors(share), dataset(count, bad)
    assert read(errors, found, range(borne)) == [False] * borne
    if bad == borne:
        assert read(errors, found, range(count)).count(True) == count - bad
        return
    message = (
        rf"train: {borne + 1} of {count} images could not be read, more than "
        rf"config.data.max_bad_share = {share}; the last is {borne}.png: an empty file"
    )
    with pytest.raises(UserError, match=message):
        errors.read(found, borne)


def test_of_some_images_the_share_is_theirs():
    errors, found = ReadErrors(0.0, of=2), dataset(100, 2)
    errors.read(found, 0)
    with pytest.raises(UserError, match="2 of 2 images could not be read"):
        errors.read(found, 1)


def test_a_set_of_unreadable_images_is_refused_before_anything_is_compiled(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    table = from_lists(
        images=[("a.png", str(tmp_path / "a.png"), (4, 4))],
        boxes=[(0, 0, (0, 0, 2, 2), False, "a")],
        names=["a"],
        source="here",
    )
    with pytest.raises(UserError, match="val: none of the 1 images looked at can be read"):
        load.complete(table, "val", 5)
    empty = dataclasses.replace(table, sizes=np.zeros([1, 2], np.int32))
    with pytest.raises(UserError, match="can be read; a.png: an empty file"):
        load.complete(empty, "val", 5)


def test_an_image_that_the_network_hid_is_tried_again(caplog):
    found = dataset(5, 0)
    whole, calls = found.read, []

    def hiccup(row):
        calls.append(row)
        if len(calls) == 1:
            error = storage.StorageError("cannot read gs://bucket/0.png: Connection reset by peer")
            error.transient = True
            raise error
        return whole(row)

    found = dataclasses.replace(found, read=hiccup)
    errors = ReadErrors(0.0, again=True)
    assert read(errors, found, [0, 0]) == [False, True]
    assert (errors.drawn, errors.count, errors.reasons) == (2, 1, {})
    assert "Connection reset" in caplog.text
    calls.clear()
    errors = ReadErrors(1.0)  # nothing is drawn again: it is a bad image as any other
    assert read(errors, found, [0]) == [False]
    assert "Connection reset" in errors.reasons[0]
