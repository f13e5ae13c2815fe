"""One size for all images (``--image-size``), for checkpoints that take images of any size.

Each image is resized to it with the filter of the checkpoint, whatever its aspect ratio is. So the vision
graph has fixed shapes.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from edgevlm.errors import ExportError, ImageError
from edgevlm.inputs.tiling import choose_own_size, split_image
from edgevlm.manifest import CrossPacking, ImageSpec, OwnSizeTiling, StretchTiling, VisionSpec

MAX_ROUNDS = 8
"""How often an image is resized in search of a size that the checkpoint leaves as it is; two are usual."""


def fix_image_size(
    image: ImageSpec, vision: VisionSpec, size: tuple[int, int]
) -> tuple[ImageSpec, VisionSpec]:
    """Return how images become tiles of one size, and the vision graph for them.

    Args:
        image: what the checkpoint does.
        vision: the graph for it.
        size: width and height in pixels.

    Raises:
        ExportError: the checkpoint has a size of its own, or resizes images of this size.
    """
    tiling = image.tiling
    width, height = size
    if not isinstance(tiling, OwnSizeTiling):
        tall, wide = tiling.tile_size
        raise ExportError(
            f"--image-size is for checkpoints that take images of any size; the vision graph of this one "
            f"takes tiles of {wide} x {tall} pixels only; leave the option out"
        )
    if isinstance(vision.packing, CrossPacking):
        raise ExportError(
            "--image-size does not fit this checkpoint, which takes one of a few canvases for each image; "
            "leave the option out"
        )
    if width < 1 or height < 1:
        raise ExportError(f"--image-size is {width}x{height}; both sides must be positive")
    kept = find_kept_size(height, width, tiling)
    if kept != (height, width):
        tall, wide = kept
        raise ExportError(
            f"--image-size is {width}x{height}, but the checkpoint resizes images of this size: sides are "
            f"multiples of {tiling.factor} pixels, and the area is limited; choose the size that they "
            f"become: --image-size {wide}x{tall}"
        )
    if len(split_image(np.zeros((height, width, 3), np.uint8), tiling)) > 1:
        raise ExportError(
            f"--image-size is {width}x{height}, but the checkpoint cuts images of this size into tiles; "
            f"choose a smaller one"
        )
    fixed = dataclasses.replace(
        image, tiling=StretchTiling((height, width), tiling.resample), default_max_tokens=None
    )
    tokens = math.prod(vision.grid_size((height, width)))
    return fixed, dataclasses.replace(vision, tokens_per_tile=tokens)


def find_kept_size(height: int, width: int, tiling: OwnSizeTiling) -> tuple[int, int]:
    """Return height and width of a size near this one that the checkpoint leaves as it is.

    It is the size to which the checkpoint resizes an image of this height and width.

    Raises:
        ExportError: there is none, or the checkpoint refuses the aspect ratio.
    """
    found = height, width
    for _ in range(MAX_ROUNDS):
        try:
            resized = choose_own_size(*found, tiling)
        except ImageError as error:
            raise ExportError(
                f"--image-size is {width}x{height}, and the checkpoint refuses this aspect ratio; choose "
                f"another size"
            ) from error
        if resized == found:
            return found
        found = resized
    raise ExportError(
        f"--image-size is {width}x{height}, and the checkpoint resizes images of this and of the nearest "
        f"sizes; choose another one"
    )
