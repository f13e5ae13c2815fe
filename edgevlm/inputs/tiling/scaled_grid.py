"""The grid that an image fills with the least enlargement, and an overview: ``Cohere2VisionImageProcessor``.

The reference resizes with torchvision, of which an own kernel for uint8 may differ from Pillow by one gray
level.
"""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.stretched_grid import allowed_grids, stretch_to_grid
from edgevlm.inputs.tiling.tiles import Tiles
from edgevlm.manifest import ScaledGridTiling


def split(
    image: Image.Image, tiling: ScaledGridTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Split an RGB image into a grid and an overview; see `edgevlm.inputs.tiling.split_image`."""
    columns, rows = choose_grid(image.size, tiling, detail, max_tiles)
    return stretch_to_grid(image, tiling, columns, rows, overview_first=False)


def choose_grid(
    size: tuple[int, int], tiling: ScaledGridTiling, detail: Detail | None, max_tiles: int | None
) -> tuple[int, int]:
    """Return columns and rows of the best grid that the budget allows; (1, 1) if it allows none.

    Args:
        size: width and height of the image in pixels.
    """
    grids = allowed_grids(size, tiling.tile_size, (1, tiling.max_tiles), detail, max_tiles)
    return least_enlarging_grid(size, tiling.tile_size, grids)


def least_enlarging_grid(
    size: tuple[int, int], tile_size: tuple[int, int], grids: Iterable[tuple[int, int]]
) -> tuple[int, int]:
    """Return columns and rows of the best grid; (1, 1) if there is none.

    The rule is that of ``get_optimal_tiled_canvas``, which Command A Vision and Llama 3.2 Vision share. The
    image fits a grid if it is enlarged by a scale, with its aspect ratio. Of the grids with a scale from 1 it
    is that with the smallest, else the one with the largest scale.

    Args:
        size: width and height of the image in pixels.
        tile_size: height and width of a tile of the grid in pixels.
        grids: columns and rows to choose from. Of those with the same scale the first is chosen.
    """
    width, height = size
    tall, wide = tile_size
    scales = {
        (columns, rows): min(columns * wide / width, rows * tall / height)
        for columns, rows in grids
    }
    enlarged = [grid for grid in scales if scales[grid] >= 1]
    if enlarged:
        return min(enlarged, key=scales.__getitem__)
    return max(scales, key=scales.__getitem__, default=(1, 1))
