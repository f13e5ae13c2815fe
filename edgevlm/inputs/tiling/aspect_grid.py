"""The grid with the nearest aspect ratio and an overview: ``GotOcr2ImageProcessorPil``, also InternVL's."""

from __future__ import annotations

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.stretched_grid import allowed_grids, stretch_to_grid
from edgevlm.inputs.tiling.tiles import Tiles
from edgevlm.manifest import AspectGridTiling, OwnSizeGridTiling


def split(
    image: Image.Image, tiling: AspectGridTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Split an RGB image into a grid and an overview; see `edgevlm.inputs.tiling.split_image`."""
    columns, rows = choose_grid(image.size, tiling, tiling.tile_size, detail, max_tiles)
    return stretch_to_grid(image, tiling, columns, rows, overview_first=False)


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
    bounds = tiling.min_tiles, tiling.max_tiles
    for columns, rows in allowed_grids(size, tile_size, bounds, detail, max_tiles):
        difference = abs(width / height - columns / rows)
        if difference < best_difference or (
            difference == best_difference and width * height > 0.5 * tall * wide * columns * rows
        ):
            best, best_difference = (columns, rows), difference
    return best
