"""How images become tiles: one dataclass for each strategy, with the settings of the checkpoint.

`edgevlm.inputs.tiling` has the code of each. A manifest names the strategy in the field ``kind``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from edgevlm.manifest.parsing import require

Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]
"""Names of Pillow's resampling filters."""


@dataclass(frozen=True)
class _Tiling:
    """What all strategies with tiles of one size have."""

    tile_size: tuple[int, int]
    """Height and width of a tile in pixels."""
    resample: Resample
    """Filter for resizing: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``."""

    def check(self) -> None:
        """Check the values."""
        require(
            all(side > 0 for side in self.tile_size),
            "tile_size",
            self.tile_size,
            "must be positive",
        )


@dataclass(frozen=True)
class StretchTiling(_Tiling):
    """Resize the image to one tile, whatever its aspect ratio (SigLIP, PaliGemma, Gemma 3).

    Also every family that takes images of their own size, if the export fixed one (``--image-size``).
    """

    kind: Literal["stretch"] = field(default="stretch", init=False)
    longest_edge: int | None = None
    """Length in pixels to which the longest edge is resized first, up or down; null: do not resize."""

    def check(self) -> None:
        """Check the values."""
        super().check()
        check_positive_or_null("longest_edge", self.longest_edge)


@dataclass(frozen=True)
class GridTiling(_Tiling):
    """Split the image into a grid of tiles and then an overview, as Idefics3 and SmolVLM do.

    An image that fits one tile stays one tile.
    """

    kind: Literal["grid"] = field(default="grid", init=False)
    longest_edge: int | None = None
    """Length in pixels to which the longest edge is resized first, up or down; null: do not resize."""

    def check(self) -> None:
        """Check the values."""
        super().check()
        check_positive_or_null("longest_edge", self.longest_edge)
        require(
            self.tile_size[0] == self.tile_size[1],
            "tile_size",
            self.tile_size,
            "must be square for the grid strategy",
        )


@dataclass(frozen=True)
class CropTiling(_Tiling):
    """Resize the shortest edge and take the center of the image (CLIP, LLaVA 1.5)."""

    shortest_edge: int
    """Length in pixels to which the shortest edge is resized, up or down, before the crop. Where the image is
    then smaller than the tile, the rest of the tile is black."""
    pad_color: tuple[int, int, int] | None
    """Color with which the image is first padded to a square, with the image in the center; null: no
    padding."""
    kind: Literal["crop"] = field(default="crop", init=False)

    def check(self) -> None:
        """Check the values."""
        super().check()
        require(self.shortest_edge > 0, "shortest_edge", self.shortest_edge, "must be positive")
        if self.pad_color is not None:
            check_color("pad_color", self.pad_color)


@dataclass(frozen=True)
class FitTiling(_Tiling):
    """Resize the longest edge to the tile and pad to a square (DeepSeek-VL, Janus)."""

    min_side: int
    """Length in pixels that no side is shorter than after the resize."""
    pad_color: tuple[int, int, int]
    """Color of the padding around the centered image."""
    kind: Literal["fit"] = field(default="fit", init=False)

    def check(self) -> None:
        """Check the values."""
        super().check()
        require(
            self.tile_size[0] == self.tile_size[1],
            "tile_size",
            self.tile_size,
            "must be square for the fit strategy",
        )
        require(
            0 < self.min_side <= self.tile_size[0],
            "min_side",
            self.min_side,
            "must be positive and not exceed the tile",
        )
        check_color("pad_color", self.pad_color)


@dataclass(frozen=True)
class AnyResolutionTiling(_Tiling):
    """An overview, and then the image in the best of several resolutions as a grid of tiles.

    The image keeps its aspect ratio and is padded with black (LLaVA-NeXT, LLaVA-OneVision).
    """

    resolutions: tuple[tuple[int, int], ...]
    """Heights and widths in pixels to choose from, multiples of the tile; at least one."""
    kind: Literal["any-resolution"] = field(default="any-resolution", init=False)

    def check(self) -> None:
        """Check the values."""
        super().check()
        require(bool(self.resolutions), "resolutions", self.resolutions, "must not be empty")
        height, width = self.tile_size
        require(
            all(
                tall > 0 and wide > 0 and tall % height == 0 and wide % width == 0
                for tall, wide in self.resolutions
            ),
            "resolutions",
            self.resolutions,
            f"must be multiples of the tile_size {self.tile_size}",
        )


@dataclass(frozen=True)
class AspectGridTiling(_Tiling):
    """Resize the image to the grid of tiles with the nearest aspect ratio (InternVL, GOT-OCR 2).

    A grid of more than one tile is followed by an overview.
    """

    min_tiles: int
    """Minimum number of tiles in the grid."""
    max_tiles: int
    """Maximum number of tiles in the grid."""
    kind: Literal["aspect-grid"] = field(default="aspect-grid", init=False)

    def check(self) -> None:
        """Check the values."""
        super().check()
        require(self.min_tiles > 0, "min_tiles", self.min_tiles, "must be positive")
        require(
            self.max_tiles >= self.min_tiles,
            "max_tiles",
            self.max_tiles,
            f"must be at least min_tiles {self.min_tiles}",
        )


