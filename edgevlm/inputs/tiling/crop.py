"""The center of an image: ``CLIPImageProcessorPil``; with `pad_color` ``LlavaImageProcessorPil``."""

from __future__ import annotations

import math

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.tiles import FILTERS, Tiles, one_tile
from edgevlm.manifest import CropTiling

MAX_TEMPORARY_PIXELS = 1 << 26
"""Pixels of an image that is made on the way to the tile, 268 MB in Pillow."""


def split(
    image: Image.Image, tiling: CropTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Resize the shortest edge of an RGB image and crop; see `edgevlm.inputs.tiling.split_image`.

    transformers resizes and pads an image of any aspect ratio, whatever memory it takes. Here an image so
    long that it would exceed `MAX_TEMPORARY_PIXELS` first loses its ends, or is resized; so its gray levels
    differ a little.
    """
    edge, resample = tiling.shortest_edge, FILTERS[tiling.resample]
    if tiling.pad_color is not None:
        resized = _resize_padded(image, edge, tiling.pad_color, resample)
    else:
        part = _cut_ends(image, edge, tiling.tile_size)
        short, long = sorted(part.size)
        resized_long = int(edge * long / short)
        size = (edge, resized_long) if part.width <= part.height else (resized_long, edge)
        resized = part.resize(size, resample)
    height, width = tiling.tile_size
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return one_tile(resized.crop((left, top, left + width, top + height)), image)


def _cut_ends(image: Image.Image, edge: int, tile_size: tuple[int, int]) -> Image.Image:
    """Cut off what the crop does not show, if the resized image would exceed `MAX_TEMPORARY_PIXELS`."""
    short, long = sorted(image.size)
    if edge * edge * long // short <= MAX_TEMPORARY_PIXELS:
        return image
    horizontal = image.width > image.height
    # The filters reach 3 pixels, of the image or of the tile, whichever are larger.
    needed = math.ceil((tile_size[1 if horizontal else 0] + 16) * short / edge) + 16
    start = max(0, (long - needed) // 2)
    if horizontal:
        return image.crop((start, 0, long - start, short))
    return image.crop((0, start, short, long - start))


def _resize_padded(
    image: Image.Image, edge: int, color: tuple[int, int, int], resample: Image.Resampling
) -> Image.Image:
    """Pad an image to a square and resize it to `edge` x `edge`."""
    side = max(image.size)
    max_side = math.isqrt(MAX_TEMPORARY_PIXELS)
    if side > max_side and image.width != image.height:
        width, height = (max(1, length * max_side // side) for length in image.size)
        image, side = image.resize((width, height), resample), max_side
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((edge, edge), resample)
