"""One tile of the image's own size, or a grid of squares with it as overview: ``Lfm2VlImageProcessor``.

The reference resizes with torchvision, of which an own kernel for uint8 may differ from Pillow by one gray
level.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from edgevlm.errors import ImageError
from edgevlm.inputs.tiling.aspect_grid import choose_grid
from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.smart_resize import fit_area
from edgevlm.inputs.tiling.tiles import FILTERS, Layout, Tiles, cut_grid, one_tile
from edgevlm.manifest import OwnSizeGridTiling


def split(
    image: Image.Image, tiling: OwnSizeGridTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Split an RGB image; see `edgevlm.inputs.tiling.split_image`.

    Raises:
        ImageError: as of `choose_size`.
    """
    if detail == "auto":
        tiling = dataclasses.replace(tiling, min_pixels=tiling.factor**2)
    resample = FILTERS[tiling.resample]
    height, width = choose_size(image.height, image.width, tiling)
    overview = image.resize((width, height), resample)
    if not _is_large(image, tiling) or detail == "low":
        return one_tile(overview, image)
    side = tiling.tile_side
    columns, rows = choose_grid(image.size, tiling, (side, side), detail, max_tiles)
    if columns * rows == 1:
        return one_tile(overview, image)
    grid = cut_grid(image.resize((columns * side, rows * side), resample), (side, side))
    sizes = [(side, side)] * len(grid)
    if not tiling.overview:
        layout = Layout(image.height, image.width, rows, columns, tile_sizes=tuple(sizes))
        return Tiles(tuple(grid), layout)
    layout = Layout(
        image.height, image.width, rows, columns, len(grid), tile_sizes=(*sizes, (height, width))
    )
    return Tiles((*grid, np.asarray(overview)), layout)


def choose_size(height: int, width: int, tiling: OwnSizeGridTiling) -> tuple[int, int]:
    """Return height and width of the tile of a whole image.

    Raises:
        ImageError: the image is so long for its width that it has more patches than the model takes.
    """
    max_pixels = max(tiling.max_pixels, tiling.tile_side**2 if tiling.max_tiles > 1 else 0)
    tall, wide = fit_area(height, width, tiling, min_side=tiling.factor)
    if tall * wide > max_pixels:
        raise ImageError(
            f"the image is {width} x {height} pixels, which become {wide} x {tall}, more than the "
            f"{max_pixels} pixels that this model takes; crop it"
        )
    return tall, wide


def _is_large(image: Image.Image, tiling: OwnSizeGridTiling) -> bool:
    """Return True if the image is too large for one tile."""
    factor = tiling.factor
    # A side of less than half the factor counts as a patch, which is half of it, as in the reference.
    tall, wide = (
        max(factor // 2, round(side / factor) * factor) for side in (image.height, image.width)
    )
    return tall * wide > tiling.max_pixels * tiling.max_area_ratio
