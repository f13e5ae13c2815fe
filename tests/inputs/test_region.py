"""Where on an image is what the model sees: a drawn box is found in the tiles, and traced back."""

from __future__ import annotations

from dataclasses import astuple
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgevlm.inputs.tiling import Detail, Tiles, crop, split_image
from edgevlm.manifest import (
    CanvasTiling,
    FloorResizeTiling,
    GridTiling,
    LongestEdgeTiling,
    OwnSizeGridTiling,
    OwnSizeTiling,
    SliceTiling,
    SmartResizeTiling,
    StretchTiling,
    Tiling,
)
from tests.inputs.test_tilings import TILINGS
from tests.support.tiling import GRID, WHOLE

SIZES = (40, 150)
ALL: dict[str, Tiling] = TILINGS | {
    "grid": GRID,
    "longest edge and stretch": WHOLE,
    "smart resize": SmartResizeTiling(4, 256, 4096, "bicubic"),
    "enlarged sides": SmartResizeTiling(4, 16, 65536, "bicubic", min_side=120),
    "floor resize": FloorResizeTiling(4, 4096, 4096, "bicubic"),
    "longest edge": LongestEdgeTiling(8, 64, "bicubic"),
    "own-size grid": OwnSizeGridTiling(4, 256, 4096, "bilinear", 16, 2, 6, 1.0, overview=True),
    "own-size grid alone": OwnSizeGridTiling(
        4, 256, 4096, "bilinear", 16, 2, 6, 1.0, overview=False
    ),
    "slices": SliceTiling(8, 48, 9, "bicubic"),
    "canvas": CanvasTiling(24, 6, "bilinear"),
}


def test_each_strategy_is_tried() -> None:
    assert {type(tiling) for tiling in ALL.values()} == set(get_args(Tiling))


def seen(tiles: Tiles) -> NDArray[np.uint8]:
    """Return the image as the model sees it as a whole."""
    layout = tiles.layout
    if layout.overview is not None or not layout.rows:
        return tiles.pixels[layout.overview or 0]
    rows = [
        np.concatenate(tiles.pixels[row * layout.columns : (row + 1) * layout.columns], axis=1)
        for row in range(layout.rows)
    ]
    return np.concatenate(rows)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(*SIZES),
    height=st.integers(*SIZES),
    sides=st.tuples(*[st.floats(0, 1)] * 4),
    detail=st.sampled_from((None, *get_args(Detail))),
)
def test_a_drawn_box_is_traced_back(
    name: str,
    width: int,
    height: int,
    sides: tuple[float, float, float, float],
    detail: Detail | None,
) -> None:
    """To one pixel of what the model sees, which is the error of finding the box there.

    Where the longest edge is resized first, to the side of a tile at least, a pixel of that image counts.
    """
    (left, right), (top, bottom) = (
        (int(start * 0.6 * length), int((0.8 + end * 0.2) * length))
        for start, end, length in ((sides[0], sides[1], width), (sides[2], sides[3], height))
    )
    image = np.zeros((height, width, 3), np.uint8)
    image[top:bottom, left:right, 1] = 255
    tiling = ALL[name]
    tiles = split_image(image, tiling, detail)
    whole = seen(tiles)
    size = None if isinstance(tiling, OwnSizeTiling) else tiling.tile_size
    assert tiles.layout.region_size(size) == whole.shape[:2]
    bright = whole[..., 1] > 128
    region = tiles.layout.region
    tall, wide = whole.shape[:2]
    if not bright.any():
        # A crop may show nothing of it.
        assert region.left > 0 or region.top > 0
        return
    rows, columns = np.nonzero(bright)
    found_left, found_right = columns.min(), columns.max() + 1
    found_top, found_bottom = rows.min(), rows.max() + 1
    x0, y0 = region.to_image(found_left / wide, found_top / tall)
    x1, y1 = region.to_image(found_right / wide, found_bottom / tall)
    # What a crop does not show cannot be found.
    expected_x = np.clip([left / width, right / width], region.left, region.right)
    expected_y = np.clip([top / height, bottom / height], region.top, region.bottom)
    pixel_x, pixel_y = (region.right - region.left) / wide, (region.bottom - region.top) / tall
    if isinstance(tiling, GridTiling | StretchTiling) and tiling.longest_edge is not None:
        scale = tiling.tile_size[0] / max(width, height)
        pixel_x = max(pixel_x, 1 / int(scale * width))
        pixel_y = max(pixel_y, 1 / int(scale * height))
    assert np.abs(np.array([x0, x1]) - expected_x).max() <= pixel_x + 1e-9
    assert np.abs(np.array([y0, y1]) - expected_y).max() <= pixel_y + 1e-9


@pytest.mark.parametrize("name", ["crop", "padded crop"])
@pytest.mark.parametrize("size", [(20, 300), (301, 21), (64, 65)])
def test_less_memory_changes_the_region_by_less_than_a_pixel(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((*size, 3), np.uint8)
    usual = split_image(image, ALL[name]).layout.region
    monkeypatch.setattr(crop, "MAX_TEMPORARY_PIXELS", 900)
    region = split_image(image, ALL[name]).layout.region
    pixel = max((usual.right - usual.left) / 12, (usual.bottom - usual.top) / 12)
    assert np.abs(np.array(astuple(region)) - astuple(usual)).max() <= pixel