@dataclass(frozen=True)
class CoveringGridTiling(_Tiling):
    """An overview, and then the image resized to the smallest grid of tiles that covers it (Ovis2).

    A grid covers the image if its tiles hold more than 90 % of the pixels, as if each kept its aspect ratio.
    An image that one tile covers stays one tile.
    """

    max_tiles: int
    """Maximum number of tiles in the grid."""
    kind: Literal["covering-grid"] = field(default="covering-grid", init=False)

    def check(self) -> None:
        """Check the values."""
        super().check()
        check_square_grid(self)


@dataclass(frozen=True)
class ScaledGridTiling(_Tiling):
    """Resize the image to the grid of tiles that enlarges it least (Command A Vision).

    If each grid is smaller than the image, it is the one that shrinks it least. A grid of more than one tile
    is followed by an overview.
    """

    max_tiles: int
    """Maximum number of tiles in the grid."""
    kind: Literal["scaled-grid"] = field(default="scaled-grid", init=False)

    def check(self) -> None:
        """Check the values."""
        super().check()
        check_square_grid(self)


@dataclass(frozen=True)
class PanAndScanTiling(_Tiling):
    """An overview, and then crops along the longer side of a long image (Gemma 3 with pan and scan).

    The overview and each crop are resized to a tile, whatever their aspect ratio.
    """

    min_crop_size: int
    """Shortest side of a crop in pixels; an image with smaller crops is not split."""
    max_crops: int
    """Maximum number of crops."""
    min_ratio: float
    """Ratio of the longer to the shorter side from which an image is split."""
    kind: Literal["pan-and-scan"] = field(default="pan-and-scan", init=False)

    def check(self) -> None:
        """Check the values."""
        super().check()
        require(self.min_crop_size > 0, "min_crop_size", self.min_crop_size, "must be positive")
        require(self.max_crops > 0, "max_crops", self.max_crops, "must be positive")
        require(self.min_ratio >= 1, "min_ratio", self.min_ratio, "must be at least 1")


@dataclass(frozen=True)
class OwnSizeTiling:
    """What all strategies have whose tiles keep nearly the image's own size and aspect ratio."""

    factor: int
    """Side in pixels of which the sides of a tile are multiples."""


