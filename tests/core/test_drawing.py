"""Boxes and points drawn on images: they are visible on any background."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgevlm.boxes import Box, Point
from edgevlm.drawing import draw_locations

PERCENT = st.integers(0, 100)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    left, right = sorted(draw(st.lists(PERCENT, min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(draw(st.lists(PERCENT, min_size=2, max_size=2, unique=True)))
    return Box(left / 100, top / 100, right / 100, bottom / 100)


@given(
    boxes(),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(["#ffffff", "#000000", "#d3003f", "#808080"]),
    st.sampled_from(["RGB", "L", "P", "RGBA", "CMYK"]),
)
def test_a_drawn_box_is_seen_on_any_background(
    box: Box, width: int, height: int, color: str, mode: str
) -> None:
    image = Image.new("RGB", (width, height), color).convert(mode)
    before = np.asarray(image.convert("RGB")).astype(int)
    drawn = draw_locations(image, [box])
    assert drawn.mode == "RGB" and drawn.size == image.size
    assert np.array_equal(before, np.asarray(image.convert("RGB"))), "the image itself stays"
    left, top, right, bottom = box.pixels(width, height)
    assert 0 <= left <= right < width and 0 <= top <= bottom < height
    changed = np.abs(np.asarray(drawn).astype(int) - before).max(axis=2) > 60
    assert changed.any() or (min(width, height) <= 4 and color == "#d3003f"), "no room for both"


@given(
    st.floats(0, 1), st.floats(0, 1), st.sampled_from(["#ffffff", "#000000", "#d3003f", "#808080"])
)
def test_a_drawn_point_is_seen_on_any_background(x: float, y: float, color: str) -> None:
    image = Image.new("RGB", (60, 40), color)
    point = Point(x, y)
    column, row = point.pixels(60, 40)
    changed = np.abs(np.asarray(draw_locations(image, [point])).astype(int) - np.asarray(image))
    rows, columns = np.nonzero(changed.max(axis=2) > 60)
    assert len(rows) and np.abs(rows - row).max() <= 8 and np.abs(columns - column).max() <= 8


def test_no_box_changes_nothing() -> None:
    image = Image.new("RGB", (5, 4), "#123456")
    assert np.array_equal(np.asarray(draw_locations(image, [])), np.asarray(image))
