"""One tile of nearly the image's own size and aspect ratio: ``Qwen2VLImageProcessorPil``."""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

from PIL import Image

from edgevlm.errors import ImageError
from edgevlm.inputs.tiling.budget import Detail
from edgevlm.inputs.tiling.tiles import FILTERS, Tiles, one_tile
from edgevlm.manifest import AreaTiling, SmartResizeTiling

Area = TypeVar("Area", bound=AreaTiling)

MAX_ASPECT_RATIO = 200
"""The longest side over the shortest that transformers accepts for Qwen's models."""

LOW_DETAIL_TOKENS = 256
"""Embeddings of an image with detail ``low``: about as many as a tile of other families has."""


def split(
    image: Image.Image, tiling: SmartResizeTiling, detail: Detail | None, max_tiles: int | None
) -> Tiles:
    """Resize an RGB image to one tile; see `edgevlm.inputs.tiling.split_image`.

    Raises:
        ImageError: the image is too long for its width, or too wide for its height.
    """
    height, width = choose_size(image.height, image.width, apply_detail(tiling, detail))
    tile = image.resize((width, height), FILTERS[tiling.resample])
    return one_tile(tile, image)


def apply_detail(tiling: Area, detail: Detail | None) -> Area:
    """Return a tiling that enlarges no image (``auto``) or allows few embeddings (``low``)."""
    if detail == "auto":
        return dataclasses.replace(tiling, min_pixels=min(tiling.factor**2, tiling.max_pixels))
    return limit_tokens(tiling, LOW_DETAIL_TOKENS) if detail == "low" else tiling


def limit_tokens(tiling: Area, max_tokens: int) -> Area:
    """Return a tiling whose tile of the whole image has about `max_tokens` squares of side `factor` at most.

    Only an image that is much longer than wide can have more, since each side is one square at least.
    """
    max_pixels = min(tiling.max_pixels, max_tokens * tiling.factor**2)
    return dataclasses.replace(
        tiling, max_pixels=max_pixels, min_pixels=min(tiling.min_pixels, max_pixels)
    )


def choose_size(height: int, width: int, tiling: SmartResizeTiling) -> tuple[int, int]:
    """Return height and width of the tile of an image, as transformers' ``smart_resize`` does.

    Raises:
        ImageError: the aspect ratio is more than `MAX_ASPECT_RATIO`.
    """
    size = height, width
    if height < tiling.min_side:
        height, width = tiling.min_side, round(width * tiling.min_side / height)
    if width < tiling.min_side:
        height, width = round(height * tiling.min_side / width), tiling.min_side
    check_aspect_ratio(height, width, size)
    return fit_area(height, width, tiling, min_side=0)


def check_aspect_ratio(height: int, width: int, size: tuple[int, int]) -> None:
    """Check that no side is more than `MAX_ASPECT_RATIO` times as long as the other.

    Args:
        size: height and width of the image before it was resized, for the message.

    Raises:
        ImageError: a side is longer.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageError(
            f"the image is {size[1]} x {size[0]} pixels; this model takes images whose longer side is at "
            f"most {MAX_ASPECT_RATIO} times the shorter one; crop it"
        )


def fit_area(height: int, width: int, tiling: AreaTiling, *, min_side: int) -> tuple[int, int]:
    """Return the sides as multiples of the factor, with an area within the bounds of the tiling.

    Args:
        min_side: no rounded side is shorter, before the area is considered.
    """
    factor = tiling.factor
    # round() takes the even neighbor of a half, as in the reference.
    tall = max(min_side, round(height / factor) * factor)
    wide = max(min_side, round(width / factor) * factor)
    if tall * wide > tiling.max_pixels:
        ratio = math.sqrt(height * width / tiling.max_pixels)
        tall = max(factor, math.floor(height / ratio / factor) * factor)
        wide = max(factor, math.floor(width / ratio / factor) * factor)
    elif tall * wide < tiling.min_pixels:
        ratio = math.sqrt(tiling.min_pixels / (height * width))
        tall = math.ceil(height * ratio / factor) * factor
        wide = math.ceil(width * ratio / factor) * factor
    return tall, wide
