"""The whole image in one padded tile: ``DeepseekVLImageProcessorPil`` and ``JanusImageProcessorPil``."""

from __future__ import annotations

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.tiles import FILTERS, Tiles, cut_region, one_tile
from edgevlm.manifest import FitTiling


def split(
    image: Image.Image, tiling: FitTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Resize the longest edge of an RGB image and pad; see `edgevlm.inputs.tiling.split_image`."""
    side = tiling.tile_size[0]
    scale = side / max(image.size)
    width, height = (max(round(length * scale), tiling.min_side) for length in image.size)
    tile = Image.new("RGB", (side, side), tiling.pad_color)
    resized = image.resize((width, height), FILTERS[tiling.resample])
    left, top = (side - width) // 2, (side - height) // 2
    tile.paste(resized, (left, top))
    region = cut_region((width, height), -left, -top, side - left, side - top)
    return one_tile(tile, image, region)
