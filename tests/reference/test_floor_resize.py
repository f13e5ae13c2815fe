"""Tiles with sides rounded down are those of transformers: no gray level differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)

from edgevlm.inputs.tiling import split_image
from edgevlm.inputs.tiling.floor_resize import choose_size
from edgevlm.manifest import FloorResizeTiling

SETTINGS = [(16, 3, 280), (16, 3, 70), (16, 3, 1120), (5, 2, 140)]
"""Sides of a patch and of a block in patches, and embeddings: published, the least, the most, small ones."""


def tiling(patch: int, side: int, tokens: int, resample: Any = "bicubic") -> FloorResizeTiling:
    factor = patch * side
    return FloorResizeTiling(factor, tokens * factor**2, tokens * factor**2, resample)


@pytest.mark.parametrize("settings", SETTINGS)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes(settings: tuple[int, int, int], height: int, width: int) -> None:
    patch, side, tokens = settings
    expected = get_aspect_ratio_preserving_size(height, width, patch, tokens * side**2, side)
    assert choose_size(height, width, tiling(*settings)) == expected


@pytest.mark.parametrize(
    "size", [(3, 5), (1, 45), (60, 9), (33, 47), (200, 130), (7, 7), (90, 70), (1, 400), (700, 2)]
)
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_pixels(size: tuple[int, int], resample: Any) -> None:
    reference = Gemma4ImageProcessorPil(
        patch_size=5,
        pooling_kernel_size=2,
        max_soft_tokens=70,
        resample={"bicubic": 3, "bilinear": 2}[resample],
        do_rescale=False,
    )
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = reference(images=[Image.fromarray(image)], return_tensors="np")
    (tile,) = split_image(image, tiling(5, 2, 70, resample)).pixels
    for values, (column, line) in zip(
        found["pixel_values"][0], found["image_position_ids"][0], strict=True
    ):
        if line >= 0:
            patch = tile[5 * line : 5 * line + 5, 5 * column : 5 * column + 5]
            np.testing.assert_array_equal(patch, values.reshape(5, 5, 3))
    assert tile.shape[0] * tile.shape[1] == 100 * found["num_soft_tokens_per_image"][0]
