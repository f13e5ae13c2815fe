"""The tiles of one image and their places in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.manifest import Resample

FILTERS: dict[Resample, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's filters by their names in the manifest."""


@dataclass(frozen=True)
class Layout:
    """How the tiles of an image lie in it."""

    height: int
    """Height and width of the image in pixels, before any resize."""
    width: int
    rows: int = 0
    """Rows and columns of the grid of tiles; both 0 for an image of one tile."""
    columns: int = 0
    overview: int | None = None
    """Index of the tile that shows the whole image beside a grid; None: there is none."""
    tile_sizes: tuple[tuple[int, int], ...] | None = None
    """Height and width in pixels of each tile; None: a grid whose tiles all have that of the manifest."""

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return max(1, self.rows * self.columns + (self.overview is not None))

    def place(self, tile: int) -> tuple[int, int] | None:
        """Return row and column of a tile in the grid, from 0; None for a tile that shows the whole image."""
        if not self.columns or tile == self.overview:
            return None
        return divmod(tile - (self.overview is not None and self.overview < tile), self.columns)


@dataclass(frozen=True)
class Tiles:
    """The tiles of one image."""

    pixels: tuple[NDArray[np.uint8], ...]
    """RGB uint8 ``[height, width, 3]`` of each tile: the grid row by row, and the overview before or after
    it."""
    layout: Layout

    def __len__(self) -> int:
        return len(self.pixels)


def one_tile(tile: Image.Image, image: Image.Image) -> Tiles:
    """Return the tile of an image that is not split."""
    sizes = ((tile.height, tile.width),)
    return Tiles((np.asarray(tile),), Layout(image.height, image.width, tile_sizes=sizes))


def cut_grid(image: Image.Image, tile_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut an image whose sides are multiples of the tile into tiles, row by row.

    Args:
        tile_size: height and width of a tile.

    Returns:
        uint8 ``[n, height, width, 3]``.
    """
    height, width = tile_size
    rows, columns = image.height // height, image.width // width
    grid = np.asarray(image).reshape(rows, height, columns, width, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * columns, height, width, 3)
