"""Properties of all tilings; `tests/reference/test_tilings.py` compares pixels with transformers'."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.errors import ImageError
from edgevlm.inputs.images import load_image
from edgevlm.inputs.pixels import MAX_SIDE
from edgevlm.inputs.tiling import Detail, Tiles, count_max_tiles, split_image
from edgevlm.manifest import (
    AnyResolutionTiling,
    AspectGridTiling,
    CoveringGridTiling,
    CropTiling,
    FitTiling,
    OwnSizeTiling,
    PanAndScanTiling,
    ScaledGridTiling,
    Tiling,
)
from tests.support.tiling import GRID, STRETCH

ANY_RESOLUTION = AnyResolutionTiling(
    (12, 12), "bicubic", tuple((12 * a, 12 * b) for a in range(1, 7) for b in range(1, 7))
)
ASPECT_GRID = AspectGridTiling((12, 10), "bicubic", min_tiles=1, max_tiles=12)
PAN_AND_SCAN = PanAndScanTiling((12, 10), "bilinear", min_crop_size=8, max_crops=4, min_ratio=1.2)
SPLITTING: dict[str, Tiling] = {
    "any resolution": ANY_RESOLUTION,
    "aspect grid": ASPECT_GRID,
    "at least two": AspectGridTiling((12, 10), "bicubic", min_tiles=2, max_tiles=6),
    "covering grid": CoveringGridTiling((12, 12), "bicubic", max_tiles=12),
    "scaled grid": ScaledGridTiling((12, 12), "bicubic", max_tiles=12),
    "pan and scan": PAN_AND_SCAN,
}
TILINGS: dict[str, Tiling] = SPLITTING | {
    "stretch": STRETCH,
    "crop": CropTiling((12, 14), "bicubic", shortest_edge=13, pad_color=None),
    "padded crop": CropTiling((12, 12), "bicubic", shortest_edge=12, pad_color=(9, 8, 7)),
    "fit": FitTiling((12, 12), "bicubic", min_side=3, pad_color=(9, 8, 7)),
}
SIDES = st.integers(1, 150)
DETAILS = st.sampled_from((None, *get_args(Detail)))


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


@pytest.mark.parametrize("name", TILINGS)
@settings(max_examples=150)
@given(SIDES, SIDES, DETAILS, st.none() | st.integers(1, 40))
def test_never_more_tiles_than_allowed(
    name: str, height: int, width: int, detail: Detail | None, max_tiles: int | None
) -> None:
    tiling = TILINGS[name]
    tiles = split_image(white(height, width), tiling, detail, max_tiles)
    assert not isinstance(tiling, OwnSizeTiling)
    assert np.stack(tiles.pixels).shape == (tiles.layout.tiles, *tiling.tile_size, 3)
    bound = count_max_tiles(tiling)
    assert bound is not None
    assert 1 <= len(tiles) <= min(bound, max_tiles or bound)
    if detail == "low" or name not in SPLITTING:
        assert len(tiles) == 1
    places = [tiles.layout.place(tile) for tile in range(len(tiles))]
    grid = [place for place in places if place is not None]
    rows, columns = tiles.layout.rows, tiles.layout.columns
    assert grid == [(row, column) for row in range(rows) for column in range(columns)]


@pytest.mark.parametrize("name", TILINGS)
def test_the_largest_number_of_tiles_is_reached(name: str) -> None:
    sizes = [(1, 150), (150, 1), (20, 150), (150, 150), (120, 150), (150, 30), (150, 50)]
    numbers = [len(split_image(white(*size), TILINGS[name])) for size in sizes]
    assert max(numbers) == count_max_tiles(TILINGS[name])


@pytest.mark.parametrize(("edge", "most"), [(256, 17), (250, 17), (64, 1), (10_000, 4097)])
def test_the_largest_grid(edge: int, most: int) -> None:
    assert count_max_tiles(type(GRID)((64, 64), "lanczos", longest_edge=edge)) == most
    assert count_max_tiles(type(GRID)((64, 64), "lanczos")) is None


@pytest.mark.parametrize("name", SPLITTING)
@settings(max_examples=150)
@given(SIDES, SIDES)
def test_auto_enlarges_no_image(name: str, height: int, width: int) -> None:
    """The image is not enlarged to fill the grid, and is one tile if each grid would enlarge it."""
    tiling: Any = TILINGS[name]
    image = white(height, width)
    layout = split_image(image, tiling, "auto").layout
    tall, wide = layout.rows * tiling.tile_size[0], layout.columns * tiling.tile_size[1]
    if isinstance(tiling, AnyResolutionTiling):
        assert tall <= height or wide <= width  # as the image keeps its aspect ratio
        assert layout.rows or (height < 12 and width < 12)
    else:
        assert tall <= height and wide <= width


@pytest.mark.parametrize("name", SPLITTING)
@settings(max_examples=40)
@given(st.integers(144, 500), st.integers(144, 500))
def test_auto_splits_large_images_as_the_processor(name: str, height: int, width: int) -> None:
    """No grid of these tilings is larger than 144 pixels."""
    image = white(height, width)
    automatic, high = (split_image(image, TILINGS[name], detail) for detail in ("auto", "high"))
    assert automatic.layout == high.layout


@pytest.mark.parametrize("name", SPLITTING)
@settings(max_examples=100)
@given(st.integers(24, 150), st.integers(24, 150))
def test_tiles_cover_the_image(name: str, height: int, width: int) -> None:
    """A white corner of a black image is in the tile of this corner, and at most in its neighbors."""
    for bottom in (False, True):
        for right in (False, True):
            image = np.zeros((height, width, 3), np.uint8)
            rows = slice(-(height // 8), None) if bottom else slice(height // 8)
            columns = slice(-(width // 8), None) if right else slice(width // 8)
            image[rows, columns] = 255
            tiles = split_image(image, TILINGS[name])
            layout = tiles.layout
            bright = {
                layout.place(tile) for tile, pixels in enumerate(tiles.pixels) if pixels.max() > 128
            }
            assert None in bright
            if layout.overview is not None:
                corner = (layout.rows - 1 if bottom else 0, layout.columns - 1 if right else 0)
                assert corner in bright
                near = {(corner[0] + y, corner[1] + x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
                assert bright <= near | {None}


def test_a_crop_is_the_center() -> None:
    image = np.zeros((26, 52, 3), np.uint8)
    image[:, 26 - 5 : 26 + 5] = 200
    tile = split_image(image, CropTiling((10, 10), "nearest", 26, None)).pixels[0]
    assert (tile == 200).all()
    small = split_image(white(5, 8), CropTiling((10, 10), "nearest", 5, None)).pixels[0][:, :, 0]
    expected = np.zeros((10, 10), np.uint8)
    expected[3:8, 1:9] = 255  # an odd rest is longer at the top
    np.testing.assert_array_equal(small, expected)


@pytest.mark.parametrize("name", TILINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (1, MAX_SIDE), (MAX_SIDE, 1)])
def test_extreme_images(name: str, size: tuple[int, int]) -> None:
    tiling = TILINGS[name]
    for detail in get_args(Detail):
        tiles = split_image(white(*size), tiling, detail)
        assert len(tiles) <= (count_max_tiles(tiling) or 1)
        assert (tiles.layout.height, tiles.layout.width) == size


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (3, MAX_SIDE)])
@pytest.mark.parametrize("pad_color", [None, (0, 0, 0)])
def test_a_long_image_takes_no_gigabytes(
    size: tuple[int, int], pad_color: tuple[int, int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortest edge of 336 pixels would make 450 million pixels of 1 x 4000."""
    from PIL import Image

    from edgevlm.inputs.tiling import crop

    resize, largest = Image.Image.resize, 0

    def record(image: Image.Image, size: tuple[int, int], *others: Any) -> Image.Image:
        nonlocal largest
        largest = max(largest, math.prod(size), math.prod(image.size))
        return resize(image, size, *others)

    monkeypatch.setattr(Image.Image, "resize", record)
    tiles: Tiles = split_image(white(*size), CropTiling((336, 336), "bicubic", 336, pad_color))
    assert largest <= crop.MAX_TEMPORARY_PIXELS
    if pad_color is None:
        assert (np.stack(tiles.pixels) == 255).all()


def test_too_long_a_side_is_refused() -> None:
    with pytest.raises(ImageError, match="1048577 x 1 pixels; a side may have 1,048,576 pixels"):
        load_image(white(1, MAX_SIDE + 1))
