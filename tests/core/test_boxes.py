"""Boxes in answers: what is one, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.boxes import Box, find_boxes

PERCENT = st.integers(0, 100)


@st.composite
def percents(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """A box that is one."""
    left, right = sorted(draw(st.lists(PERCENT, min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(draw(st.lists(PERCENT, min_size=2, max_size=2, unique=True)))
    return left, top, right, bottom


def test_a_box_with_and_without_a_name() -> None:
    assert find_boxes("[62, 57, 87, 90]", "percent") == (Box(0.62, 0.57, 0.87, 0.9),)
    said = "Two things:\nthe key: [0,0,100,100]; a cat – [1.5, 2, 3 , 4.25]."
    assert find_boxes(said, "percent") == (
        Box(0, 0, 1, 1, "the key"),
        Box(0.015, 0.02, 0.03, 0.0425, "a cat"),
    )


def test_a_model_that_does_not_point_has_no_boxes() -> None:
    assert find_boxes("[62, 57, 87, 90]", None) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "key",
        "[62, 57, 87]",
        "[62, 57, 87, 90",
        "[62, 57, 87, 90, 95]",
        "[62 57 87 90]",
        "[87, 57, 62, 90]",
        "[62, 90, 87, 57]",
        "[62, 57, 62, 90]",
        "[62, 57, 101, 90]",
        "[-62, 57, 87, 90]",
        "[62, 57, 87, 1e1]",
        "[62, 57, 87, nan]",
        "[62, 57, 87, inf]",
        "[62, 57, 87, ٩٠]",
        f"[62, 57, 87, {'9' * 5000}]",
        f"[0.{'0' * 5000}1, 57, 87, 90]",
        "[" * 100_000,
        "[ " * 50_000,
        "[1," * 50_000,
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_box(text: str) -> None:
    assert find_boxes(text, "percent") == ()


@given(st.lists(percents(), max_size=4), st.text("ab [],.:\n", max_size=10))
def test_every_box_is_found(given: list[tuple[int, int, int, int]], between: str) -> None:
    text = "".join(f"{between}{list(box)}" for box in given)
    found = find_boxes(text, "percent")
    places = [(box.left, box.top, box.right, box.bottom) for box in found]
    assert places == [tuple(value / 100 for value in box) for box in given]


@given(st.text(st.sampled_from("[], .-+0123456789e\n"), max_size=80) | st.text(max_size=80))
def test_whatever_is_said_a_box_is_inside_the_image(text: str) -> None:
    for box in find_boxes(text, "percent"):
        assert 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1
