"""Split images into tiles, with the geometry that a vision tower was trained with.

Each strategy computes exactly what transformers' Pillow image processors compute, up to rescaling and
normalising, which the vision graph does itself:

- ``stretch``: ``SiglipImageProcessorPil``; with ``longest_edge`` Idefics3's and SmolVLM's, unsplit;
- ``grid``: ``Idefics3ImageProcessorPil`` and ``SmolVLMImageProcessorPil`` with ``do_image_splitting``.

The number of tiles of a grid follows from the length that the longest edge is first resized to.
`ImageBudget` sets that length, as ``size={"longest_edge": ...}`` does in transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.manifest import ImagePreparation
from edgevlm.validation import check_integer

MAX_SIDE = 4096
"""Idefics3 never resizes a side to more than this."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


Detail = Literal["low", "high", "auto"]
"""How finely an image is split. ``low``: one tile. ``high``: as the checkpoint's processor splits. ``auto``:
into as many tiles as the pixels of the image fill, so that no image is enlarged."""


@dataclass(frozen=True)
class ImageBudget:
    """Limits the tiles of an image. Models that never split images always use one tile.

    Raises:
        InputError: a setting of the wrong type or outside its range.
    """

    detail: Detail | None = None
    """``low``: one tile. ``high``: split as the checkpoint's processor splits. ``auto``: split into as
    many tiles as the pixels of the image fill, so that no image is enlarged. None: the
    checkpoint's own setting, which is ``high`` for models that split images."""
    max_tokens: int | None = None
    """Limit of embeddings (tokens) for an image; None for no limit."""

    def __post_init__(self) -> None:
        if self.detail is not None and self.detail not in get_args(Detail):
            raise InputError(f"detail must be low, high, auto or None, is {self.detail!r}")
        if self.max_tokens is not None:
            check_integer("max_image_tokens", self.max_tokens, 1, 2**31 - 1)

    def max_tiles(self, tokens_per_tile: int) -> int | None:
        """Return the number of tiles that `max_tokens` allows; None for no limit.

        Raises:
            InputError: `max_tokens` is less than one tile.
        """
        if self.max_tokens is None:
            return None
        if self.max_tokens < tokens_per_tile:
            raise InputError(
                f"max_image_tokens is {self.max_tokens}, but an image of this model takes at least "
                f"{tokens_per_tile}"
            )
        return self.max_tokens // tokens_per_tile


CHECKPOINT_BUDGET = ImageBudget()
"""Images are split as the checkpoint's processor splits them."""


@dataclass(frozen=True)
class Tiles:
    """The tiles of one image."""

    pixels: NDArray[np.uint8]
    """RGB uint8 ``[n, height, width, 3]``: the grid row by row and then the overview, or one tile."""
    rows: int
    """Rows and columns of the grid; both 0 for an image of one tile."""
    columns: int

    def __len__(self) -> int:
        return len(self.pixels)


def split_image(
    image: NDArray[np.uint8],
    preparation: ImagePreparation,
    detail: Detail | None = None,
    max_tiles: int | None = None,
) -> Tiles:
    """Split an image into tiles.

    Args:
        image: RGB uint8 ``[height, width, 3]``.
        detail: as in `ImageBudget`.
        max_tiles: limit of the number of tiles; None for no limit.
    """
    resized = Image.fromarray(image)
    height, width = preparation.tile_size
    resample = _FILTERS[preparation.resample]
    edge = preparation.longest_edge
    if preparation.strategy == "grid":
        edge = _longest_edge(resized.size, preparation, detail, max_tiles)
    if edge is not None:
        resized = resized.resize(longest_edge_size(*resized.size, edge), resample)
    if preparation.strategy == "grid":
        resized = resized.resize(tile_multiple_size(*resized.size, height), resample)
        if resized.width > width or resized.height > height:
            return _split_grid(resized, preparation, resample)
    if preparation.strategy == "stretch":
        resized = resized.resize((width, height), resample)
    return Tiles(np.asarray(resized)[None], rows=0, columns=0)


def _longest_edge(
    size: tuple[int, int],
    preparation: ImagePreparation,
    detail: Detail | None,
    max_tiles: int | None,
) -> int | None:
    """Return the length that the longest edge is resized to before the split."""
    tile, edge = preparation.tile_size[0], preparation.longest_edge
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


def _split_grid(
    image: Image.Image, preparation: ImagePreparation, resample: Image.Resampling
) -> Tiles:
    """Split into a grid of tiles and an overview. The sides of `image` are multiples of the tile."""
    height, width = preparation.tile_size
    rows, columns = image.height // height, image.width // width
    pixels = np.empty((rows * columns + 1, height, width, 3), np.uint8)
    grid = np.asarray(image).reshape(rows, height, columns, width, 3)
    pixels[:-1] = grid.transpose(0, 2, 1, 3, 4).reshape(rows * columns, height, width, 3)
    pixels[-1] = np.asarray(image.resize((width, height), resample))
    return Tiles(pixels, rows, columns)


def longest_edge_size(width: int, height: int, longest_edge: int) -> tuple[int, int]:
    """Return width and height with the longest edge resized to `longest_edge`.

    The rule of Idefics3: the other side is rounded down to an integer, then up to an even one, and is at
    least 1. No side is longer than `MAX_SIDE`.
    """
    aspect = width / height
    if width >= height:
        width, height = longest_edge, int(longest_edge / aspect)
        height = max(height + height % 2, 1)
    else:
        width, height = int(longest_edge * aspect), longest_edge
        width = max(width + width % 2, 1)
    aspect = width / height
    if width >= height and width > MAX_SIDE:
        width, height = MAX_SIDE, int(MAX_SIDE / aspect)
    elif height > width and height > MAX_SIDE:
        width, height = int(MAX_SIDE * aspect), MAX_SIDE
    return max(width, 1), max(height, 1)


def tile_multiple_size(width: int, height: int, tile: int) -> tuple[int, int]:
    """Return width and height as multiples of `tile`.

    The longer side is rounded up; the other follows from the aspect ratio and is rounded up.
    """

    def up(side: int) -> int:
        return math.ceil(side / tile) * tile

    aspect = width / height
    if width >= height:
        width = up(width)
        return width, up(int(width / aspect))
    height = up(height)
    return up(int(height * aspect)), height
