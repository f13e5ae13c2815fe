"""An overview and then crops of a long image: ``Gemma3ImageProcessorPil`` with ``do_pan_and_scan``."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.tiles import FILTERS, Layout, Tiles, one_tile
from edgevlm.manifest import PanAndScanTiling


def split(
    image: Image.Image, tiling: PanAndScanTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Split an RGB image into an overview and crops; see `edgevlm.inputs.tiling.split_image`.

    The last crop of an image of few pixels may be empty; its tile is black, as in transformers.
    """
    height, width = tiling.tile_size
    resample = FILTERS[tiling.resample]
    overview = image.resize((width, height), resample)
    crops = _count_crops(image.size, tiling, detail, max_tiles)
    if crops == 0:
        return one_tile(overview, image)
    horizontal = image.width >= image.height
    longest = max(image.size)
    length = math.ceil(longest / crops)
    tiles = [overview]
    for index in range(crops):
        start, end = (min(edge * length, longest) for edge in (index, index + 1))
        box = (start, 0, end, image.height) if horizontal else (0, start, image.width, end)
        tiles.append(image.crop(box).resize((width, height), resample))
    rows, columns = (1, crops) if horizontal else (crops, 1)
    layout = Layout(image.height, image.width, rows, columns, overview=0)
    return Tiles(tuple(map(np.asarray, tiles)), layout)


def _count_crops(
    size: tuple[int, int],
    tiling: PanAndScanTiling,
    detail: Detail | None,
    max_tiles: int | None,
) -> int:
    """Return the number of crops along the longer side; 0: the overview alone."""
    short, long = sorted(size)
    if detail == "low" or long / short < tiling.min_ratio:
        return 0
    crops = min(math.floor(long / short + 0.5), long // tiling.min_crop_size)
    crops = min(max(2, crops), tiling.max_crops)
    if min(short, math.ceil(long / crops)) < tiling.min_crop_size:
        return 0
    allowed = crops if max_tiles is None else min(crops, max_tiles - 1)
    if detail == "auto":
        tall, wide = tiling.tile_size if size[0] >= size[1] else tiling.tile_size[::-1]
        allowed = min(allowed, long // wide if short >= tall else 0)
    # One crop shows no more than the overview. A checkpoint may ask for it all the same.
    return 0 if allowed < min(2, crops) else allowed
