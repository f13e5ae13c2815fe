"""Tiles by the longest edge: budgets, and spans of lines; `tests/reference` compares with transformers."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.inputs.image_processor import ImageProcessor
from edgevlm.inputs.packing import max_image_tokens, plan_spans
from edgevlm.inputs.tiling import ImageBudget, Layout, split_image
from edgevlm.inputs.tiling.longest_edge import choose_size, limit_tokens
from edgevlm.inputs.tiling.smart_resize import LOW_DETAIL_TOKENS
from edgevlm.manifest import (
    ImageSpec,
    LinesPacking,
    LongestEdgeTiling,
    Normalization,
    VisionSpec,
)

FACTOR = 4
TILING = LongestEdgeTiling(FACTOR, longest_edge=120, resample="bicubic")
IMAGE = ImageSpec(TILING, Normalization((0, 0, 0), (1, 1, 1), 1 / 255), default_max_tokens=400)
VISION = VisionSpec("tiles", "rows", None, 0, 3, LinesPacking(), {}, pixels_per_token=FACTOR)
SIDES = st.integers(1, 5000)


def blank(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def processor() -> ImageProcessor:
    return ImageProcessor(IMAGE, VISION, "sequential")


@given(SIDES, SIDES)
def test_sides_are_rounded_up_and_no_image_grows_by_a_factor(height: int, width: int) -> None:
    sides = choose_size(height, width, TILING)
    assert all(side and side % FACTOR == 0 for side in sides)
    assert max(sides) <= math.ceil(TILING.longest_edge / FACTOR) * FACTOR
    if max(height, width) <= TILING.longest_edge:
        assert all(
            0 <= tall - own < FACTOR for tall, own in zip(sides, (height, width), strict=True)
        )


@given(SIDES, SIDES, st.integers(1, 1000))
def test_a_budget_is_kept_and_used(height: int, width: int, max_tokens: int) -> None:
    """No longer edge keeps the budget, whatever the aspect ratio is."""

    def tokens(tiling: LongestEdgeTiling) -> int:
        return math.prod(choose_size(height, width, tiling)) // FACTOR**2

    tiling = limit_tokens(height, width, TILING, max_tokens)
    assert tokens(tiling) <= max_tokens
    for edge in range(tiling.longest_edge + 1, TILING.longest_edge + 1):
        assert tokens(dataclasses.replace(TILING, longest_edge=edge)) > max_tokens


def test_details() -> None:
    large = blank(300, 300)
    assert split_image(large, TILING).layout.tile_sizes == ((120, 120),)
    assert split_image(large, TILING, "high").layout.tile_sizes == ((120, 120),)
    assert split_image(large, TILING, "low").layout.tile_sizes == ((64, 64),)
    assert LOW_DETAIL_TOKENS * FACTOR**2 == 64 * 64
    for detail in ("low", "high", "auto", None):
        assert split_image(blank(5, 3), TILING, detail).layout.tile_sizes == ((8, 4),)


def test_the_default_limit_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = processor()
    with caplog.at_level(logging.WARNING, "edgevlm"):
        assert len(model.process(blank(60, 60), ImageBudget()).plans) == 15
        assert not caplog.records
        for _ in range(2):
            assert len(model.process(blank(200, 200), ImageBudget()).plans) == 20
    (record,) = caplog.records
    assert "an image of 200 x 200 pixels is shrunk from 900 to about 400 embeddings" in (
        record.getMessage()
    )
    assert len(model.process(blank(200, 200), ImageBudget("high")).plans) == 30
    assert len(model.process(blank(200, 200), ImageBudget(max_tokens=500)).plans) == 22
    assert len(model.process(blank(2, 900), ImageBudget(max_tokens=3)).plans) == 1
    assert max_image_tokens(IMAGE, VISION) == 400
    assert max_image_tokens(dataclasses.replace(IMAGE, default_max_tokens=None), VISION) == 900


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3))
def test_lines_are_the_rows_of_each_tile_in_order(grids: list[tuple[int, int]]) -> None:
    """One after the other, the spans hold all rows of all tiles, and each has the length of a line."""
    sizes = tuple((lines * FACTOR, columns * FACTOR) for lines, columns in grids)
    spans = plan_spans(Layout(9, 9, tile_sizes=sizes), VISION, "sequential")
    assert [span.length for span in spans] == [
        columns for lines, columns in grids for _ in range(lines)
    ]
    rows = [
        1000 * tile + np.arange(lines * columns, dtype=np.float32)[:, None]
        for tile, (lines, columns) in enumerate(grids)
    ]
    packed = [span.pack([rows[tile] for tile in span.tiles]) for span in spans]
    np.testing.assert_array_equal(np.concatenate(packed), np.concatenate(rows))
    for span in spans:
        assert span.positions == span.length and span.tokens_of_tiles(0) == [span.length]


def test_lines_of_one_tile_are_different_spans() -> None:
    """Blank lines are equal pixels, but the vision part gives each another place."""
    image = processor().process(blank(12, 8), ImageBudget())
    again = processor().process(blank(12, 8), ImageBudget())
    assert len({span.key for span in image.spans}) == 3
    assert image.spans == again.spans
