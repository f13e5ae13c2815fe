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
    crop,
    fit,
    grid,
    pan_and_scan,
    stretch,
)
from edgevlm.inputs.tiling.budget import CHECKPOINT_BUDGET, Detail, ImageBudget
from edgevlm.inputs.tiling.tiles import Layout, Tiles
from edgevlm.manifest import (
    AnyResolutionTiling,
    AspectGridTiling,
    CropTiling,
    FitTiling,
    GridTiling,
    PanAndScanTiling,
    StretchTiling,
    Tiling,
)

__all__ = ["CHECKPOINT_BUDGET", "Detail", "ImageBudget", "Layout", "Tiles", "split_image"]

_SPLIT: dict[type, Callable[[Image.Image, Any, Detail | None, int | None], Tiles]] = {
    StretchTiling: stretch.split,
    GridTiling: grid.split,
    CropTiling: crop.split,
    FitTiling: fit.split,
    AnyResolutionTiling: any_resolution.split,
    AspectGridTiling: aspect_grid.split,
    PanAndScanTiling: pan_and_scan.split,
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
    """
    return _SPLIT[type(tiling)](Image.fromarray(image), tiling, detail, max_tiles)
