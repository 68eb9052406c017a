import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from mixtrain_jax.data.input import batches, plan
from mixtrain_jax.data.input.read_errors import ReadErrors
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.data.views import geometry
from mixtrain_jax.errors import UserError
from mixtrain_jax.mixtraining.step import image_keys
from mixtrain_jax.models import pixels


def _same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _take(iterator, count):
    return list(itertools.islice(iterator, count))


def _train_batches(dataset, config, **options):
    return batches.train_batches(
        dataset,
        config.data,
        seed=config.seed,
        batch_size=config.batch_size,
        first_mixed_step=plan.first_mixed_step(config.mixtraining),
        **options,
    )


def _train(dataset, config, count, **options):
    iterator = _train_batches(dataset, config, **options)
    taken = _take(iterator, count)
    iterator.close()
    return taken


def test_plain_epochs_show_every_image_once(coco_files, config):
    coco_files([(64, 64)] * 12, [[(4, 6, 20, 20)]] * 12)
    config.mixtraining.enabled = False
    config.data.train.buckets = ((64, 64),)
    dataset = load_dataset(config.data, "train")
    rows = np.concatenate([b.normal.index for b in _train(dataset, config, 9)]).reshape(3, 12)
    assert all(sorted(epoch) == list(range(12)) for epoch in rows.tolist())
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 3


def test_batches(dataset, config):
    config.mixtraining.start_step = 1
    plain, *mixed = _train(dataset, config, 8)
    assert plain.weak is None
    assert plain.strong is None
    assert plain.normal.image.shape[0] == 4
    buckets = {tuple(bucket) for bucket in config.data.train.buckets}
    for batch in mixed:
        np.testing.assert_array_equal(batch.weak.index, batch.strong.index)
        np.testing.assert_array_equal(batch.weak.labels, batch.strong.labels)
        for view in (batch.normal, batch.weak, batch.strong):
            assert view.image.shape == (2, *batch.normal.image.shape[1:])
            assert view.image.shape[1:3] in buckets
            assert view.image.dtype == view.shown.dtype == np.uint8
            assert view.matrix.dtype == view.boxes.dtype == np.float32
            assert view.size.dtype == view.labels.dtype == view.index.dtype == np.int32
            assert view.boxes.shape == (2, 5, 4)
            assert view.valid.dtype == bool
            for row, labels, valid in zip(view.index, view.labels, view.valid, strict=True):
                own = dataset.labels[row]
                np.testing.assert_array_equal(labels[: len(own)][valid[: len(own)]],
                                              own[valid[: len(own)]])  # fmt: skip
            for image, shown, size in zip(
                view.image, pixels.unpack(view.shown), view.size, strict=True
            ):
                assert (size <= view.image.shape[1:3]).all()
                for padded in (image, shown):
                    assert not padded[size[0] :].any()
                    assert not padded[:, size[1] :].any()
        for i, row in enumerate(batch.weak.index):
            assert batch.weak.valid[i].sum() == len(dataset.boxes[row])
            matrix = batch.weak.matrix[i]
            for k, (x1, y1, x2, y2) in enumerate(dataset.boxes[row]):
                corners = matrix[:2] @ [[x1, x2], [y1, y2], [1, 1]]
                box = [*corners.min(axis=1), *corners.max(axis=1)]
                np.testing.assert_allclose(batch.weak.boxes[i, k], box, atol=1e-3)
        assert (batch.normal.index != 8).all()


def test_the_strong_view_is_strong_and_the_others_are_not(dataset, config):
    taken = _train(dataset, config, 30)
    mirrored = [
        np.concatenate([np.linalg.det(getattr(batch, name).matrix) < 0 for batch in taken])
        for name in ("weak", "strong")
    ]
    assert 0.25 < (mirrored[0] != mirrored[1]).mean() < 0.75  # each view has its own chance
    tilted, holes = {}, {}
    for name in ("normal", "weak", "strong"):
        views = [getattr(batch, name) for batch in taken]
        matrices = np.concatenate([view.matrix for view in views])
        tilted[name] = ((matrices[:, 0, 1] != 0) | (matrices[:, 1, 0] != 0)).mean()
        holes[name] = np.mean(
            [
                not shown[: size[0], : size[1]].all()
                for view in views
                for shown, size in zip(pixels.unpack(view.shown), view.size, strict=True)
            ]
        )
    assert tilted["normal"] == tilted["weak"] == 0 and 0.25 < tilted["strong"] < 0.55
    assert holes["normal"] == holes["weak"] == 0 and holes["strong"] > 0.5