@dataclass(frozen=True)
class AreaTiling(OwnSizeTiling):
    """What those strategies have that keep the area of a tile within bounds."""

    min_pixels: int
    """Smallest area of a tile of the whole image in pixels."""
    max_pixels: int
    """Largest area of a tile of the whole image in pixels."""
    resample: Resample
    """Filter for resizing: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``."""

    def check(self) -> None:
        """Check the values."""
        for name in ("factor", "min_pixels"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(
            self.max_pixels >= self.min_pixels,
            "max_pixels",
            self.max_pixels,
            f"must be at least min_pixels {self.min_pixels}",
        )


@dataclass(frozen=True)
class SmartResizeTiling(AreaTiling):
    """Resize the image to one tile of nearly its own size and aspect ratio (Qwen2-VL to Qwen3.5).

    The sides become multiples of `factor`, and the area stays within bounds (``smart_resize`` in
    transformers). So tiles differ in size from image to image.
    """

    kind: Literal["smart-resize"] = field(default="smart-resize", init=False)
    min_side: int = 1
    """Length in pixels to which a shorter side is enlarged first, with the other one (PaddleOCR-VL)."""

    def check(self) -> None:
        """Check the values."""
        super().check()
        require(self.min_side > 0, "min_side", self.min_side, "must be positive")


@dataclass(frozen=True)
class FloorResizeTiling(AreaTiling):
    """Resize the image to one tile of its own aspect ratio, with the area nearest to its own (Gemma 4).

    The sides are rounded down to multiples of `factor`. In checkpoints both bounds of the area are equal, so
    each image gets about as many embeddings as the model takes.
    """

    kind: Literal["floor-resize"] = field(default="floor-resize", init=False)


@dataclass(frozen=True)
class OwnSizeGridTiling(AreaTiling):
    """Resize the image to one tile of nearly its own size, and a large one to a grid of squares (LFM2-VL).

    The grid has the nearest aspect ratio. It is followed by the tile of the whole image, the overview.
    """

    tile_side: int
    """Side in pixels of a tile of the grid; a multiple of `factor`."""
    min_tiles: int
    """Minimum number of tiles in the grid."""
    max_tiles: int
    """Maximum number of tiles in the grid; 1: images are never split."""
    max_area_ratio: float
    """An image is split if its area is more than so many times `max_pixels`."""
    overview: bool
    """True: the grid is followed by the overview."""
    kind: Literal["own-size-grid"] = field(default="own-size-grid", init=False)

    def check(self) -> None:
        """Check the values."""
        super().check()
        require(
            self.tile_side > 0 and self.tile_side % self.factor == 0,
            "tile_side",
            self.tile_side,
            f"must be a positive multiple of factor {self.factor}",
        )
        require(self.min_tiles > 0, "min_tiles", self.min_tiles, "must be positive")
        require(
            self.max_tiles >= self.min_tiles,
            "max_tiles",
            self.max_tiles,
            f"must be at least min_tiles {self.min_tiles}",
        )
        require(self.max_area_ratio > 0, "max_area_ratio", self.max_area_ratio, "must be positive")


@dataclass(frozen=True)
class LongestEdgeTiling(OwnSizeTiling):
    """Resize the image to one tile of its own size, or of a smaller one (Pixtral, Mistral 3).

    An image with a longer side than `longest_edge` is shrunk, others keep their size. Then the sides are
    rounded up to multiples of `factor`.
    """

    longest_edge: int
    """Length in pixels that no side exceeds, before it is rounded up."""
    resample: Resample
    """Filter for resizing: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``."""
    kind: Literal["longest-edge"] = field(default="longest-edge", init=False)

    def check(self) -> None:
        """Check the values."""
        for name in ("factor", "longest_edge"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")


@dataclass(frozen=True)
class SliceTiling(OwnSizeTiling):
    """Resize the image to one tile, the overview, and cut a large image into slices, too (MiniCPM-V 4.6).

    The overview and each slice have about the area of a square of side `tile_side`, and keep nearly their
    aspect ratio. The slices of an image have one size. The overview comes first.
    """

    tile_side: int
    """Side in pixels of a square with the area of a tile."""
    max_tiles: int
    """Maximum number of slices; 1: images are never cut."""
    resample: Resample
    """Filter for resizing: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``."""
    kind: Literal["slices"] = field(default="slices", init=False)

    def check(self) -> None:
        """Check the values."""
        for name in ("factor", "tile_side", "max_tiles"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")


@dataclass(frozen=True)
class CanvasTiling(OwnSizeTiling):
    """Resize the image into one tile, a canvas of squares that the vision graph cuts (Llama 3.2 Vision).

    The image keeps its aspect ratio and stands at the top left; the rest of the canvas is black. A tile is
    uint8 ``[rows * factor, columns * factor, 3]`` with at most `max_tiles` squares of side `factor`.
    """

    max_tiles: int
    """Maximum number of squares in the canvas; 1: all canvases have one size."""
    resample: Resample
    """Filter for resizing: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``."""
    kind: Literal["canvas"] = field(default="canvas", init=False)

    def check(self) -> None:
        """Check the values."""
        for name in ("factor", "max_tiles"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")


Tiling: TypeAlias = (
    StretchTiling
    | GridTiling
    | CropTiling
    | FitTiling
    | AnyResolutionTiling
    | AspectGridTiling
    | CoveringGridTiling
    | ScaledGridTiling
    | PanAndScanTiling
    | SmartResizeTiling
    | FloorResizeTiling
    | OwnSizeGridTiling
    | LongestEdgeTiling
    | SliceTiling
    | CanvasTiling
)
"""How an RGB uint8 image is split into uint8 tiles."""


@dataclass(frozen=True)
class Normalization:
    """The normalization ``(pixel * rescale_factor - mean) / std``.

    The vision graph computes it, so the fields are for information only.
    """

    mean: tuple[float, float, float]
    """Mean for R, G and B."""
    std: tuple[float, float, float]
    """Standard deviation for R, G and B."""
    rescale_factor: float
    """Factor, usually 1/255."""


@dataclass(frozen=True)
class ImageSpec:
    """How an image is prepared for the vision graph."""

    tiling: Tiling
    """How it is split into tiles."""
    normalization: Normalization
    """How the vision graph normalizes the pixels of the tiles."""
    default_max_tokens: int | None = None
    """Limit of embeddings of an image whose caller sets no budget; null: no limit. For checkpoints that take
    images of any size, whose own limit is more than a context holds."""

    def check(self) -> None:
        """Check the values."""
        check_positive_or_null("default_max_tokens", self.default_max_tokens)

    @property
    def tile_size(self) -> tuple[int, int] | None:
        """Height and width of all tiles in pixels; None: tiles differ in size."""
        return None if isinstance(self.tiling, OwnSizeTiling) else self.tiling.tile_size

    @property
    def splits(self) -> bool:
        """True if an image can become several tiles."""
        return not isinstance(
            self.tiling,
            StretchTiling
            | CropTiling
            | FitTiling
            | SmartResizeTiling
            | FloorResizeTiling
            | LongestEdgeTiling
            | CanvasTiling,
        )


def check_square_grid(tiling: CoveringGridTiling | ScaledGridTiling) -> None:
    """Check the tiles of a grid of squares."""
    require(
        tiling.tile_size[0] == tiling.tile_size[1],
        "tile_size",
        tiling.tile_size,
        f"must be square for the {tiling.kind} strategy",
    )
    require(tiling.max_tiles > 0, "max_tiles", tiling.max_tiles, "must be positive")


def check_positive_or_null(name: str, value: int | None) -> None:
    """Check a length that may be missing."""
    require(value is None or value > 0, name, value, "must be positive or null")


def check_color(name: str, color: tuple[int, int, int]) -> None:
    """Check a color."""
    require(all(0 <= level <= 255 for level in color), name, color, "must be from 0 to 255")
