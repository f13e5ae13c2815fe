"""An overview and slices: budgets and details; `tests/reference/test_slices.py` has transformers'."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.errors import InputError
from edgevlm.inputs.image_processor import ImageProcessor
from edgevlm.inputs.packing import max_image_tokens
from edgevlm.inputs.tiling import Detail, ImageBudget, count_max_tiles, split_image
from edgevlm.inputs.tiling.slices import count_tokens, limit_tokens
from edgevlm.inputs.tiling.smart_resize import MAX_ASPECT_RATIO
from edgevlm.manifest import ImageSpec, Normalization, SliceTiling, TiledPacking, VisionSpec

FACTOR, SIDE = 4, 32
TILING = SliceTiling(FACTOR, SIDE, max_tiles=9, resample="nearest")
IMAGE = ImageSpec(TILING, Normalization((0, 0, 0), (1, 1, 1), 1 / 255))
VISION = VisionSpec("tiles", "rows", None, 0, 3, TiledPacking(), {}, pixels_per_token=FACTOR)
DETAILS = st.sampled_from((None, *get_args(Detail)))


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Height and width of an image that the model takes."""
    short = draw(st.integers(1, 300))
    long = draw(st.integers(short, min(2000, MAX_ASPECT_RATIO * short)))
    return (short, long) if draw(st.booleans()) else (long, short)


def blank(size: tuple[int, int]) -> np.ndarray:
    return np.zeros((*size, 3), np.uint8)


def tokens(size: tuple[int, int], budget: ImageBudget) -> int:
    model = ImageProcessor(IMAGE, VISION, "sequential")
    return sum(plan.length for plan in model.process(blank(size), budget).plans)


@given(sizes(), DETAILS, st.none() | st.integers(1, 12))
def test_tiles(size: tuple[int, int], detail: Detail | None, max_tiles: int | None) -> None:
    tiles = split_image(blank(size), TILING, detail, max_tiles)
    layout = tiles.layout
    assert layout.tile_sizes == tuple(tile.shape[:2] for tile in tiles.pixels)
    assert len(tiles) == layout.tiles <= min(10, max_tiles or 10)
    assert count_max_tiles(TILING) == 10
    if len(tiles) == 1:
        assert layout.overview is None and (layout.rows, layout.columns) == (0, 0)
        return
    assert detail != "low" and layout.overview == 0 and layout.place(0) is None
    places = [layout.place(tile) for tile in range(1, len(tiles))]
    assert places == list(np.ndindex(layout.rows, layout.columns))
    assert len(set(layout.tile_sizes[1:])) == 1


@given(sizes())
def test_auto_enlarges_no_image(size: tuple[int, int]) -> None:
    """By more than the rounding of a side, and slices stand for as many pixels as they have."""
    layout = split_image(blank(size), TILING, "auto").layout
    assert layout.tile_sizes is not None
    for side, own in zip(layout.tile_sizes[0], size, strict=True):
        assert side <= max(FACTOR, own + FACTOR / 2)
    assert layout.rows * layout.columns * SIDE**2 <= math.prod(size)


@given(sizes(), DETAILS)
def test_no_image_has_more_tokens_than_said(size: tuple[int, int], detail: Detail | None) -> None:
    bound = max_image_tokens(IMAGE, VISION)
    assert bound == 10 * 128
    assert tokens(size, ImageBudget(detail)) <= bound


@given(sizes(), DETAILS, st.integers(1, 700))
def test_a_budget_is_kept(size: tuple[int, int], detail: Detail | None, max_tokens: int) -> None:
    least = (
        round(max(size) / min(size)) ** 0.5 / FACTOR
    )  # of a line of squares as flat as the image
    if max_tokens < least + 1:
        return
    found = tokens(size, ImageBudget(detail, max_tokens))
    assert found <= max_tokens
    if count_tokens(*size, TILING) <= max_tokens:
        assert found == tokens(size, ImageBudget(detail))


@pytest.mark.parametrize(
    ("max_tokens", "tiles", "side"),
    [
        (1000, 10, 32),
        (640, 10, 32),
        (639, 9, 32),
        (500, 7, 32),
        (320, 5, 32),
        (64, 1, 32),
        (63, 1, 28),
    ],
)
def test_fewer_slices_and_then_a_smaller_overview(max_tokens: int, tiles: int, side: int) -> None:
    layout = split_image(blank((96, 96)), limit_tokens(96, 96, TILING, max_tokens)).layout
    assert layout.tile_sizes is not None
    assert layout.tiles == tiles and layout.tile_sizes[0] == (side, side)


def test_a_budget_of_less_than_the_least_is_refused() -> None:
    message = r"max_image_tokens is 3, .* of 1 x 200 pixels takes at least 4"
    with pytest.raises(InputError, match=message):
        tokens((200, 1), ImageBudget(max_tokens=3))


def test_details() -> None:
    large = (300, 300)
    assert len(split_image(blank(large), TILING)) == len(split_image(blank(large), TILING, "high"))
    assert split_image(blank(large), TILING, "low").layout.tile_sizes == ((32, 32),)
    assert split_image(blank((5, 3)), TILING).layout.tile_sizes == ((40, 24),)
    assert split_image(blank((5, 3)), TILING, "auto").layout.tile_sizes == ((4, 4),)
