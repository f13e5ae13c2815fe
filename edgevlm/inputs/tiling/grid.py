"""A grid of tiles and then an overview: ``Idefics3ImageProcessorPil`` and ``SmolVLMImageProcessorPil``.

The number of tiles follows from the length that the longest edge is first resized to. `ImageBudget` sets that
length, as ``size={"longest_edge": ...}`` does in transformers.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.sizes import longest_edge_size, tile_multiple_size
from edgevlm.inputs.tiling.tiles import FILTERS, Layout, Tiles, cut_grid, one_tile
from edgevlm.manifest import GridTiling


def split(
    image: Image.Image, tiling: GridTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Split an RGB image into a grid and an overview; see `edgevlm.inputs.tiling.split_image`."""
    height, width = tiling.tile_size
    resample = FILTERS[tiling.resample]
    edge = _longest_edge(image.size, tiling, detail, max_tiles)
    resized = image
    if edge is not None:
        resized = image.resize(longest_edge_size(*image.size, edge), resample)
    resized = resized.resize(tile_multiple_size(*resized.size, height), resample)
    if resized.size == (width, height):
        return one_tile(resized, image)
    grid = cut_grid(resized, tiling.tile_size)
    overview = np.asarray(resized.resize((width, height), resample))
    layout = Layout(
        image.height, image.width, resized.height // height, resized.width // width, len(grid)
    )
    return Tiles((*grid, overview), layout)


def _longest_edge(
    size: tuple[int, int],
    tiling: GridTiling,
    detail: Detail | None,
    max_tiles: int | None,
) -> int | None:
    """Return the length that the longest edge is resized to before the split."""
    tile, edge = tiling.tile_size[0], tiling.longest_edge
    full = edge if edge is not None else max(tile_multiple_size(*size, tile))
    if detail == "low":
        edge = tile
    elif detail == "auto":
        edge = min(full, max(tile, max(size) // tile * tile))
    if max_tiles is not None:
        while _count_tiles(size, full if edge is None else edge, tile) > max_tiles:
            edge = ((full if edge is None else edge) - 1) // tile * tile
    return edge


def _count_tiles(size: tuple[int, int], edge: int, tile: int) -> int:
    """Return the number of tiles of an image whose longest edge becomes `edge`."""
    width, height = tile_multiple_size(*longest_edge_size(*size, edge), tile)
    grid = (width // tile) * (height // tile)
    return 1 if grid == 1 else grid + 1