def test_resume_is_exact(dataset, config):
    config.mixtraining.start_step = 2
    batches_of_8 = _train(dataset, config, 8)
    for start in (1, 5):
        _same(_train(dataset, config, 8 - start, start_step=start), batches_of_8[start:])


def test_hosts_share_batches(dataset, config):
    whole = _train(dataset, config, 4)
    parts = [_train(dataset, config, 4, host_index=i, host_count=2) for i in range(2)]
    for step in range(4):
        joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), parts[0][step], parts[1][step])
        _same(joined, whole[step])


@pytest.mark.parametrize("augmentation", ["normal", "strong", "random"])
def test_plain_augmentation(dataset, config, augmentation):
    config.mixtraining.enabled = False
    config.data.train.augmentation = augmentation
    views_of = [batch.normal for batch in _train(dataset, config, 20)]
    matrices = np.concatenate([view.matrix for view in views_of])
    tilted = ((matrices[:, 0, 1] != 0) | (matrices[:, 1, 0] != 0)).mean()
    low, high = {"normal": (0, 0), "strong": (0.25, 0.55), "random": (0.08, 0.35)}[augmentation]
    assert low <= tilted <= high
    for view in views_of:
        for i, row in enumerate(view.index):
            boxes, valid = geometry.transform_boxes(
                dataset.boxes[row], view.matrix[i], view.size[i]
            )
            np.testing.assert_array_equal(view.valid[i, : len(valid)], valid)
            np.testing.assert_allclose(view.boxes[i, : len(valid)][valid], boxes[valid], atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 3, r"config.batch_size = 3 must be a multiple of 2"),
        ("data.train.buckets", ((64, 64),), r"fits in none of config.data.train.buckets"),
    ],
)
def test_bad_config(dataset, config, field, value, message):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        _train_batches(dataset, config)


def test_nothing_to_train_on(coco_files, config):
    coco_files([(64, 64)], [[]])
    with pytest.raises(UserError, match="no image has a box"):
        _train_batches(load_dataset(config.data, "train"), config)


def _spoil(config, *rows):
    for row in rows:
        path = f"{config.data.train.images}/{row}.png"
        with open(path, "r+b") as file:
            file.truncate(60)


def test_unreadable_images_are_replaced(dataset, config, caplog):
    clean = _train(dataset, config, 12)
    _spoil(config, 3)
    config.data.max_bad_share = 0.5
    read_errors = ReadErrors(config.data.max_bad_share)
    with caplog.at_level("WARNING"):
        first = _train(dataset, config, 12, read_errors=read_errors)
    assert read_errors.count > 0
    assert list(read_errors.reasons) == [3]
    assert sum("skipping 3.png" in record.message for record in caplog.records) == 1
    _same(_train(dataset, config, 7, start_step=5), first[5:])
    for ours, theirs in zip(first, clean, strict=True):
        assert ours.normal.image.shape == theirs.normal.image.shape
        for half in ("normal", "weak", "strong"):
            mine, original = getattr(ours, half), getattr(theirs, half)
            good = original.index != 3
            np.testing.assert_array_equal(mine.image[good], original.image[good])
            assert (mine.index != 3).all()
    assert any((batch.weak.index == 3).any() for batch in clean)


def test_too_many_unreadable_images(dataset, config):
    _spoil(config, *range(0, 9, 2))
    with pytest.raises(
        UserError, match=r"could not be read, more than config.data.max_bad_share = 0.01"
    ):
        _train(dataset, config, 200)
    _spoil(config, *range(1, 9, 2))
    config.data.max_bad_share = 1.0
    with pytest.raises(UserError, match="no readable image fits bucket"):
        _train(dataset, config, 200)


def test_size_on_disk_differs(dataset, config):
    Image.fromarray(np.zeros([30, 30, 3], np.uint8)).save(f"{config.data.train.images}/0.png")
    read_errors = ReadErrors(1.0)
    _train(dataset, config, 12, read_errors=read_errors)
    assert read_errors.reasons == {0: "it is 30x30 pixels, declared 60x40"}


@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_evaluation_sees_every_image_once(dataset, config, batch_size):
    seen = []
    for view in batches.eval_batches(dataset, config.data, batch_size):
        assert view.image.shape[0] == batch_size
        assert np.isfinite(view.image).all()
        for i in np.flatnonzero(view.index >= 0):
            row = view.index[i]
            seen.append(row)
            height, width = dataset.sizes[row]
            new = view.size[i]
            expected = np.diag([new[1] / width, new[0] / height, 1])
            np.testing.assert_allclose(view.matrix[i], expected, rtol=1e-6)
            assert view.valid[i].sum() == len(dataset.boxes[row])
            assert min(new) == 48 or max(new) == 96
    assert sorted(seen) == list(range(9))


