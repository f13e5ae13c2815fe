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
class Region:
    """A rectangle in fractions of the width and height of an image.

    A side below 0 or above 1 is outside of the image, where padding is.
    """

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def to_image(self, x: float, y: float) -> tuple[float, float]:
        """Convert a point from fractions of the region to fractions of the image."""
        return (
            self.left + x * (self.right - self.left),
            self.top + y * (self.bottom - self.top),
        )

    def part(self, inner: Region) -> Region:
        """Return a region that is given in fractions of this one in fractions of the image."""
        return Region(
            *self.to_image(inner.left, inner.top), *self.to_image(inner.right, inner.bottom)
        )


WHOLE = Region()
"""All of an image."""


def cut_region(size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> Region:
    """Return what a rectangle of pixels cuts out of an image; it may reach outside.

    Args:
        size: width and height of the image in pixels.
    """
    width, height = size
    return Region(left / width, top / height, right / width, bottom / height)


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
    region: Region = WHOLE
    """What the model sees of the image as a whole: all of it, unless the tile is cropped or padded. Boxes and
    points that the model writes are within it."""

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return max(1, self.rows * self.columns + (self.overview is not None))

    def region_size(self, tile_size: tuple[int, int] | None) -> tuple[int, int]:
        """Return height and width in pixels of the region, as it was resized for the model.

        It is the tile that shows all of it; a grid without an overview shows it together.

        Args:
            tile_size: height and width of a tile in the manifest; None: tiles differ in size.
        """
        if self.tile_sizes is not None:
            tile_size = self.tile_sizes[self.overview or 0]
        assert tile_size is not None
        height, width = tile_size
        if self.columns and self.overview is None:
            return self.rows * height, self.columns * width
        return height, width

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


def one_tile(tile: Image.Image, image: Image.Image, region: Region = WHOLE) -> Tiles:
    """Return the tile of an image that is not split.

    Args:
        region: what the tile shows of the image.
    """
    sizes = ((tile.height, tile.width),)
    layout = Layout(image.height, image.width, tile_sizes=sizes, region=region)
    return Tiles((np.asarray(tile),), layout)


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
