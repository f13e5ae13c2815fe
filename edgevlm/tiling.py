"""Picture to tiles: the geometry that a vision tower was trained with.

Each strategy computes exactly what transformers' Pillow image processors compute, up to rescaling and
normalising, which the vision graph does itself:

- ``stretch``: ``SiglipImageProcessorPil``; with ``longest_edge`` Idefics3's and SmolVLM's, unsplit;
- ``grid``: ``Idefics3ImageProcessorPil`` and ``SmolVLMImageProcessorPil`` with ``do_image_splitting``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.manifest import ImagePreparation

SIDE_LIMIT = 4096
"""Idefics3 never resizes to more than this per side."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Tiles:
    """A picture as the vision graph takes it."""

    pixels: NDArray[np.uint8]
    """``[n, height, width, 3]``: the grid row by row and last the overview, or one tile."""
    rows: int
    """Rows and columns of the grid; both 0 for a picture of one tile."""
    columns: int

    def __len__(self) -> int:
        return len(self.pixels)


def prepare(picture: NDArray[np.uint8], preparation: ImagePreparation) -> Tiles:
    """Cut a picture into tiles.

    Args:
        picture: RGB uint8 ``[height, width, 3]``.
    """
    image = Image.fromarray(picture)
    height, width = preparation.tile_size
    resample = _FILTERS[preparation.resample]
    if preparation.longest_edge is not None:
        image = image.resize(longest_edge_size(*image.size, preparation.longest_edge), resample)
    if preparation.strategy == "grid":
        image = image.resize(tile_multiple_size(*image.size, height), resample)
        if image.width > width or image.height > height:
            return _cut(image, preparation, resample)
    if preparation.strategy == "stretch":
        image = image.resize((width, height), resample)
    return Tiles(np.asarray(image)[None], rows=0, columns=0)


def _cut(image: Image.Image, preparation: ImagePreparation, resample: Image.Resampling) -> Tiles:
    """Grid of tiles, then the whole in one tile. `image` has multiples of the tile as sides."""
    height, width = preparation.tile_size
    rows, columns = image.height // height, image.width // width
    pixels = np.empty((rows * columns + 1, height, width, 3), np.uint8)
    grid = np.asarray(image).reshape(rows, height, columns, width, 3)
    pixels[:-1] = grid.transpose(0, 2, 1, 3, 4).reshape(rows * columns, height, width, 3)
    pixels[-1] = np.asarray(image.resize((width, height), resample))
    return Tiles(pixels, rows, columns)


def longest_edge_size(width: int, height: int, longest_edge: int) -> tuple[int, int]:
    """Width and height once the longest edge is `longest_edge`, up or down.

    Idefics3's rule: the other side is cut to an integer, then up to an even one, at least 1; neither
    side passes `SIDE_LIMIT`.
    """
    aspect = width / height
    if width >= height:
        width, height = longest_edge, int(longest_edge / aspect)
        height = max(height + height % 2, 1)
    else:
        width, height = int(longest_edge * aspect), longest_edge
        width = max(width + width % 2, 1)
    aspect = width / height
    if width >= height and width > SIDE_LIMIT:
        width, height = SIDE_LIMIT, int(SIDE_LIMIT / aspect)
    elif height > width and height > SIDE_LIMIT:
        width, height = int(SIDE_LIMIT * aspect), SIDE_LIMIT
    return max(width, 1), max(height, 1)


def tile_multiple_size(width: int, height: int, tile: int) -> tuple[int, int]:
    """Width and height as multiples of `tile`: the longer side up, the other by the aspect, then up."""

    def up(side: int) -> int:
        return math.ceil(side / tile) * tile

    aspect = width / height
    if width >= height:
        width = up(width)
        return width, up(int(width / aspect))
    height = up(height)
    return up(int(height * aspect)), height
