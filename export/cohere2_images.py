"""Command A Vision's image processor with Pillow. transformers has it for torchvision only.

Its tiles are those that edgevlm makes. torchvision's resize may differ from Pillow's by one gray level.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.processing_utils import ImagesKwargs

from edgevlm.inputs.tiling import split_image
from edgevlm.inputs.tiling.tiles import FILTERS
from edgevlm.manifest import Resample, ScaledGridTiling, StretchTiling


class Cohere2VisionImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict
    """Settings that other image processors lack."""

    crop_to_patches: bool
    min_patches: int
    max_patches: int
    patch_size: int


class Cohere2VisionImageProcessorPil(PilBackend):
    """Splits and normalizes images as ``Cohere2VisionImageProcessor`` of transformers."""

    resample = Image.Resampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size: ClassVar = {"height": 512, "width": 512}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    crop_to_patches = True
    min_patches = 1
    max_patches = 12
    patch_size = 16
    valid_kwargs = Cohere2VisionImagesKwargs

    def tiling(self, size: tuple[int, int], resample: Resample) -> StretchTiling | ScaledGridTiling:
        """Return how images are split; transformers reads no ``min_patches``.

        Args:
            size: height and width of a tile in pixels.
        """
        if not self.crop_to_patches:
            return StretchTiling(size, resample)
        return ScaledGridTiling(size, resample, self.max_patches)

    def _preprocess(
        self, images: list[NDArray[Any]], return_tensors: str | None = None, **settings: Any
    ) -> BatchFeature:
        """Split images ``[3, height, width]``."""
        names = {int(value): name for name, value in FILTERS.items()}
        size = settings["size"].height, settings["size"].width
        tiling = self.tiling(size, names[int(settings["resample"])])
        pixels, counts = [], []
        for image in images:
            tiles = split_image(np.moveaxis(image, 0, -1).astype(np.uint8), tiling)
            counts.append(len(tiles))
            for tile in tiles.pixels:
                values = np.moveaxis(tile, -1, 0).astype(np.float32)
                if settings["do_rescale"]:
                    values = self.rescale(values, settings["rescale_factor"])
                if settings["do_normalize"]:
                    values = self.normalize(values, settings["image_mean"], settings["image_std"])
                pixels.append(values)
        data = {"pixel_values": np.stack(pixels), "num_patches": counts}
        return BatchFeature(data, tensor_type=return_tensors)