def test_evaluation_does_not_depend_on_batch_size(dataset, config):
    def by_row(batch_size):
        rows = {}
        for view in batches.eval_batches(dataset, config.data, batch_size):
            for i in np.flatnonzero(view.index >= 0):
                rows[int(view.index[i])] = jax.tree.map(lambda leaf, i=i: leaf[i], view)
        return rows

    _same(by_row(2), by_row(5))


def test_evaluation_on_hosts_and_of_some_rows(dataset, config):
    whole = list(batches.eval_batches(dataset, config.data, 4))
    parts = [
        list(batches.eval_batches(dataset, config.data, 4, host_index=i, host_count=2))
        for i in range(2)
    ]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for one, two, both in zip(*parts, whole, strict=True):
        _same(jax.tree.map(lambda a, b: np.concatenate([a, b]), one, two), both)
    some = batches.eval_batches(dataset, config.data, 2, rows=np.array([1, 6, 2]))
    rows = np.concatenate([view.index for view in some])
    assert sorted(rows[rows >= 0]) == [1, 2, 6]
    with pytest.raises(
        UserError, match=r"config.eval.batch_size must be a multiple of the 2 hosts"
    ):
        batches.eval_batches(dataset, config.data, 3, host_count=2)
    config.data.val.buckets = ((64, 64),)
    with pytest.raises(UserError, match=r"fits in none of config.data.val.buckets"):
        batches.eval_batches(dataset, config.data, 2)


def test_unreadable_image_in_evaluation(dataset, config):
    _spoil(config, 4)
    read_errors = ReadErrors(0.01)
    rows = np.concatenate(
        [v.index for v in batches.eval_batches(dataset, config.data, 2, read_errors=read_errors)]
    )
    assert sorted(rows[rows >= 0]) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert read_errors.count == 1
    assert list(read_errors.reasons) == [4]


def test_a_second_pipeline_traces_no_second_graph(dataset, config):
    """TensorFlow never frees one: a program that predicts image by image would fill its memory."""
    _ = list(batches.eval_batches(dataset, config.data, 4))
    traced = batches._traced.cache_info().misses
    render = batches._Pipelines(dataset, config.data, ((64, 64),), None)._render
    for _ in range(2):
        _ = list(batches.eval_batches(dataset, config.data, 2))
    assert batches._traced.cache_info().misses == traced
    assert render.experimental_get_tracing_count() == 1
    config.data.channels = "bgr"  # what it reads of the config is told apart
    assert batches._Pipelines(dataset, config.data, ((64, 64),), None)._render is not render


def test_two_copies_of_an_image_in_a_step_are_told_apart(dataset, config):
    """By their places: their samples and their stochastic depth must not be the same."""
    config.batch_size = 16  # of nine images
    (batch,) = _train(dataset, config, 1)
    places = np.concatenate([batch.normal.place, batch.strong.place])
    rows = np.concatenate([batch.normal.index, batch.strong.index])
    assert len(set(rows.tolist())) < len(rows) == len(set(places.tolist())) == 16
    np.testing.assert_array_equal(batch.weak.place, batch.strong.place)
    both = jax.tree.map(lambda *halves: np.concatenate(halves), batch.normal, batch.strong)
    keys = jax.random.key_data(image_keys(jax.random.key(0), both))
    assert len(np.unique(keys, axis=0)) == 16


@pytest.mark.parametrize(
    ("sizes", "free", "expected"),
    [
        ([(480, 640)] * 500, 64, 16),
        ([(480, 640)] * 500 + [(10_000, 10_000)], 64, 16),  # one is held once
        ([(3000, 4000)] * 500, 64, 16),
        ([(3000, 4000)] * 500, 8, 2),
        ([(10_000, 10_000)] * 500, 8, 1),
        ([(10_000, 10_000)] * 500, None, 16),
        ([(2**31 - 1, 2**31 - 1)] * 3, 64, 1),
        ([(0, 0)] * 3, 64, 16),
        ([], 64, 16),
    ],
)
def test_fewer_large_images_are_prepared_at_once(monkeypatch, caplog, sizes, free, expected):
    monkeypatch.setattr(batches.machine, "cores", lambda: 16)
    monkeypatch.setattr(batches.machine, "free_memory", lambda: free and free * 2**30)
    assert batches.default_workers(np.array(sizes, np.int32).reshape(-1, 2)) == expected
    assert ("The images are large" in caplog.text) == (expected < 16)
