"""The center of an image as one tile: ``CLIPImageProcessorPil``; with `pad_color` ``LlavaImageProcessorPil``."""

from __future__ import annotations

import math

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.tiles import FILTERS, Tiles, one_tile
from edgevlm.manifest import CropTiling

MAX_RESIZED = 1 << 25
"""Pixels of a resized image, 134 MB in Pillow. The ends of an image that would become larger are cut off first."""
MAX_SQUARE = 1 << 15
"""Side in pixels of a padded square. A longer image is resized to this length first."""
STRIP = 1 << 20
"""Pixels that are padded at a time."""


def split(
    image: Image.Image, tiling: CropTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Resize the shortest edge of an RGB image and crop; see `edgevlm.inputs.tiling.split_image`.

    The tile is that of transformers, unless transformers would need far more memory than the image itself: an
    image so long that it exceeds `MAX_RESIZED` or `MAX_SQUARE`. Then its gray levels differ a little.
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
    """Cut off what the crop does not show, if the resized image would have more than `MAX_RESIZED` pixels."""
    short, long = sorted(image.size)
    if edge * edge * long // short <= MAX_RESIZED:
        return image
    horizontal = image.width > image.height
    # The filters reach 3 pixels, of the image or of the tile, whichever are larger.
    needed = math.ceil((tile_size[horizontal] + 16) * short / edge) + 16
    start = max(0, (long - needed) // 2)
    if horizontal:
        return image.crop((start, 0, long - start, short))
    return image.crop((0, start, short, long - start))


def _resize_padded(
    image: Image.Image, edge: int, color: tuple[int, int, int], resample: Image.Resampling
) -> Image.Image:
    """Pad an image to a square and resize it to `edge` x `edge`.

    Pillow resizes rows first and then columns. So rows can be padded and resized in strips, and the square is
    never in memory.
    """
    side = max(image.size)
    if side > MAX_SQUARE:
        width, height = (max(1, length * MAX_SQUARE // side) for length in image.size)
        image, side = image.resize((width, height), resample), MAX_SQUARE
    left, top = (side - image.width) // 2, (side - image.height) // 2
    narrow = Image.new("RGB", (edge, side), color)
    rows = max(1, STRIP // side)
    for first in range(0, image.height, rows):
        last = min(first + rows, image.height)
        strip = Image.new("RGB", (side, last - first), color)
        strip.paste(image.crop((0, first, image.width, last)), (left, 0))
        narrow.paste(strip.resize((edge, last - first), resample), (0, top + first))
    return narrow.resize((edge, edge), resample)
