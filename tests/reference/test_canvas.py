"""A canvas is that of transformers, square by square: no gray level differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)

from edgevlm.export.preparations import read_image_spec, read_tiling
from edgevlm.inputs.tiling import split_image
from edgevlm.inputs.tiling.canvas import choose_size, fit_canvas
from edgevlm.manifest import CanvasTiling

PUBLISHED = 560, 4
"""Side and number of squares of all public checkpoints."""
SIDES = st.integers(1, 5000)


def assert_sizes(height: int, width: int, factor: int, max_tiles: int) -> None:
    canvas = choose_size(height, width, CanvasTiling(factor, max_tiles, "bilinear"))
    assert canvas == get_optimal_tiled_canvas(height, width, max_tiles, factor)
    expected = get_image_size_fit_to_canvas(height, width, *canvas, factor)
    assert fit_canvas(height, width, canvas, factor) == expected


@pytest.mark.parametrize(("factor", "max_tiles"), [PUBLISHED, (448, 4), (560, 9), (7, 12), (13, 1)])
@given(SIDES, SIDES)
def test_sizes(factor: int, max_tiles: int, height: int, width: int) -> None:
    assert_sizes(height, width, factor, max_tiles)


@given(
    st.integers(1, 4000),
    st.fractions(min_value="1/9", max_value=9, max_denominator=12),
    st.sampled_from([-1, 0, 1]),
    st.integers(1, 16),
)
def test_sizes_of_images_that_fill_a_canvas(
    height: int, ratio: Any, more: int, max_tiles: int
) -> None:
    """Scales of several canvases are then equal, or nearly."""
    assert_sizes(height, max(1, int(height * ratio) + more), 560, max_tiles)


def test_canvases_of_every_small_size() -> None:
    """Each canvas is chosen for some image, and rows are not exchanged with columns."""
    for max_tiles in (1, 2, 4, 6):
        canvases = set()
        for height in range(1, 50):
            for width in range(1, 50):
                assert_sizes(height, width, 5, max_tiles)
                tiling = CanvasTiling(5, max_tiles, "bilinear")
                canvases.add(choose_size(height, width, tiling))
        sides = range(1, max_tiles + 1)
        expected = {(5 * r, 5 * c) for r in sides for c in sides if r * c <= max_tiles}
        assert canvases == expected


@pytest.mark.parametrize("resample", range(4))
@pytest.mark.parametrize("max_tiles", [1, 4, 6])
@given(st.integers(1, 80), st.integers(1, 80))
def test_pixels(resample: int, max_tiles: int, height: int, width: int) -> None:
    assert_pixels(height, width, 12, max_tiles, resample=resample)


@pytest.mark.parametrize(
    "size", [(480, 640), (1080, 1920), (100, 30), (561, 560), (40, 3000), (2300, 500), (1, 9000)]
)
def test_pixels_of_published_settings(size: tuple[int, int]) -> None:
    assert_pixels(*size, *PUBLISHED)


def assert_pixels(height: int, width: int, side: int, max_tiles: int, **settings: Any) -> None:
    processor = MllamaImageProcessorPil(
        size={"height": side, "width": side},
        max_image_tiles=max_tiles,
        do_rescale=False,
        do_normalize=False,
        **settings,
    )
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    found = processor(images=[Image.fromarray(image)], return_tensors="np")
    tiles = split_image(image, read_tiling(processor))
    (canvas,) = tiles.pixels
    assert tiles.layout.tile_sizes == (canvas.shape[:2],)
    rows, columns = canvas.shape[0] // side, canvas.shape[1] // side
    assert found["num_tiles"] == [[rows * columns]]
    for index, expected in enumerate(found["pixel_values"][0, 0, : rows * columns]):
        row, column = divmod(index, columns)
        square = canvas[row * side : (row + 1) * side, column * side : (column + 1) * side]
        np.testing.assert_array_equal(square, expected.transpose(1, 2, 0))


def test_an_image_has_no_default_limit() -> None:
    """It takes one entry in the prompt."""
    spec = read_image_spec(MllamaImageProcessorPil())
    assert spec.tiling == CanvasTiling(224, 4, "bilinear")
    assert spec.default_max_tokens is None and spec.tile_size is None and not spec.splits
