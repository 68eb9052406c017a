import math

import numpy as np
import pytest
from PIL import Image

from mixtrain_jax.evaluation import errors as analysis
from mixtrain_jax.pages import charts, check, errors, run
from tests.auditing import simulated
from tests.pages.browser import browser

NAMES = ["disc", "<ring>", "star", "bar"]
IMAGES = 30


def an_image(name):
    rng = np.random.default_rng(int(name[5:8]))
    ramp = np.linspace(60, 190, simulated.SIDE)[:, None, None] + rng.uniform(-30, 30, 3)
    return Image.fromarray(np.broadcast_to(ramp, (simulated.SIDE,) * 2 + (3,)).astype(np.uint8))


FILES = [f"image{n:03}.png" for n in range(IMAGES)]


def write_errors(folder):
    clean, sizes = simulated.truth(seed=0, images=IMAGES)
    seen = simulated.look(clean, clean, sizes, seed=0, rated=False).detections
    found = analysis.Boxes(seen.image, seen.boxes, seen.labels, seen.scores)
    truth = analysis.Boxes(clean.image, clean.boxes, clean.labels)
    result = analysis.analyse(found, truth, NAMES, IMAGES)
    return errors.write(
        folder,
        result,
        found=found,
        truth=truth,
        file_names=FILES,
        read=an_image,
        about="A simulated detector on 30 images.",
    )


def write_check(folder):
    clean, sizes = simulated.truth(seed=0, images=IMAGES)
    return check.write(
        folder,
        title="Data: train",
        about="annotations/train.json",
        class_names=NAMES,
        sizes=sizes,
        image=clean.image,
        boxes=clean.boxes,
        labels=clean.labels,
        file_names=FILES,
        problems=[
            {"what": "boxes without area", "count": 2, "where": "image003.png", "done": "left out"}
        ],
        read=an_image,
    )


def write_run(folder, found=2.0):
    steps = range(50, 2001, 50)
    Image.new("RGB", (60, 40), (120, 150, 140)).save(folder / "sample.jpg")
    return run.write(
        folder / "report.html",
        title="runs/mine",
        about="Faster R-CNN, ResNet-18",
        progress={"step": "2,000 of 2,800", "AP": "0.312", "images per second": "13.1"},
        losses={
            "loss": [(n, 2 * math.exp(-n / 700) + 0.4) for n in steps],
            "loss_rpn": [(n, math.exp(-n / 500)) for n in steps],
        },
        scores=[{"step": n, "AP": n / 6000, "AP50": n / 4000} for n in (500, 1000, 1500, 2000)],
        teacher={
            "share of easy boxes": {"easy": [(n, n / 4000) for n in steps]},
            "boxes per image": {
                "human": [(n, 4.1) for n in steps],
                "found": [(n, found * n / 2000) for n in steps],
                "replaced": [(n, 0.2) for n in steps],
            },
        },
        pictures=[("step 2,000", "sample.jpg")],
        config="seed: 0\nbatch_size: 8",
        human_boxes=4.1,
    )


@pytest.mark.parametrize("write", [write_errors, write_check, write_run])
def test_a_page_in_a_browser(write, tmp_path):
    path = write(tmp_path)
    text = path.read_text()
    assert "http" not in text
    assert "<ring>" not in text
    with browser() as tab:
        tab.open(path)
        tab.run("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager' })")
        pictures = "[...document.querySelectorAll('img')]"
        whole = f"Promise.all({pictures}.map((image) => image.decode())).then(() => true)"
        assert tab.run(whole)
        assert tab.run(f"{pictures}.length") > 0
        assert tab.run("document.querySelectorAll('h2').length") >= 4
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        for scheme in ("light", "dark"):
            tab.send(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": scheme}],
            )
            ink, paper = (
                tab.run(f"getComputedStyle(document.documentElement).{name}")
                for name in ("color", "backgroundColor")
            )
            bright = [sum(map(int, color[4:-1].split(","))) for color in (ink, paper)]
            assert abs(bright[0] - bright[1]) > 400
        assert tab.errors == []


def test_a_run_that_has_not_begun_is_a_page_too(tmp_path):
    path = run.write(
        tmp_path / "report.html",
        title="new",
        about="",
        progress={},
        losses={},
        scores=[],
        teacher={},
        pictures=[],
        config="",
    )
    assert "Nothing was logged yet" in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_run_warns_when_pseudo_boxes_run_away(tmp_path):
    assert "running away" not in write_run(tmp_path, found=5).read_text()
    assert "running away" in write_run(tmp_path, found=20).read_text()


def test_long_lines_are_thinned_to_their_means():
    line = [(float(n), float(n % 2)) for n in range(4000)]
    thin = run.thin({"a": line})["a"]
    assert len(thin) == run.POINTS
    assert {y for _, y in thin} == {0.5}
    assert run.thin({"a": line[:7]})["a"] == line[:7]


def test_a_line_goes_where_its_points_are():
    drawn = charts.lines({"a": [(0, 0), (1, 1)]}, x="x", y="y", x_range=(0, 1), y_range=(0, 1))
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    assert f"M{left:.1f} {bottom:.1f}L{right:.1f} {top:.1f}" in drawn
    gap = charts.lines({"a": [(0, 0), (1, math.nan), (2, 2), (3, 3)]}, x="x", y="y")
    assert gap.count("M4") == 1 + gap.count('class="grid" d="M4')  # the line starts anew


@pytest.mark.parametrize("limits", [(0, 1), (0.1, 0.13), (-3, 17), (0, 123456), (5, 5)])
def test_ticks_are_round_and_cover_the_range(limits):
    ticks = charts._ticks(*limits)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= limits[0] and ticks[-1] >= limits[1]
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0])


def test_a_line_that_is_level_but_for_rounding_is_drawn():
    level = [(step, 0.1 + 1e-17 * (step % 3)) for step in range(9)]
    level[4] = (4, 0.10000000000000002)
    assert "<path" in charts.lines({"a": level}, x="step", y="a")
    tiny = [(step, 1e-13 * (1 + step % 2)) for step in range(9)]
    assert "<path" in charts.lines({"a": tiny}, x="step", y="a")


def test_charts_escape_names_and_survive_having_nothing():
    assert "<b>" not in charts.bars({"<i>": 1.0}, label="<i>").replace("<b style", "")
    assert "&lt;i&gt;" in charts.bars({"<i>": 1.0}, label="x")
    assert "Nothing" in charts.lines({}, x="x", y="y")
    assert "Nothing" in charts.bars({}, label="x")
    assert "Nothing" in charts.columns([0, 1], [], x="x", y="y")
    assert "none" in charts.bars({"a": math.nan}, label="x")


def test_boxes_of_one_size_have_a_histogram():
    """Equal but for the rounding of x + w - x."""
    corners = np.random.default_rng(0).uniform(0, 900, 100)
    sides = (corners + 24.3) - corners
    edges, counts = check._histogram(sides)
    assert sum(counts) == 100 and edges[-1] - edges[0] > 1
    assert "<svg" in charts.columns(edges, counts, x="pixels", y="boxes")
