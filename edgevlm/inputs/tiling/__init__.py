"""Split images into tiles, with the geometry that a vision tower was trained with.

One module for each strategy of the manifest. Each computes exactly what transformers' Pillow image processors
compute, up to rescaling and normalizing, which the vision graph does itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.inputs.tiling import (
    any_resolution,
    aspect_grid,
    canvas,
    covering_grid,
    crop,
    fit,
    floor_resize,
    grid,
    longest_edge,
    own_size_grid,
    pan_and_scan,
    scaled_grid,
    slices,
    smart_resize,
    stretch,
)
from edgevlm.inputs.tiling.budget import CHECKPOINT_BUDGET, Detail, ImageBudget
from edgevlm.inputs.tiling.sizes import longest_edge_size, tile_multiple_size
from edgevlm.inputs.tiling.tiles import Layout, Tiles
from edgevlm.manifest import (
    AnyResolutionTiling,
    AspectGridTiling,
    CanvasTiling,
    CoveringGridTiling,
    CropTiling,
    FitTiling,
    FloorResizeTiling,
    GridTiling,
    LongestEdgeTiling,
    OwnSizeGridTiling,
    OwnSizeTiling,
    PanAndScanTiling,
    ScaledGridTiling,
    SliceTiling,
    SmartResizeTiling,
    StretchTiling,
    Tiling,
)

__all__ = [
    "CHECKPOINT_BUDGET",
    "Detail",
    "ImageBudget",
    "Layout",
    "Tiles",
    "choose_own_size",
    "count_max_tiles",
    "split_image",
]

_SPLIT: dict[type, Callable[[Image.Image, Any, Detail | None, int | None], Tiles]] = {
    StretchTiling: stretch.split,
    GridTiling: grid.split,
    CropTiling: crop.split,
    FitTiling: fit.split,
    AnyResolutionTiling: any_resolution.split,
    AspectGridTiling: aspect_grid.split,
    CoveringGridTiling: covering_grid.split,
    ScaledGridTiling: scaled_grid.split,
    PanAndScanTiling: pan_and_scan.split,
    SmartResizeTiling: smart_resize.split,
    FloorResizeTiling: floor_resize.split,
    OwnSizeGridTiling: own_size_grid.split,
    LongestEdgeTiling: longest_edge.split,
    SliceTiling: slices.split,
    CanvasTiling: canvas.split,
}

_CHOOSE_SIZE: dict[type, Callable[[int, int, Any], tuple[int, int]]] = {
    SmartResizeTiling: smart_resize.choose_size,
    FloorResizeTiling: floor_resize.choose_size,
    OwnSizeGridTiling: own_size_grid.choose_size,
    SliceTiling: slices.choose_size,
    LongestEdgeTiling: longest_edge.choose_size,
    CanvasTiling: canvas.choose_size,
}


def split_image(
    image: NDArray[np.uint8],
    tiling: Tiling,
    detail: Detail | None = None,
    max_tiles: int | None = None,
) -> Tiles:
    """Split an image into tiles.

    Args:
        image: RGB uint8 ``[height, width, 3]``.
        tiling: the strategy of the model and its settings.
        detail: as in `ImageBudget`.
        max_tiles: limit of the number of tiles, at least 1; None for no limit.

    Raises:
        ImageError: the strategy refuses the aspect ratio of the image.
    """
    return _SPLIT[type(tiling)](Image.fromarray(image), tiling, detail, max_tiles)


def choose_own_size(height: int, width: int, tiling: OwnSizeTiling) -> tuple[int, int]:
    """Return height and width of the tile that shows an image as a whole, where tiles differ in size.

    Args:
        height: height of the image in pixels.
        width: its width in pixels.

    Raises:
        ImageError: the strategy refuses the aspect ratio of the image.
    """
    return _CHOOSE_SIZE[type(tiling)](height, width, tiling)


def count_max_tiles(tiling: Tiling) -> int | None:
    """Return the number of tiles of the image that is split into the most; None: there is no bound."""
    if isinstance(
        tiling,
        AspectGridTiling | CoveringGridTiling | ScaledGridTiling | OwnSizeGridTiling | SliceTiling,
    ):
        return tiling.max_tiles + (tiling.max_tiles > 1)
    if isinstance(tiling, PanAndScanTiling):
        return 1 + tiling.max_crops
    if isinstance(tiling, AnyResolutionTiling):
        height, width = tiling.tile_size
        return 1 + max((tall // height) * (wide // width) for tall, wide in tiling.resolutions)
    if isinstance(tiling, GridTiling):
        if tiling.longest_edge is None:
            return None
        edge = tiling.longest_edge
        side, _ = tile_multiple_size(*longest_edge_size(edge, edge, edge), tiling.tile_size[0])
        tiles = (side // tiling.tile_size[0]) ** 2
        return tiles + (tiles > 1)
    return 1
