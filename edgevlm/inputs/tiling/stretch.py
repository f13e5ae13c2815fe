"""One tile, whatever the aspect ratio: ``SiglipImageProcessorPil``, and Idefics3's without splitting."""

from __future__ import annotations

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.sizes import longest_edge_size
from edgevlm.inputs.tiling.tiles import FILTERS, Tiles, one_tile
from edgevlm.manifest import StretchTiling


def split(
    image: Image.Image, tiling: StretchTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Resize an RGB image to one tile; see `edgevlm.inputs.tiling.split_image`."""
    height, width = tiling.tile_size
    resample = FILTERS[tiling.resample]
    resized = image
    if tiling.longest_edge is not None:
        resized = image.resize(longest_edge_size(*image.size, tiling.longest_edge), resample)
    return one_tile(resized.resize((width, height), resample), image)
