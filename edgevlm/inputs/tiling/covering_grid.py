"""An overview and the smallest grid that covers the image: ``Ovis2ImageProcessorPil``."""

from __future__ import annotations

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.stretched_grid import allowed_grids, stretch_to_grid
from edgevlm.inputs.tiling.tiles import Tiles
from edgevlm.manifest import CoveringGridTiling

COVERED = 0.9
"""Share of the pixels of an image that a grid must hold more of."""


def split(
    image: Image.Image, tiling: CoveringGridTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Split an RGB image into an overview and a grid; see `edgevlm.inputs.tiling.split_image`."""
    columns, rows = choose_grid(image.size, tiling, detail, max_tiles)
    return stretch_to_grid(image, tiling, columns, rows, overview_first=True)


def choose_grid(
    size: tuple[int, int],
    tiling: CoveringGridTiling,
    detail: Detail | None,
    max_tiles: int | None,
) -> tuple[int, int]:
    """Return columns and rows of the best grid that the budget allows; (1, 1) if it allows none.

    The best grid has the fewest tiles of those that cover the image, or else covers the most of it.

    Args:
        size: width and height of the image in pixels.
    """
    bounds = 1, tiling.max_tiles
    shares = {
        grid: covered_share(size, *grid, tiling.tile_size[0])
        for grid in allowed_grids(size, tiling.tile_size, bounds, detail, max_tiles)
    }

    def order(grid: tuple[int, int]) -> tuple[float, float]:
        return grid[0] * grid[1], -shares[grid]

    covering = [grid for grid in shares if shares[grid] > COVERED]
    if covering:
        return min(covering, key=order)
    return min(shares, key=lambda grid: order(grid)[::-1], default=(1, 1))


def covered_share(size: tuple[int, int], columns: int, rows: int, side: int) -> float:
    """Return the share of the pixels of an image that the tiles of a grid hold, as transformers computes it.

    It exchanges rows and columns, and the model's authors do not: a wide image gets a tall grid.

    Args:
        size: width and height of the image in pixels.
        side: side of a tile in pixels.
    """
    width, height = size
    columns, rows = rows, columns
    wide, tall = width // columns, height // rows
    covered = 0.0
    for row in range(rows):
        for column in range(columns):
            # The last row and column have the pixels that are left.
            across = width - column * wide if column == columns - 1 else wide
            down = height - row * tall if row == rows - 1 else tall
            longer, shorter = max(across, down), min(across, down)
            covered += shorter / longer * side * side if longer > side else longer * shorter
    return covered / (width * height)
