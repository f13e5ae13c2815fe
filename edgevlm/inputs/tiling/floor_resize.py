"""One tile of the image's own aspect ratio, with sides rounded down: ``Gemma4ImageProcessorPil``."""

from __future__ import annotations

import math

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.smart_resize import apply_detail
from edgevlm.inputs.tiling.tiles import FILTERS, Tiles, one_tile
from edgevlm.manifest import FloorResizeTiling


def split(
    image: Image.Image, tiling: FloorResizeTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Resize an RGB image to one tile; see `edgevlm.inputs.tiling.split_image`."""
    height, width = choose_size(image.height, image.width, apply_detail(tiling, detail))
    tile = image.resize((width, height), FILTERS[tiling.resample])
    return one_tile(tile, image)


def choose_size(height: int, width: int, tiling: FloorResizeTiling) -> tuple[int, int]:
    """Return height and width of the tile of an image, as ``get_aspect_ratio_preserving_size`` does.

    transformers fails where both sides are rounded down to nothing. Here each is `factor` at least.
    """
    factor = tiling.factor
    area = min(max(height * width, tiling.min_pixels), tiling.max_pixels)
    scale = math.sqrt(area / (height * width))
    tall, wide = (math.floor(scale * side / factor) * factor for side in (height, width))
    longest = tiling.max_pixels // factor**2 * factor
    if not tall and not wide:
        return factor, factor
    if not tall:
        return factor, min(width // height * factor, longest)
    if not wide:
        return min(height // width * factor, longest), factor
    return tall, wide
