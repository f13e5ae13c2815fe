"""A canvas of squares: budgets and details; `tests/reference/test_canvas.py` has transformers'."""

from __future__ import annotations

import logging
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.inputs.image_processor import ImageProcessor
from edgevlm.inputs.pixels import MAX_SIDE
from edgevlm.inputs.tiling import Detail, ImageBudget, choose_own_size, count_max_tiles, split_image
from edgevlm.manifest import CanvasTiling, ImageSpec, Normalization, TiledPacking, VisionSpec

FACTOR = 8
TILING = CanvasTiling(FACTOR, max_tiles=4, resample="bilinear")
VISION = VisionSpec("tiles", "rows", None, 0, 3, TiledPacking(), {}, pixels_per_token=FACTOR)
SIDES = st.integers(1, 100)
DETAILS = st.sampled_from((None, *get_args(Detail)))


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def process(
    image: np.ndarray, budget: ImageBudget, default_max_tokens: int | None = None
) -> np.ndarray:
    normalization = Normalization((0, 0, 0), (1, 1, 1), 1 / 255)
    spec = ImageSpec(TILING, normalization, default_max_tokens)
    (tile,) = ImageProcessor(spec, VISION, "sequential").process(image, budget).pixels
    return tile


@given(SIDES, SIDES, DETAILS, st.none() | st.integers(1, 12))
def test_an_image_is_one_canvas(
    height: int, width: int, detail: Detail | None, max_tiles: int | None
) -> None:
    """The image stands at its top left and the rest is black."""
    tiles = split_image(white(height, width), TILING, detail, max_tiles)
    assert len(tiles) == tiles.layout.tiles == count_max_tiles(TILING) == 1
    (canvas,) = tiles.pixels
    tall, wide, _ = canvas.shape
    assert tall % FACTOR == wide % FACTOR == 0 and 1 <= tall * wide // FACTOR**2 <= 4
    expected = (FACTOR, FACTOR) if detail == "low" else choose_own_size(height, width, TILING)
    assert tiles.layout.tile_sizes == ((tall, wide),) == (expected,)
    region = tiles.layout.region
    shown_tall, shown_wide = round(tall / region.bottom), round(wide / region.right)
    assert (region.left, region.top) == (0, 0)
    assert shown_tall == tall or shown_wide == wide or (shown_tall, shown_wide) == (height, width)
    assert (canvas[:shown_tall, :shown_wide] == 255).all()
    assert not canvas[shown_tall:].any() and not canvas[:, shown_wide:].any()


@given(SIDES, SIDES, DETAILS)
def test_only_images_smaller_than_a_square_are_enlarged(
    height: int, width: int, detail: Detail | None
) -> None:
    layout = split_image(white(height, width), TILING, detail).layout
    assert layout.tile_sizes is not None
    ((tall, wide),) = layout.tile_sizes
    shown = round(tall / layout.region.bottom), round(wide / layout.region.right)
    if max(height, width) < FACTOR:
        assert (tall, wide) == (FACTOR, FACTOR) and max(shown) == FACTOR
    else:
        assert shown[0] <= height and shown[1] <= width


def test_details() -> None:
    large = white(30, 9)
    assert split_image(large, TILING).layout.tile_sizes == ((32, 8),)
    assert split_image(large, TILING, "high").layout.tile_sizes == ((32, 8),)
    assert split_image(large, TILING, "auto").layout.tile_sizes == ((32, 8),)
    assert split_image(large, TILING, "low").layout.tile_sizes == ((8, 8),)


@pytest.mark.parametrize("size", [(1, MAX_SIDE), (MAX_SIDE, 1), (1, 1)])
def test_extreme_images(size: tuple[int, int]) -> None:
    (tile,) = split_image(white(*size), TILING).pixels
    assert max(tile.shape[:2]) == (8 if size == (1, 1) else 32)
    assert tile.any()


@pytest.mark.parametrize("detail", [None, "high", "auto", "low"])
def test_a_budget_changes_nothing(detail: Detail | None, caplog: pytest.LogCaptureFixture) -> None:
    """An image is one entry in the prompt, so any budget allows it."""
    image = white(16, 16)
    side = 8 if detail == "low" else 16
    with caplog.at_level(logging.WARNING, "edgevlm"):
        for limit in (1, 2, 1000, None):
            assert process(image, ImageBudget(detail, limit)).shape == (side, side, 3)
            assert process(image, ImageBudget(detail, limit), 1).shape == (side, side, 3)
    assert not caplog.records
