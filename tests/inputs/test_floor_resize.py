"""Tiles with sides rounded down: budgets and details; `tests/reference` compares with transformers."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.errors import InputError
from edgevlm.inputs.image_processor import ImageProcessor
from edgevlm.inputs.packing import max_image_tokens
from edgevlm.inputs.tiling import ImageBudget, split_image
from edgevlm.inputs.tiling.floor_resize import choose_size
from edgevlm.inputs.tiling.smart_resize import LOW_DETAIL_TOKENS, apply_detail, limit_tokens
from edgevlm.manifest import FloorResizeTiling, ImageSpec, Normalization, TiledPacking, VisionSpec

FACTOR = 4
AREA = 400 * FACTOR**2
TILING = FloorResizeTiling(FACTOR, AREA, AREA, "bicubic")
VISION = VisionSpec("tiles", "rows", None, 0, 3, TiledPacking(), {}, pixels_per_token=FACTOR)
SIDES = st.integers(1, 5000)


def processor(default: int | None) -> ImageProcessor:
    scaling = Normalization((0, 0, 0), (1, 1, 1), 1 / 255)
    return ImageProcessor(ImageSpec(TILING, scaling, default), VISION, "sequential")


def blank(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


@given(SIDES, SIDES, st.integers(1, 1000))
def test_a_budget_is_kept(height: int, width: int, max_tokens: int) -> None:
    """Whatever the aspect ratio is; sides are multiples of the factor."""
    sides = choose_size(height, width, limit_tokens(TILING, max_tokens))
    assert all(side and side % FACTOR == 0 for side in sides)
    assert math.prod(sides) <= min(max_tokens, 400) * FACTOR**2


@given(SIDES, SIDES)
def test_auto_enlarges_no_image(height: int, width: int) -> None:
    sides = choose_size(height, width, apply_detail(TILING, "auto"))
    assert math.prod(sides) <= max(height * width, FACTOR**2 * max(1, *blocks(height, width)))
    if height * width <= AREA:
        assert all(
            own - FACTOR < side <= max(own, FACTOR)
            for own, side in zip((height, width), sides, strict=True)
            if min(height, width) >= FACTOR
        )


def blocks(height: int, width: int) -> tuple[int, int]:
    """How often the shorter side fits into the longer one: a line of so many blocks is the least tile."""
    return height // width, width // height


def test_details() -> None:
    for size in ((300, 300), (9, 9)):
        assert split_image(blank(*size), TILING).layout.tile_sizes == ((80, 80),)
        assert split_image(blank(*size), TILING, "high").layout.tile_sizes == ((80, 80),)
        assert split_image(blank(*size), TILING, "low").layout.tile_sizes == ((64, 64),)
    assert LOW_DETAIL_TOKENS * FACTOR**2 == 64 * 64
    assert split_image(blank(9, 9), TILING, "auto").layout.tile_sizes == ((8, 8),)
    # Where a side is less than one block, the other has as many as the short one fits into it.
    assert split_image(blank(1, 3), TILING, "auto").layout.tile_sizes == ((4, 12),)


def test_limits(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "edgevlm"):
        assert processor(None).process(blank(50, 50), ImageBudget()).plans[0].length == 400
        assert not caplog.records
        assert processor(100).process(blank(50, 50), ImageBudget()).plans[0].length == 100
    (record,) = caplog.records
    assert "shrunk from 400 to about 100 embeddings" in record.getMessage()
    budget = ImageBudget(max_tokens=50)
    assert processor(None).process(blank(50, 50), budget).plans[0].length == 49
    assert processor(None).process(blank(1, 900), ImageBudget(max_tokens=3)).plans[0].length == 3
    with pytest.raises(InputError, match="max_image_tokens must be"):
        ImageBudget(max_tokens=0)
    image = ImageSpec(TILING, Normalization((0, 0, 0), (1, 1, 1), 1 / 255), 1000)
    assert max_image_tokens(image, VISION) == 400
