"""An overview and slices are those of transformers: no gray level differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)

from edgevlm.errors import ImageError
from edgevlm.export.parity import find_tiles
from edgevlm.export.preparations import read_tiling
from edgevlm.inputs.tiling import slices, split_image
from edgevlm.inputs.tiling.smart_resize import MAX_ASPECT_RATIO
from edgevlm.manifest import SliceTiling

PUBLISHED = MiniCPMV4_6ImageProcessorPil()
SETTINGS = {
    "published": PUBLISHED,
    "4x": MiniCPMV4_6ImageProcessorPil(downsample_mode="4x"),
    "many": MiniCPMV4_6ImageProcessorPil(max_slice_nums=36),
    "two": MiniCPMV4_6ImageProcessorPil(max_slice_nums=2, scale_resolution=100, patch_size=3),
    "none": MiniCPMV4_6ImageProcessorPil(slice_mode=False),
}
SIDES = st.integers(1, 5000)


def tiling_of(processor: MiniCPMV4_6ImageProcessorPil) -> SliceTiling:
    tiling = read_tiling(processor)
    assert isinstance(tiling, SliceTiling)
    return tiling


@pytest.mark.parametrize("name", SETTINGS)
@given(SIDES, SIDES)
def test_sizes(name: str, height: int, width: int) -> None:
    """Where the aspect ratio is one that edgevlm takes."""
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        return
    processor = SETTINGS[name]
    tiling = tiling_of(processor)
    size, side = (height, width), processor.scale_resolution
    settings = (side, processor.patch_size, processor.downsample_mode)
    grid = None
    if processor.slice_mode:
        grid = processor.get_sliced_grid(size, processor.max_slice_nums, side)
    found = slices.choose_grid(height, width, tiling, None, None)
    assert found == (None if grid is None else tuple(grid))
    overview = processor.find_best_resize(size, *settings, allow_upscale=grid is None)
    assert slices.overview_size(height, width, tiling, None) == overview
    if found is not None:
        tall, wide = processor.get_refine_size(size, grid, *settings, allow_upscale=True)
        expected = tall // found[0], wide // found[1]
        assert slices.slice_size(height, width, found, tiling) == expected


@pytest.mark.parametrize(
    "size",
    [(7, 5), (50, 50), (51, 49), (120, 40), (30, 170), (99, 101), (140, 144), (400, 350), (3, 400)],
)
@pytest.mark.parametrize("changes", [{}, {"resample": 2}, {"slice_mode": False}], ids=str)
def test_pixels(size: tuple[int, int], changes: dict[str, Any]) -> None:
    small = {"scale_resolution": 50, "patch_size": 3, "max_slice_nums": 5, **changes}
    processor = MiniCPMV4_6ImageProcessorPil(**small, do_rescale=False, do_normalize=False)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = processor(images=[Image.fromarray(image)], return_tensors="np")
    tiles = split_image(image, tiling_of(processor))
    assert [[tiles.layout.rows, tiles.layout.columns]] == [list(grid) for grid in found["grids"]]
    for tile, expected in zip(tiles.pixels, find_tiles(found, processor), strict=True):
        np.testing.assert_array_equal(tile, expected)


def test_the_longest_images_are_refused() -> None:
    """transformers makes tiles of them that are wider than any that it was trained with."""
    split_image(np.zeros((2, 2 * MAX_ASPECT_RATIO, 3), np.uint8), tiling_of(PUBLISHED))
    with pytest.raises(ImageError, match=r"the image is 2 x 401 pixels; .* at most 200 times"):
        split_image(np.zeros((401, 2, 3), np.uint8), tiling_of(PUBLISHED))
