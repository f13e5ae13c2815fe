"""Tiles of the image's own size are those of transformers: no gray level differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
    smart_resize as paddleocr_resize,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from edgevlm.errors import ImageError
from edgevlm.inputs.tiling import split_image
from edgevlm.inputs.tiling.smart_resize import choose_size
from edgevlm.manifest import SmartResizeTiling

SETTINGS = [(28, 56 * 56, 28 * 28 * 1280), (32, 65536, 16777216), (4, 64, 16 * 30), (7, 49, 50)]


@pytest.mark.parametrize(("factor", "least", "most"), SETTINGS)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes(factor: int, least: int, most: int, height: int, width: int) -> None:
    tiling = SmartResizeTiling(factor, least, most, "bicubic")
    try:
        expected = smart_resize(height, width, factor, least, most)
    except ValueError:
        with pytest.raises(ImageError):
            choose_size(height, width, tiling)
    else:
        assert choose_size(height, width, tiling) == expected


@pytest.mark.parametrize(("factor", "least", "most"), SETTINGS)
@given(st.integers(1, 500), st.integers(1, 5000))
def test_sizes_with_short_sides_enlarged(
    factor: int, least: int, most: int, height: int, width: int
) -> None:
    """The rule of PaddleOCR-VL."""
    tiling = SmartResizeTiling(factor, least, most, "bicubic", min_side=factor)
    try:
        expected = paddleocr_resize(height, width, factor, least, most)
    except ValueError:
        with pytest.raises(ImageError):
            choose_size(height, width, tiling)
    else:
        assert choose_size(height, width, tiling) == expected


def test_published_layouts() -> None:
    """An image of 960 x 686 pixels takes 816 embeddings in Qwen2-VL and 630 in Qwen3-VL."""
    tokens = []
    for factor, least, most in SETTINGS[:2]:
        tall, wide = choose_size(686, 960, SmartResizeTiling(factor, least, most, "bicubic"))
        tokens.append(tall * wide // factor**2)
    assert tokens == [816, 630]


@pytest.mark.parametrize("size", [(3, 5), (1, 150), (60, 9), (33, 47), (200, 130), (7, 7)])
@pytest.mark.parametrize("patch", [2, 3])
def test_pixels(size: tuple[int, int], patch: int) -> None:
    settings: Any = {"shortest_edge": 64, "longest_edge": 16 * 300}
    reference = Qwen2VLImageProcessorPil(
        size=settings, patch_size=patch, merge_size=2, do_rescale=False, do_normalize=False
    )
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = reference(images=[Image.fromarray(image)], return_tensors="np")
    ((_, lines, columns),) = found["image_grid_thw"]
    # Patches come in blocks of 2 x 2, each as [channels, frames, height, width].
    patches = found["pixel_values"].reshape(lines // 2, columns // 2, 2, 2, 3, 2, patch, patch)
    np.testing.assert_array_equal(patches[..., 0, :, :], patches[..., 1, :, :])
    expected = patches[..., 0, :, :].transpose(0, 2, 5, 1, 3, 6, 4)
    tiling = SmartResizeTiling(2 * patch, 64, 16 * 300, "bicubic")
    tile = split_image(image, tiling).pixels[0]
    np.testing.assert_array_equal(tile, expected.reshape(lines * patch, columns * patch, 3))
