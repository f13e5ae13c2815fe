"""An image stretched to a grid of tiles of one size, with an overview: what several strategies share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.tiles import FILTERS, Layout, Tiles, cut_grid, one_tile
from edgevlm.manifest import AspectGridTiling, CoveringGridTiling, ScaledGridTiling


def stretch_to_grid(
    image: Image.Image,
    tiling: AspectGridTiling | CoveringGridTiling | ScaledGridTiling,
    columns: int,
    rows: int,
    *,
    overview_first: bool,
) -> Tiles:
    """Resize an image to a grid of tiles, whatever its aspect ratio; a grid of one tile is the overview.

    Args:
        overview_first: the overview stands before the grid, not after it.
    """
    height, width = tiling.tile_size
    resample = FILTERS[tiling.resample]
    overview = image.resize((width, height), resample)
    if rows * columns == 1:
        return one_tile(overview, image)
    grid = cut_grid(image.resize((columns * width, rows * height), resample), tiling.tile_size)
    pixels = np.asarray(overview)
    index = 0 if overview_first else len(grid)
    layout = Layout(image.height, image.width, rows, columns, overview=index)
    return Tiles((pixels, *grid) if overview_first else (*grid, pixels), layout)


def allowed_grids(
    size: tuple[int, int],
    tile_size: tuple[int, int],
    bounds: tuple[int, int],
    detail: Detail | None,
    max_tiles: int | None,
) -> Iterator[tuple[int, int]]:
    """Yield columns and rows of all grids that the budget allows, those with fewer tiles first.

    Args:
        size: width and height of the image in pixels.
        tile_size: height and width of a tile of the grid in pixels.
        bounds: minimum and maximum number of tiles in the grid.
        detail: as in `edgevlm.inputs.tiling.ImageBudget`.
        max_tiles: limit of the number of tiles with the overview; None for no limit.
    """
    if detail == "low":
        return
    width, height = size
    tall, wide = tile_size
    for columns, rows in all_grids(*bounds):
        tiles = columns * rows
        if detail == "auto" and (columns * wide > width or rows * tall > height):
            continue
        if max_tiles is not None and tiles + (tiles > 1) > max_tiles:
            continue
        yield columns, rows


def all_grids(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """Return columns and rows of all grids with so many tiles, those with fewer tiles first."""
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(-(-min_tiles // columns), max_tiles // columns + 1)
    ]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])
