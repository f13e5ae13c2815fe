"""An overview, and slices of a large image: ``MiniCPMV4_6ImageProcessorPil``."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.smart_resize import MAX_ASPECT_RATIO, check_aspect_ratio
from edgevlm.inputs.tiling.tiles import FILTERS, Layout, Tiles, cut_grid, one_tile
from edgevlm.manifest import SliceTiling

Size = tuple[int, int]
"""Height and width in pixels."""


def split(
    image: Image.Image, tiling: SliceTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Split an RGB image; see `edgevlm.inputs.tiling.split_image`.

    Raises:
        ImageError: the image is too long for its width, or too wide for its height.
    """
    height, width = image.height, image.width
    check_aspect_ratio(height, width, (height, width))
    resample = FILTERS[tiling.resample]
    tall, wide = overview_size(height, width, tiling, detail)
    overview = image.resize((wide, tall), resample)
    grid = choose_grid(height, width, tiling, detail, max_tiles)
    if grid is None:
        return one_tile(overview, image)
    rows, columns = grid
    size = slice_size(height, width, grid, tiling)
    resized = image.resize((columns * size[1], rows * size[0]), resample)
    slices = cut_grid(resized, size)
    sizes = ((tall, wide), *[size] * len(slices))
    layout = Layout(height, width, rows, columns, overview=0, tile_sizes=sizes)
    return Tiles((np.asarray(overview), *slices), layout)


def choose_size(height: int, width: int, tiling: SliceTiling) -> Size:
    """Return height and width of the overview of an image, as the checkpoint's processor chooses them.

    Raises:
        ImageError: the image is too long for its width, or too wide for its height.
    """
    check_aspect_ratio(height, width, (height, width))
    return overview_size(height, width, tiling, None)


def overview_size(height: int, width: int, tiling: SliceTiling, detail: Detail | None) -> Size:
    """Return height and width of the overview of an image. With detail ``auto`` it is not enlarged."""
    if detail == "auto" and height * width <= tiling.tile_side**2:
        return round_sides(height, width, tiling.factor)
    return fit_square(height, width, tiling)


def slice_size(height: int, width: int, grid: tuple[int, int], tiling: SliceTiling) -> Size:
    """Return height and width of a slice of an image.

    Args:
        grid: rows and columns of the slices.
    """
    rows, columns = grid
    return fit_square(round_side(height, rows) / rows, round_side(width, columns) / columns, tiling)


def choose_grid(
    height: int, width: int, tiling: SliceTiling, detail: Detail | None, max_tiles: int | None
) -> tuple[int, int] | None:
    """Return rows and columns of the slices of an image; None: it is not cut.

    The number of slices is about that of squares of side `tile_side` in the image. The grid has the nearest
    aspect ratio.
    """
    squares = width * height / tiling.tile_side**2
    most = tiling.max_tiles if max_tiles is None else min(tiling.max_tiles, max_tiles - 1)
    if detail == "auto":
        most = min(most, math.floor(squares))
    number = min(math.ceil(squares), most)
    if number <= 1 or detail == "low":
        return None
    wanted = math.log(width / height)
    grids = [
        (rows, slices // rows)
        for slices in (number - 1, number, number + 1)
        if 1 < slices <= most
        for rows in range(1, slices + 1)
        if slices % rows == 0
    ]
    # Of grids that are as near, the reference takes that with the most rows, and of those the first.
    return min(grids, key=lambda shape: (abs(wanted - math.log(shape[1] / shape[0])), -shape[0]))


def fit_square(height: float, width: float, tiling: SliceTiling) -> Size:
    """Return the sides of a tile with the area of the square, rounded to multiples of the factor."""
    # int() in the same places as in the reference.
    ratio = width / height
    tall = int(tiling.tile_side / math.sqrt(ratio))
    return round_sides(tall, int(tall * ratio), tiling.factor)


def round_sides(height: int, width: int, factor: int) -> Size:
    """Return height and width, rounded by `round_side`."""
    return round_side(height, factor), round_side(width, factor)


def round_side(length: int, factor: int) -> int:
    """Return the nearest multiple of a factor, at least the factor."""
    return max(round(length / factor) * factor, factor)


def limit_tokens(height: int, width: int, tiling: SliceTiling, max_tokens: int) -> SliceTiling:
    """Return a tiling whose tiles of this image have at most `max_tokens` squares of side `factor`.

    It makes fewer slices. If the overview alone has more squares, it becomes smaller.
    """
    for max_tiles in range(tiling.max_tiles, 0, -1):
        fewer = dataclasses.replace(tiling, max_tiles=max_tiles)
        if count_tokens(height, width, fewer) <= max_tokens:
            return fewer
    shortest, longest = 1, tiling.tile_side
    while shortest < longest:
        side = (shortest + longest + 1) // 2
        smaller = dataclasses.replace(tiling, tile_side=side, max_tiles=1)
        if count_tokens(height, width, smaller) <= max_tokens:
            shortest = side
        else:
            longest = side - 1
    return dataclasses.replace(tiling, tile_side=shortest, max_tiles=1)


def count_tokens(height: int, width: int, tiling: SliceTiling) -> int:
    """Return how many squares of side `factor` the tiles of an image have, without a detail."""
    area = math.prod(overview_size(height, width, tiling, None))
    grid = choose_grid(height, width, tiling, None, None)
    if grid is not None:
        area += math.prod(grid) * math.prod(slice_size(height, width, grid, tiling))
    return area // tiling.factor**2


def max_tokens_per_tile(tiling: SliceTiling) -> int:
    """Return a bound of the squares of side `factor` in a tile, whatever the aspect ratio is.

    Rounding adds most where a tile is one square high: then it is as wide as the aspect ratio allows.
    """
    area = (tiling.tile_side / tiling.factor) ** 2
    return math.ceil(max(2 * area, math.sqrt(MAX_ASPECT_RATIO * area)))
