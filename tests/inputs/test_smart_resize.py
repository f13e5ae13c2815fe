"""Tiles of the image's own size: budgets, spans and hashes; `tests/reference` compares with transformers."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.errors import ImageError, InputError
from edgevlm.inputs.image_processor import ImageProcessor
from edgevlm.inputs.packing import max_image_tokens
from edgevlm.inputs.tiling import ImageBudget, split_image
from edgevlm.inputs.tiling.smart_resize import LOW_DETAIL_TOKENS, choose_size, limit_tokens
from edgevlm.manifest import (
    ImageSpec,
    Normalization,
    SmartResizeTiling,
    TiledPacking,
    VisionSpec,
)

FACTOR = 4
TILING = SmartResizeTiling(FACTOR, min_pixels=16 * 4, max_pixels=16 * 900, resample="bicubic")
NORMALIZATION = Normalization((0, 0, 0), (1, 1, 1), 1 / 255)
IMAGE = ImageSpec(TILING, NORMALIZATION, default_max_tokens=400)
VISION = VisionSpec("tiles", "rows", None, 0, 3, TiledPacking(), {}, pixels_per_token=FACTOR)
SIDES = st.integers(1, 400)


def blank(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def processor(positions: str = "grid") -> ImageProcessor:
    return ImageProcessor(IMAGE, VISION, "grid" if positions == "grid" else "sequential")


@given(SIDES, SIDES, st.integers(1, 900))
def test_sides_are_multiples_and_the_area_stays_within_bounds(
    height: int, width: int, max_tokens: int
) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    tiling = limit_tokens(TILING, max_tokens)
    tall, wide = choose_size(height, width, tiling)
    assert tall % FACTOR == wide % FACTOR == 0 and tall and wide
    # A side of one token cannot shrink.
    assert tall * wide <= tiling.max_pixels or min(tall, wide) == FACTOR


@given(st.integers(20, 400), st.integers(20, 400))
def test_auto_and_high_keep_the_own_pixels_of_an_image(height: int, width: int) -> None:
    """Within the bounds of the checkpoint, the sides are rounded to the nearest multiple."""
    for detail in (None, "high", "auto"):
        tiles = split_image(blank(height, width), TILING, detail)
        tall, wide = tiles.pixels[0].shape[:2]
        assert tiles.layout.tile_sizes == ((tall, wide),)
        if height * width <= 0.8 * TILING.max_pixels:
            assert abs(tall - height) <= FACTOR / 2 and abs(wide - width) <= FACTOR / 2


def test_auto_enlarges_no_image_to_the_least_area() -> None:
    assert split_image(blank(4, 4), TILING).layout.tile_sizes == ((8, 8),)
    assert split_image(blank(4, 4), TILING, "auto").layout.tile_sizes == ((4, 4),)


def test_low_detail_is_about_a_tile_of_other_families() -> None:
    tiles = split_image(blank(300, 300), TILING, "low")
    tall, wide = tiles.pixels[0].shape[:2]
    assert 0.8 * LOW_DETAIL_TOKENS <= tall * wide / FACTOR**2 <= LOW_DETAIL_TOKENS


def test_the_default_limit_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = processor()
    with caplog.at_level(logging.WARNING, "edgevlm"):
        assert model.process(blank(60, 60), ImageBudget()).plans[0].length == 15 * 15
        assert not caplog.records
        for _ in range(2):
            assert model.process(blank(120, 120), ImageBudget()).plans[0].length == 20 * 20
    assert [record.getMessage() for record in caplog.records] == [
        "an image of 120 x 120 pixels is shrunk from 900 to about 400 embeddings, the default of this model; "
        "max_image_tokens or detail='high' allow more, with a context_length for them"
    ]
    assert model.process(blank(120, 120), ImageBudget("high")).plans[0].length == 900
    assert model.process(blank(120, 120), ImageBudget(max_tokens=500)).plans[0].length == 22 * 22
    assert max_image_tokens(IMAGE, VISION) == 400


def test_a_budget_that_a_long_image_exceeds_is_refused() -> None:
    image = blank(4, 400)
    assert processor().process(image, ImageBudget(max_tokens=100)).plans[0].length == 100
    with pytest.raises(
        InputError, match=r"max_image_tokens is 3, but an image of 400 x 4 .* 17 in"
    ):
        processor().process(image, ImageBudget(max_tokens=3))


@pytest.mark.parametrize("size", [(1, 201), (201, 1), (4, 801)])
def test_an_aspect_ratio_that_the_reference_refuses(size: tuple[int, int]) -> None:
    with pytest.raises(
        ImageError, match=r"longer side is at most 200 times the shorter one; crop it"
    ):
        processor().process(blank(*size), ImageBudget())


def test_positions_of_an_image_are_its_grid() -> None:
    (span,) = processor().process(blank(8, 12), ImageBudget()).spans
    assert span.length == 6 and span.plan.positions == 3
    assert span.plan.offsets is not None
    np.testing.assert_array_equal(
        span.plan.offsets, [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    )
    (span,) = processor("sequential").process(blank(8, 12), ImageBudget()).spans
    assert span.plan.offsets is None and span.plan.positions == 6


def test_blank_images_of_one_area_are_not_equal() -> None:
    """Their pixels are the same bytes; only the shape tells them apart."""
    wide, tall = (processor().process(blank(*size), ImageBudget()) for size in ((8, 16), (16, 8)))
    assert wide.spans[0] != tall.spans[0] and wide.keys != tall.keys
