"""The center of an image: ``CLIPImageProcessorPil``; with `pad_color` ``LlavaImageProcessorPil``."""

from __future__ import annotations

import math

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.tiles import FILTERS, WHOLE, Region, Tiles, cut_region, one_tile
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
        square, shown = _pad(image, tiling.pad_color, resample)
        resized = square.resize((edge, edge), resample)
    else:
        part, shown = _cut_ends(image, edge, tiling.tile_size)
        short, long = sorted(part.size)
        resized_long = int(edge * long / short)
        size = (edge, resized_long) if part.width <= part.height else (resized_long, edge)
        resized = part.resize(size, resample)
    height, width = tiling.tile_size
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    crop = left, top, left + width, top + height
    return one_tile(resized.crop(crop), image, shown.part(cut_region(resized.size, *crop)))


def _cut_ends(
    image: Image.Image, edge: int, tile_size: tuple[int, int]
) -> tuple[Image.Image, Region]:
    """Cut off what the crop does not show, if the resized image would exceed `MAX_TEMPORARY_PIXELS`.

    Returns:
        The rest, and what it shows of the image.
    """
    short, long = sorted(image.size)
    if edge * edge * long // short <= MAX_TEMPORARY_PIXELS:
        return image, WHOLE
    horizontal = image.width > image.height
    # The filters reach 3 pixels, of the image or of the tile, whichever are larger.
    needed = math.ceil((tile_size[1 if horizontal else 0] + 16) * short / edge) + 16
    start = max(0, (long - needed) // 2)
    rest = (start, 0, long - start, short) if horizontal else (0, start, short, long - start)
    return image.crop(rest), cut_region(image.size, *rest)


def _pad(
    image: Image.Image, color: tuple[int, int, int], resample: Image.Resampling
) -> tuple[Image.Image, Region]:
    """Pad an image to a square with the image in the center; return also what the square shows of it."""
    side = max(image.size)
    max_side = math.isqrt(MAX_TEMPORARY_PIXELS)
    if side > max_side and image.width != image.height:
        width, height = (max(1, length * max_side // side) for length in image.size)
        image, side = image.resize((width, height), resample), max_side
    square = Image.new("RGB", (side, side), color)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    square.paste(image, (left, top))
    return square, cut_region(image.size, -left, -top, side - left, side - top)
