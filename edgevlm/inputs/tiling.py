"""Picture to tiles: the geometry that a vision tower was trained with.

Each strategy computes exactly what transformers' Pillow image processors compute, up to rescaling and
normalising, which the vision graph does itself:

- ``stretch``: ``SiglipImageProcessorPil``; with ``longest_edge`` Idefics3's and SmolVLM's, unsplit;
- ``grid``: ``Idefics3ImageProcessorPil`` and ``SmolVLMImageProcessorPil`` with ``do_image_splitting``.

How many tiles a grid has follows from the length that the picture's longest edge is first resized to.
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

SIDE_LIMIT = 4096
"""Idefics3 never resizes to more than this per side."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


Detail = Literal["low", "high", "auto"]


@dataclass(frozen=True)
class ImageBudget:
    """How many tiles a picture may become; pictures of models that never split them take one anyway.

    Raises:
        InputError: a setting of the wrong type or outside its range.
    """

    detail: Detail | None = None
    """``low``: one tile. ``high``: split as the checkpoint's processor splits. ``auto``: split into as
    many tiles as the picture's own pixels fill, so that nothing is enlarged to be split. None: as the
    checkpoint was made, which is ``high`` for models that split."""
    max_tokens: int | None = None
    """At most so many embeddings for a picture; None for no limit."""

    def __post_init__(self) -> None:
        if self.detail is not None and self.detail not in get_args(Detail):
            raise InputError(f"detail must be low, high, auto or None, is {self.detail!r}")
        if self.max_tokens is not None:
            check_integer("max_image_tokens", self.max_tokens, 1, 2**31 - 1)

    def tiles(self, tokens_per_tile: int) -> int | None:
        """Tiles that `max_tokens` allows.

        Raises:
            InputError: not even one.
        """
        if self.max_tokens is None:
            return None
        if self.max_tokens < tokens_per_tile:
            raise InputError(
                f"max_image_tokens is {self.max_tokens}, but a picture of this model takes at least "
                f"{tokens_per_tile}"
            )
        return self.max_tokens // tokens_per_tile


CHECKPOINT_BUDGET = ImageBudget()
"""Pictures as the checkpoint's processor makes them."""


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


def prepare(
    picture: NDArray[np.uint8],
    preparation: ImagePreparation,
    detail: Detail | None = None,
    most_tiles: int | None = None,
) -> Tiles:
    """Cut a picture into tiles.

    Args:
        picture: RGB uint8 ``[height, width, 3]``.
        detail: as in `ImageBudget`.
        most_tiles: at most so many; None for no limit.
    """
    image = Image.fromarray(picture)
    height, width = preparation.tile_size
    resample = _FILTERS[preparation.resample]
    edge = preparation.longest_edge
    if preparation.strategy == "grid":
        edge = _edge(image.size, preparation, detail, most_tiles)
    if edge is not None:
        image = image.resize(longest_edge_size(*image.size, edge), resample)
    if preparation.strategy == "grid":
        image = image.resize(tile_multiple_size(*image.size, height), resample)
        if image.width > width or image.height > height:
            return _cut(image, preparation, resample)
    if preparation.strategy == "stretch":
        image = image.resize((width, height), resample)
    return Tiles(np.asarray(image)[None], rows=0, columns=0)


def _edge(
    size: tuple[int, int],
    preparation: ImagePreparation,
    detail: Detail | None,
    most_tiles: int | None,
) -> int | None:
    """What a picture's longest edge is resized to before it is split."""
    tile, edge = preparation.tile_size[0], preparation.longest_edge
    full = edge if edge is not None else max(tile_multiple_size(*size, tile))
    if detail == "low":
        edge = tile
    elif detail == "auto":
        edge = min(full, max(tile, max(size) // tile * tile))
    if most_tiles is not None:
        while _count(size, full if edge is None else edge, tile) > most_tiles:
            edge = ((full if edge is None else edge) - 1) // tile * tile
    return edge


def _count(size: tuple[int, int], edge: int, tile: int) -> int:
    """Tiles of a picture whose longest edge becomes `edge`."""
    width, height = tile_multiple_size(*longest_edge_size(*size, edge), tile)
    grid = (width // tile) * (height // tile)
    return 1 if grid == 1 else grid + 1


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
