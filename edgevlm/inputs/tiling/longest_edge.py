"""One tile of the image's own size, or of a smaller one: ``PixtralImageProcessorPil``."""

from __future__ import annotations

import dataclasses
import math

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.smart_resize import LOW_DETAIL_TOKENS
from edgevlm.inputs.tiling.tiles import FILTERS, Tiles, one_tile
from edgevlm.manifest import LongestEdgeTiling


def split(
    image: Image.Image, tiling: LongestEdgeTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Resize an RGB image to one tile; see `edgevlm.inputs.tiling.split_image`."""
    if detail == "low":
        tiling = limit_tokens(image.height, image.width, tiling, LOW_DETAIL_TOKENS)
    height, width = choose_size(image.height, image.width, tiling)
    tile = image.resize((width, height), FILTERS[tiling.resample])
    return one_tile(tile, image)


def limit_tokens(
    height: int, width: int, tiling: LongestEdgeTiling, max_tokens: int
) -> LongestEdgeTiling:
    """Return a tiling whose tile of this image has at most `max_tokens` squares of side `factor`.

    The longest edge becomes as long as this allows.
    """
    shortest, longest = 1, tiling.longest_edge
    while shortest < longest:
        edge = (shortest + longest + 1) // 2
        tall, wide = choose_size(height, width, dataclasses.replace(tiling, longest_edge=edge))
        if tall * wide <= max_tokens * tiling.factor**2:
            shortest = edge
        else:
            longest = edge - 1
    return dataclasses.replace(tiling, longest_edge=shortest)


def choose_size(height: int, width: int, tiling: LongestEdgeTiling) -> tuple[int, int]:
    """Return height and width of the tile of an image, as ``get_resize_output_image_size`` does.

    transformers fails for an image so long that its short side is shrunk to nothing. Here it keeps a pixel.
    """
    ratio = max(height / tiling.longest_edge, width / tiling.longest_edge)
    if ratio > 1:
        height, width = (max(1, math.floor(side / ratio)) for side in (height, width))
    tall, wide = (-(-side // tiling.factor) * tiling.factor for side in (height, width))
    return tall, wide
