"""Fonts are found by what they draw; names that none can draw become numbers."""

import pathlib

import numpy as np
import pytest
from PIL import ImageFont

from mixtrain_jax.pages import draw, fonts

ARABIC = "سيارة"


@pytest.fixture
def machine(monkeypatch):
    """Stands in for a machine with these font files."""

    def having(*paths):
        fonts._having.cache_clear()
        fonts._warn.cache_clear()
        monkeypatch.setattr(fonts, "_files", lambda: tuple(map(str, paths)))

    yield having
    fonts._having.cache_clear()


def test_a_letter_counts_if_it_is_not_drawn_as_missing():
    plain = ImageFont.load_default(20)
    assert fonts.has(plain, "Aa0.…")
    assert not fonts.has(plain, "猫")
    assert not fonts.has(plain, "A猫")


def test_names_without_a_font_become_numbers_and_it_is_said_once(machine, monkeypatch):
    machine()
    said = []
    monkeypatch.setattr(fonts.logging, "warning", lambda text, *a: said.append(text % a))
    names = ["cat", "猫", "bird", "Äpfel"]
    assert fonts.drawable(names) == ["cat", "class 1", "bird", "Apfel"]
    assert fonts.drawable(names) == ["cat", "class 1", "bird", "Apfel"]
    assert fonts.drawable(["cat", "dog"]) == ["cat", "dog"]
    assert len(said) == 1 and "猫" in said[0]


def test_a_font_of_the_machine_is_taken_for_its_letters(machine):
    path = pathlib.Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
    if not path.exists():
        pytest.skip("DejaVu Sans is not installed")
    machine(path)
    assert fonts.drawable(["машина", ARABIC]) == ["машина", ARABIC]
    assert fonts.load(20, ARABIC).path == str(path)
    picture = np.full((200, 300, 3), 128, np.uint8)
    boxes = np.array([[20, 40, 200, 150]])
    red = [(255, 0, 0)]
    drawn = [draw.draw_boxes(picture, boxes, [text], red) for text in (ARABIC, ARABIC[::-1])]
    assert (drawn[0] != drawn[1]).any()  # letters, not squares
