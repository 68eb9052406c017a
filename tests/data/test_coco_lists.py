"""The columns of a COCO file say the same on every way through it."""

import json

import numpy as np
import pytest

from mixtrain_jax.data.sources import coco_lists
from mixtrain_jax.data.sources.ragged import Ragged
from mixtrain_jax.errors import UserError


def content(images=40, boxes=400):
    rng = np.random.default_rng(0)
    return {
        "info": {"note": "}, {"},
        "images": [
            {"id": 7 * row, "file_name": f"a }}, {{ {row}.jpg", "height": 40 + row, "width": 50}
            for row in range(images)
        ],
        "annotations": [
            {
                "segmentation": [[1.5, 2, 3, 4]] if box % 9 else {"counts": [1, 2], "size": [3, 4]},
                "id": 1000 - box,
                "image_id": 7 * int(rng.integers(images)),
                "category_id": 1 + box % 3,
                "bbox": [*rng.normal(0, 100, 2).tolist(), 5, box / 7],
                "area": box / 3,
                "iscrowd": box % 2,
                "parts": [{"name": "}, {"}, {"name": "left"}],
            }
            for box in range(boxes)
        ],
        "categories": [{"id": 1 + number, "name": f"class {number}"} for number in range(3)],
    }


def columns(table):
    return {
        name: coco_lists.listed(value) if name in ("keys", "images", "categories") else value
        for name, value in vars(table).items()
    }


def assert_same(ours, theirs):
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        one, other = columns(one), columns(other)
        for name, value in other.items():
            np.testing.assert_array_equal(one[name], value, err_msg=name)
    assert ours[2] == theirs[2]


@pytest.fixture
def read(tmp_path):
    def write_and_read(value, encoding="utf-8"):
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / "a.json").write_bytes(text.encode(encoding))
        return coco_lists.read(str(tmp_path / "a.json"))

    return write_and_read


@pytest.fixture
def slow(read, monkeypatch):
    """The same file as json reads it, as a whole."""

    def refuse(*_, **__):
        raise ValueError

    def read_slowly(value):
        with monkeypatch.context() as patch:
            patch.setattr(coco_lists.msgspec.json, "decode", refuse)
            return read(value)

    return read_slowly


@pytest.mark.parametrize("block", [1, 300, 5000, 1 << 22])
def test_blocks_of_any_size_say_what_json_says(read, slow, monkeypatch, block):
    theirs = slow(content())
    monkeypatch.setattr(coco_lists, "_BLOCK", block)
    ours = read(content())
    assert_same(ours, theirs)
    assert isinstance(ours[1].keys, np.ndarray) and ours[1].boxes.shape == (400, 4)
    assert_same(read(json.dumps(content(), indent=1)), theirs)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings(read, slow, encoding):
    assert_same(read(json.dumps(content()), encoding), slow(content()))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "200"},
        {"id": 2**70},
        {"id": 3.0},
        {"image_id": "7"},
        {"image_id": None},
        {"category_id": "cat"},
        {"bbox": None},
        {"bbox": [1, 2, None, 4]},
        {"bbox": [1, 2, 3, 10**400]},
        {"bbox": ["1", 2, 3, 4]},
        {"bbox": [1, 2, 3, 4, 5]},
        {"bbox": [1, 2, 3, float("nan")]},
        {"area": None},
        {"area": "12.5"},
        {"iscrowd": True},
        {"iscrowd": "1"},
        {"iscrowd": None},
    ],
    ids=str,
)
def test_an_odd_entry_among_others(read, slow, monkeypatch, change):
    """In its block entries are read one by one; what they say is what json says."""
    monkeypatch.setattr(coco_lists, "_BLOCK", 2000)
    value = content()
    value["annotations"][199].update(change)
    ours = read(value)
    assert_same(ours, slow(value))
    if "id" not in change and "bbox" not in change:
        assert isinstance(ours[1].keys, np.ndarray)


def test_annotations_may_lack_ids_all_together(read):
    value = content()
    for entry in value["annotations"]:
        del entry["id"]
    assert coco_lists.listed(read(value)[1].keys) == list(range(1, 401))
    value["annotations"][5]["id"] = 3
    with pytest.raises(UserError, match="entry 0 of 'annotations' has no integer 'id'"):
        read(value)


def test_ids_used_twice_are_named_in_order(read):
    value = content()
    for place, other in ((9, 3), (7, 2), (30, 3)):
        value["annotations"][place]["id"] = value["annotations"][other]["id"]
    with pytest.raises(UserError, match="ids used twice in 'annotations': 998, 997, 997$"):
        read(value)


def test_places():
    known, wanted = np.array([5, -3, 8]), np.array([8, 7, 5, 9, -3])
    assert coco_lists.places(wanted, known).tolist() == [2, -1, 0, -1, 1]
    assert coco_lists.places(["b", 8], [8, "b"]).tolist() == [1, 0]
    assert coco_lists.places(wanted, np.zeros(0, np.int64)).tolist() == [-1] * 5


def test_ragged():
    ragged = Ragged.of(np.arange(6), np.array([2, 0, 3, 1]))
    parts = [[0, 1], [], [2, 3, 4], [5]]
    assert [each.tolist() for each in ragged] == parts
    assert [ragged[row].tolist() for row in range(4)] == parts
    assert ragged[-1].tolist() == [5] and len(ragged) == 4
    assert [each.tolist() for each in ragged[1:3]] == parts[1:3]
    assert [each.tolist() for each in ragged.take(np.array([2, 0]))] == [[2, 3, 4], [0, 1]]
    assert len(ragged.take(np.zeros(0, int))) == 0
    with pytest.raises(IndexError):
        ragged[4]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "b"}], "annotations": []},
         ["a", "b"]),
        ({"images": [{"id": "x", "file_name": "a"}, 3], "annotations": [], "categories": 1}, ["a"]),
        ({"images": [], "annotations": []}, []),
        ({"images": [{"id": 1, "file_name": "a"}]}, None),
        ({"images": {}, "annotations": []}, None),
        ({"images": [], "annotations": {}}, None),
        ([1, 2], None),
        (None, None),
    ],
)  # fmt: skip
def test_the_first_names_tell_whether_it_is_a_coco_file(tmp_path, content, expected):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    found = coco_lists.first_names(str(path), 5)
    assert (found if found is None else [name for name in found if name]) == expected
    for broken in ("{", ""):
        path.write_text(broken)
        with pytest.raises(UserError, match="not a JSON file"):
            coco_lists.first_names(str(path), 5)
