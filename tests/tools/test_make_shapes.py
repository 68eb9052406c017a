import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from tools import make_shapes

PROGRAM = pathlib.Path(make_shapes.__file__)


def run(*flags, cwd=None):
    return subprocess.run(
        [sys.executable, str(PROGRAM), *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def scenes():
    return [make_shapes.draw_scene(np.random.default_rng([7, n]), 256) for n in range(60)]


def test_program_writes_the_same_bytes_whatever_the_workers_and_the_count(tmp_path):
    done = run(f"--output={tmp_path / 'a'}", "--train=3", "--val=2", "--size=96", "--workers=2")
    assert done.returncode == 0, done.stderr
    make_shapes.make(str(tmp_path / "b"), train=5, val=1, size=96)
    make_shapes.make(str(tmp_path / "c"), train=3, val=2, size=96, seed=1)
    first, second, other = (files(tmp_path / name) for name in "abc")
    assert sorted(first) == [
        "annotations/train.json",
        "annotations/val.json",
        "train/000001.jpg",
        "train/000002.jpg",
        "train/000003.jpg",
        "val/000001.jpg",
        "val/000002.jpg",
    ]
    pictures = [name for name in first if name in second and name.endswith("jpg")]
    assert len(pictures) == 4
    assert all(first[name] == second[name] for name in pictures)
    assert not set(first.values()) & set(other.values())
    assert len(set(first.values())) == len(first)


def test_files_are_coco_and_fit_the_pictures(tmp_path):
    make_shapes.make(str(tmp_path), train=4, val=2, size=128)
    for split, count in (("train", 4), ("val", 2)):
        coco = COCO(tmp_path / "annotations" / f"{split}.json")
        assert coco.getImgIds() == list(range(1, count + 1))
        assert [c["id"] for c in coco.loadCats(coco.getCatIds())] == list(make_shapes.CATEGORIES)
        for image in coco.loadImgs(coco.getImgIds()):
            with Image.open(tmp_path / split / image["file_name"]) as picture:
                assert (picture.format, picture.mode) == ("JPEG", "RGB")
                assert picture.size == (image["width"], image["height"]) == (128, 128)
        entries = coco.loadAnns(coco.getAnnIds())
        assert [entry["id"] for entry in entries] == list(range(1, len(entries) + 1))
        assert {entry["category_id"] for entry in entries} <= set(make_shapes.CATEGORIES)
        for entry in entries:
            x, y, width, height = entry["bbox"]
            assert min(x, y) >= 0
            assert max(x + width, y + height) <= 128
            assert min(width, height) >= make_shapes.MIN_SIDE
            assert entry["area"] == width * height
            assert entry["iscrowd"] == 0


def test_boxes_are_the_extent_of_what_is_visible(scenes):
    partly_hidden = 0
    for scene in scenes[:20]:
        expected = []
        for index, (name, whole) in enumerate(zip(scene.names, scene.areas, strict=True)):
            seen = scene.owner == index
            columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
            assert seen.sum() <= whole
            if seen.sum() < 0.35 * whole:
                continue
            partly_hidden += seen.sum() < 0.9 * whole
            box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            if min(box[2:]) >= make_shapes.MIN_SIDE:
                expected.append((name, box))
        assert make_shapes.visible_boxes(scene) == expected
    assert partly_hidden >= 10


def test_hidden_objects_and_slivers_have_no_box():
    owner = np.full((64, 64), -1, np.int32)
    owner[10:30, 5:25] = 0
    owner[40:60, 40:48] = 1
    image = np.zeros((64, 64, 3), np.uint8)
    disc = ("disc", [5.0, 10.0, 20.0, 20.0])

    def boxes(*areas):
        return make_shapes.visible_boxes(
            make_shapes.Scene(image, owner, ["disc", "star"], np.array(areas))
        )

    assert boxes(400, 160) == [disc]  # the star shows whole, yet only eight pixels of width
    assert boxes(400 / 0.36, 160) == [disc]
    assert boxes(400 / 0.34, 160) == []


@pytest.mark.parametrize("name", ["disc", "pebble"])
def test_paint_tells_covered_pixels_and_the_whole_area(name):
    light, colors = make_shapes.Light(0.6, -0.8, 0.5), (np.zeros(3), np.ones(3))
    whole = []
    for center in ((50, 50), (50, 0)):
        canvas = np.full((100, 100, 3), 0.5, np.float32)
        on, inside, area = make_shapes.paint(
            canvas, name, center, 20.0, 0.3, "stripes", colors, light, np.random.default_rng(3)
        )
        covered = np.zeros((100, 100), bool)
        covered[on] = inside
        changed = np.abs(canvas - 0.5).max(axis=-1) > 0
        assert changed[covered].mean() > 0.95
        assert not changed.all()
        whole.append(area)
        assert covered.sum() == area if center == (50, 50) else 0.3 < covered.sum() / area < 0.7
    assert whole[0] == whole[1]
    if name == "disc":
        assert math.pi * 400 / 1.2 < whole[0] < math.pi * 400 / 0.8


@pytest.mark.parametrize(("points", "notch"), [(5, 0.45), (3, 0.5), (4, math.sqrt(0.5)), (7, 0.3)])
def test_polygon_against_pillow(points, notch):
    scale, size = 300, 801
    corners = []
    for corner in range(2 * points):
        radius, turn = (notch if corner % 2 else 1) * scale, math.pi * corner / points
        corners.append((400 + radius * math.sin(turn), 400 - radius * math.cos(turn)))
    image = Image.new("1", (size, size))
    ImageDraw.Draw(image).polygon(corners, fill=1)
    y, x = (np.mgrid[:size, :size] - 400) / scale
    distance = make_shapes.polygon(x, y, points, notch)
    differ = (distance < 0) != np.asarray(image)
    assert np.abs(distance[differ]).max(initial=0) * scale < 2  # pixels


@pytest.mark.parametrize("name", list(make_shapes.CATEGORIES.values()))
def test_outlines_have_about_the_side_they_are_asked_for(name):
    """RADIUS makes one side of an upright object about 1, which keeps COCO's size classes."""
    y, x = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j] / make_shapes.RADIUS[name]
    inside = make_shapes.outline(name, x, y, np.random.default_rng(0)) < 0
    extents = [np.ptp(np.flatnonzero(inside.any(axis=axis))) / 100 for axis in (0, 1)]
    assert 0.75 < min(extents) <= max(extents) < 1.1
    assert not inside[[0, -1]].any()


def test_pictures_are_what_the_quickstart_needs(scenes):
    boxes = [make_shapes.visible_boxes(scene) for scene in scenes]
    areas = np.array([width * height for each in boxes for _, (_, _, width, height) in each])
    assert 3 <= len(areas) / len(scenes) <= 5
    assert 0.12 < np.mean(areas < 32**2) < 0.32
    assert 0.18 < np.mean(areas > 96**2) < 0.38
    names = [name for each in boxes for name, _ in each]
    assert min(names.count(name) for name in make_shapes.CATEGORIES.values()) >= 20
    for scene in scenes:
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (256, 256, 3)
        assert scene.image.std() > 12


def clean_annotations(pictures=1200, size=256):
    rng = np.random.default_rng(0)
    names = list(make_shapes.CATEGORIES.values())
    boxes = []
    for _ in range(pictures):
        corners, sides = rng.integers(0, 200, (4, 2)), rng.integers(14, 56, (4, 2))
        boxes.append(
            [
                (str(rng.choice(names)), [float(v) for v in (*corner, *side)])
                for corner, side in zip(corners, sides, strict=True)
            ]
        )
    return make_shapes.annotations(boxes, size)


def overlap(a, b):
    low = np.maximum(a[:2], b[:2])
    high = np.minimum(np.add(a[:2], a[2:]), np.add(b[:2], b[2:]))
    shared = np.prod(np.maximum(high - low, 0))
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def test_damage_has_the_rates_asked_for_and_notes_itself():
    clean = clean_annotations()
    before = json.dumps(clean)
    damaged = make_shapes.damage(clean, drop=0.3, shift=0.2, swap=0.1, seed=5)
    assert json.dumps(clean) == before
    assert damaged == make_shapes.damage(clean, drop=0.3, shift=0.2, swap=0.1, seed=5)
    assert damaged != make_shapes.damage(clean, drop=0.3, shift=0.2, swap=0.1, seed=6)
    assert damaged["images"] == clean["images"]

    truth = {entry["id"]: entry for entry in clean["annotations"]}
    kept = damaged["annotations"]
    assert len({entry["id"] for entry in kept}) == len(kept)
    assert len(kept) / len(truth) == pytest.approx(0.7, abs=0.03)
    shifted = [entry for entry in kept if "shift" in entry.get("damage", ())]
    swapped = [entry for entry in kept if "swap" in entry.get("damage", ())]
    assert len(shifted) / len(kept) == pytest.approx(0.2, abs=0.03)
    assert len(swapped) / len(kept) == pytest.approx(0.1, abs=0.02)
    assert {entry["category_id"] for entry in swapped} == set(make_shapes.CATEGORIES)
    for entry in kept:
        original = truth[entry["id"]]
        notes = entry.get("damage", [])
        assert (entry["category_id"] != original["category_id"]) == ("swap" in notes)
        assert (entry["bbox"] != original["bbox"]) == ("shift" in notes)
        if not notes:
            assert entry == original
    for entry in shifted:
        x, y, width, height = entry["bbox"]
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= 256.005
        # Both ways by 10 % leaves 0.81 of 1.19, by 20 % 0.64 of 1.36; the border may cut more.
        old = truth[entry["id"]]["bbox"]
        inside = min(old[:2]) > 12 and max(old[0] + old[2], old[1] + old[3]) < 244
        low, high = (0.47, 0.682) if inside else (0.4, 0.82)
        assert low < overlap(entry["bbox"], old) < high


def test_damage_spares_the_truth_the_val_split_and_the_pictures(tmp_path):
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    make_shapes.make(str(whole), train=4, val=2, size=96)
    make_shapes.make(str(hurt), train=4, val=2, size=96, drop=0.5, swap=0.5)
    ours, theirs = files(whole), files(hurt)
    assert theirs.pop("annotations/train_clean.json") == ours["annotations/train.json"]
    assert [name for name in ours if ours[name] != theirs[name]] == ["annotations/train.json"]
    make_shapes.make(str(hurt), train=4, val=2, size=96)
    assert files(hurt) == ours


@pytest.mark.parametrize(
    ("flag", "told"), [("--drop=1.5", "--drop"), ("--size=20", "--size"), ("--val=-1", "--val")]
)
def test_bad_flags_are_refused_before_anything_is_written(flag, told, tmp_path):
    done = run(f"--output={tmp_path / 'x'}", flag)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for output, told in (("gs://bucket/shapes", "a local folder"), ("file/x", "Not a directory")):
        done = run(f"--output={output}", cwd=tmp_path)
        assert done.returncode == 2
        assert told in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_says_what_is_written():
    text = " ".join(run("--help").stdout.split())
    assert "OUTPUT/annotations/train.json" in text
    assert "train_clean.json" in text
