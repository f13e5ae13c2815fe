"""LFM2-VL's image processor with Pillow. transformers has it for torchvision only.

Its tiles are those that edgevlm makes. torchvision's resize may differ from Pillow's by one gray level.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.processing_utils import ImagesKwargs

from edgevlm.inputs.tiling import split_image
from edgevlm.inputs.tiling.tiles import FILTERS
from edgevlm.manifest import OwnSizeGridTiling, Resample


class Lfm2VlImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict
    """Settings that other image processors lack."""

    downsample_factor: int
    do_image_splitting: bool
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    min_image_tokens: int
    max_image_tokens: int
    encoder_patch_size: int
    tile_size: int
    max_pixels_tolerance: float
    return_row_col_info: bool


class Lfm2VlImageProcessorPil(PilBackend):
    """Splits and normalizes images as ``Lfm2VlImageProcessor`` of transformers, and returns their patches."""

    downsample_factor = 2
    do_image_splitting = True
    min_tiles = 2
    max_tiles = 10
    use_thumbnail = True
    min_image_tokens = 64
    max_image_tokens = 256
    encoder_patch_size = 16
    tile_size = 512
    max_pixels_tolerance = 2.0
    do_resize = True
    size: ClassVar = {"height": 512, "width": 512}
    resample = Image.Resampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_pad = True
    return_row_col_info = False
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    valid_kwargs = Lfm2VlImagesKwargs
    model_input_names: ClassVar = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]

    def tiling(self, resample: Resample) -> OwnSizeGridTiling:
        """Return how images are split.

        Raises:
            ValueError: a setting has another form.
        """
        factor = self.encoder_patch_size * self.downsample_factor
        for name in ("min_tiles", "max_tiles", "min_image_tokens", "max_image_tokens", "tile_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}, it must be a whole number from 1")
        if self.tile_size % factor or self.min_tiles > self.max_tiles:
            raise ValueError(
                f"tile_size is {self.tile_size}, min_tiles {self.min_tiles} and max_tiles {self.max_tiles}; "
                f"tile_size must be a multiple of {factor} and min_tiles at most max_tiles"
            )
        splits = self.do_image_splitting and self.max_tiles > 1
        return OwnSizeGridTiling(
            factor=factor,
            min_pixels=self.min_image_tokens * factor**2,
            max_pixels=self.max_image_tokens * factor**2,
            resample=resample,
            tile_side=self.tile_size,
            min_tiles=self.min_tiles if splits else 1,
            max_tiles=self.max_tiles if splits else 1,
            max_area_ratio=float(self.max_pixels_tolerance),
            overview=bool(self.use_thumbnail),
        )

    def _preprocess(
        self, images: list[NDArray[Any]], return_tensors: str | None = None, **settings: Any
    ) -> BatchFeature:
        """Split images ``[3, height, width]``."""
        names = {int(value): name for name, value in FILTERS.items()}
        tiling = self.tiling(names[int(settings["resample"])])
        patch = self.encoder_patch_size
        limit = tiling.max_pixels // patch**2
        if tiling.max_tiles > 1:
            limit = max(limit, (tiling.tile_side // patch) ** 2)
        pixels, masks, shapes = [], [], []
        layouts, sizes = [], []
        for image in images:
            tiles = split_image(np.moveaxis(image, 0, -1).astype(np.uint8), tiling)
            layouts.append((max(1, tiles.layout.rows), max(1, tiles.layout.columns)))
            overview = tiles.layout.overview
            assert tiles.layout.tile_sizes is not None
            sizes.append(tiles.layout.tile_sizes[-1 if overview is None else overview])
            for tile in tiles.pixels:
                patches = self._patches(tile, settings)
                pixels.append(np.zeros((limit, patches.shape[1]), np.float32))
                pixels[-1][: len(patches)] = patches
                masks.append((np.arange(limit) < len(patches)).astype(np.int32))
                shapes.append((tile.shape[0] // patch, tile.shape[1] // patch))
        data = {
            "pixel_values": np.stack(pixels),
            "pixel_attention_mask": np.stack(masks),
            "spatial_shapes": np.array(shapes),
        }
        found = BatchFeature(data, tensor_type=return_tensors)
        if settings.get("return_row_col_info"):
            found["image_rows"] = [rows for rows, _ in layouts]
            found["image_cols"] = [columns for _, columns in layouts]
            found["image_sizes"] = [list(size) for size in sizes]
        return found

    def _patches(self, tile: NDArray[np.uint8], settings: dict[str, Any]) -> NDArray[np.float32]:
        """Return the normalized patches of a tile, float32 ``[patches, values]``."""
        patch = self.encoder_patch_size
        values = np.moveaxis(tile, -1, 0).astype(np.float32)
        if settings["do_rescale"]:
            values = self.rescale(values, settings["rescale_factor"])
        if settings["do_normalize"]:
            values = self.normalize(values, settings["image_mean"], settings["image_std"])
        _, height, width = values.shape
        grid = values.reshape(3, height // patch, patch, width // patch, patch)
        patches = grid.transpose(1, 3, 2, 4, 0).reshape(-1, patch * patch * 3)
        return np.asarray(patches, np.float32)
