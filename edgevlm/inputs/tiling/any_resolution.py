"""An overview and a padded grid: ``LlavaNextImageProcessorPil`` and ``LlavaOnevisionImageProcessorPil``."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.tiles import FILTERS, Layout, Tiles, cut_grid, one_tile
from edgevlm.manifest import AnyResolutionTiling


def split(
    image: Image.Image, tiling: AnyResolutionTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Split an RGB image into an overview and a grid; see `edgevlm.inputs.tiling.split_image`."""
    height, width = tiling.tile_size
    resample = FILTERS[tiling.resample]
    overview = image.resize((width, height), resample)
    resolution = _choose_resolution(image.size, tiling, detail, max_tiles)
    if resolution is None:
        return one_tile(overview, image)
    tall, wide = resolution
    resized = image.resize(_fitted_size(*image.size, wide, tall), resample)
    padded = Image.new("RGB", (wide, tall))
    padded.paste(resized, ((wide - resized.width) // 2, (tall - resized.height) // 2))
    grid = cut_grid(padded, tiling.tile_size)
    layout = Layout(image.height, image.width, tall // height, wide // width, overview=0)
    return Tiles((np.asarray(overview), *grid), layout)


def _choose_resolution(
    size: tuple[int, int],
    tiling: AnyResolutionTiling,
    detail: Detail | None,
    max_tiles: int | None,
) -> tuple[int, int] | None:
    """Return height and width of the best resolution that the budget allows; None: the overview alone."""
    width, height = size
    rows, columns = tiling.tile_size

    def allowed(tall: int, wide: int) -> bool:
        if detail == "low" or (detail == "auto" and wide > width and tall > height):
            return False
        return max_tiles is None or 1 + (tall // rows) * (wide // columns) <= max_tiles

    def quality(resolution: tuple[int, int]) -> tuple[int, int]:
        # As much of the image as possible, and then as little padding as possible.
        tall, wide = resolution
        scale = min(wide / width, tall / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - tall * wide

    return max(
        (resolution for resolution in tiling.resolutions if allowed(*resolution)),
        key=quality,
        default=None,
    )


def _fitted_size(width: int, height: int, wide: int, tall: int) -> tuple[int, int]:
    """Return width and height of an image resized into `wide` x `tall` pixels, with its aspect ratio."""
    if wide / width < tall / height:
        return wide, min(math.ceil(height * (wide / width)), tall)
    return min(math.ceil(width * (tall / height)), wide), tall
