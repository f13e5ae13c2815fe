"""The whole image in one padded canvas of squares: ``MllamaImageProcessorPil``."""

from __future__ import annotations

import dataclasses
import math

from PIL import Image

from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.scaled_grid import least_enlarging_grid
from edgevlm.inputs.tiling.stretched_grid import all_grids
from edgevlm.inputs.tiling.tiles import FILTERS, Tiles, cut_region, one_tile
from edgevlm.manifest import CanvasTiling


def split(
    image: Image.Image, tiling: CanvasTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Resize an RGB image into one canvas; see `edgevlm.inputs.tiling.split_image`.

    Detail ``low`` is a canvas of one square. Detail ``auto`` changes nothing, as no canvas of several squares
    enlarges an image.
    """
    if detail == "low":
        tiling = dataclasses.replace(tiling, max_tiles=1)
    tall, wide = choose_size(image.height, image.width, tiling)
    height, width = fit_canvas(image.height, image.width, (tall, wide), tiling.factor)
    canvas = Image.new("RGB", (wide, tall))
    canvas.paste(image.resize((width, height), FILTERS[tiling.resample]))
    return one_tile(canvas, image, cut_region((width, height), 0, 0, wide, tall))


def choose_size(height: int, width: int, tiling: CanvasTiling) -> tuple[int, int]:
    """Return height and width of the canvas of an image in pixels, as ``get_optimal_tiled_canvas`` does."""
    square = tiling.factor, tiling.factor
    columns, rows = least_enlarging_grid((width, height), square, all_grids(1, tiling.max_tiles))
    return rows * tiling.factor, columns * tiling.factor


def fit_canvas(height: int, width: int, canvas: tuple[int, int], factor: int) -> tuple[int, int]:
    """Return height and width of an image in its canvas, as ``get_image_size_fit_to_canvas`` does.

    The aspect ratio is kept. An image that is smaller than a square is enlarged to one; no other is.

    Args:
        height: height of the image in pixels.
        width: its width in pixels.
        canvas: height and width of the canvas in pixels.
        factor: side of a square in pixels.
    """
    tall, wide = (
        min(max(side, factor), most) for side, most in zip((height, width), canvas, strict=True)
    )
    if wide / width < tall / height:
        return max(1, math.floor(height * (wide / width))), wide
    return tall, max(1, math.floor(width * (tall / height)))
