"""Tiles by the longest edge are those of transformers: no gray level differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.pixtral.image_processing_pil_pixtral import (
    PixtralImageProcessorPil,
    get_resize_output_image_size,
)

from edgevlm.inputs.tiling import split_image
from edgevlm.inputs.tiling.longest_edge import choose_size
from edgevlm.manifest import LongestEdgeTiling

SETTINGS = [(16, 1024), (28, 1540), (14, 1540), (7, 50)]
"""Pixtral's, Mistral Small 3.1's with and without merged patches, and a small one that is no multiple."""


@pytest.mark.parametrize(("factor", "edge"), SETTINGS)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes(factor: int, edge: int, height: int, width: int) -> None:
    expected = get_resize_output_image_size(
        np.broadcast_to(np.uint8(0), (3, height, width)), edge, factor, "channels_first"
    )
    found = choose_size(height, width, LongestEdgeTiling(factor, edge, "bicubic"))
    # Where transformers makes a side of nothing, it fails later.
    assert found == tuple(side or factor for side in expected)


@pytest.mark.parametrize(
    "size", [(3, 5), (1, 45), (60, 9), (33, 47), (200, 130), (7, 7), (50, 50), (51, 49), (400, 9)]
)
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_pixels(size: tuple[int, int], resample: Any) -> None:
    reference = PixtralImageProcessorPil(
        size={"longest_edge": 50},
        patch_size={"height": 7, "width": 7},
        resample={"bicubic": 3, "bilinear": 2}[resample],
        do_rescale=False,
        do_normalize=False,
    )
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = reference(images=[Image.fromarray(image)], return_tensors="np")["pixel_values"][0]
    (tile,) = split_image(image, LongestEdgeTiling(7, 50, resample)).pixels
    np.testing.assert_array_equal(tile, found.transpose(1, 2, 0))
