"""The grid with the nearest aspect ratio and an overview: ``GotOcr2ImageProcessorPil``, also InternVL's."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.tiles import FILTERS, Layout, Tiles, cut_grid, one_tile
from edgevlm.manifest import AspectGridTiling, OwnSizeGridTiling


def split(
    image: Image.Image, tiling: AspectGridTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Split an RGB image into a grid and an overview; see `edgevlm.inputs.tiling.split_image`."""
    height, width = tiling.tile_size
    resample = FILTERS[tiling.resample]
    overview = image.resize((width, height), resample)
    columns, rows = choose_grid(image.size, tiling, tiling.tile_size, detail, max_tiles)
    if rows * columns == 1:
        return one_tile(overview, image)
    grid = cut_grid(image.resize((columns * width, rows * height), resample), tiling.tile_size)
    layout = Layout(image.height, image.width, rows, columns, overview=len(grid))
    return Tiles((*grid, np.asarray(overview)), layout)


def choose_grid(
    size: tuple[int, int],
    tiling: AspectGridTiling | OwnSizeGridTiling,
    tile_size: tuple[int, int],
    detail: Detail | None,
    max_tiles: int | None,
) -> tuple[int, int]:
    """Return columns and rows of the best grid that the budget allows; (1, 1) if it allows none.

    The best grid has the aspect ratio nearest to that of the image. Of grids with the same ratio it is the
    largest of which the image fills more than half.

    Args:
        size: width and height of the image in pixels.
        tiling: bounds of the number of tiles in the grid.
        tile_size: height and width of a tile of the grid in pixels.
    """
    width, height = size
    tall, wide = tile_size
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(tiling.min_tiles, tiling.max_tiles):
        tiles = columns * rows
        if detail == "low" or (
            detail == "auto" and (columns * wide > width or rows * tall > height)
        ):
            continue
        if max_tiles is not None and tiles + (tiles > 1) > max_tiles:
            continue
        difference = abs(width / height - columns / rows)
        if difference < best_difference or (
            difference == best_difference and width * height > 0.5 * tall * wide * tiles
        ):
            best, best_difference = (columns, rows), difference
    return best


def _grids(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """Return columns and rows of all grids with so many tiles, those with fewer tiles first."""
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(-(-min_tiles // columns), max_tiles // columns + 1)
    ]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])
