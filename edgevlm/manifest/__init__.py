"""The manifest: the contract between the exporter and the runtime, as frozen dataclasses.

Everything that a model family needs at run time is data here. The runtime never asks which family it runs.
Strategies are closed sets: dataclasses told apart by ``kind`` (`Tiling`, `Packing`), and names
(``DecoderSpec.attention``, ...). A new family uses one of them, or adds one that is implemented once, in the
module that owns the decision. A new strategy, or a new field with a default, needs no new version of the
format: an older edgevlm refuses such a bundle by the name of the field.

`Manifest.from_dict` refuses an unknown ``schema_version``, a missing or unknown field, and a value of the
wrong type or range. The `BundleError` names the field, such as ``manifest.image.tiling.tile_size``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import BundleError
from edgevlm.manifest.decoder import DecoderSpec, OnnxDecoderSpec
from edgevlm.manifest.files import FileEntry
from edgevlm.manifest.images import (
    AnyResolutionTiling,
    AreaTiling,
    AspectGridTiling,
    CanvasTiling,
    CoveringGridTiling,
    CropTiling,
    FitTiling,
    FloorResizeTiling,
    GridTiling,
    ImageSpec,
    LongestEdgeTiling,
    Normalization,
    OwnSizeGridTiling,
    OwnSizeTiling,
    PanAndScanTiling,
    Resample,
    ScaledGridTiling,
    SliceTiling,
    SmartResizeTiling,
    StretchTiling,
    Tiling,
)
from edgevlm.manifest.locations import (
    BoxTokenFormat,
    JsonFormat,
    ListFormat,
    LocationFormat,
    LocTokenFormat,
)
from edgevlm.manifest.parsing import parse, require
from edgevlm.manifest.prompt import PromptSpec, SpecialToken, ToolCallFormat
from edgevlm.manifest.reports import (
    AnswerDrift,
    AnswerReport,
    Drift,
    Golden,
    ParityReport,
    Source,
    Tasks,
    Usage,
)
from edgevlm.manifest.upgrade import upgrade, upgrade_usage
from edgevlm.manifest.video import VideoSpec
from edgevlm.manifest.vision import (
    CrossPacking,
    FramePacking,
    LinesPacking,
    Packing,
    TextInput,
    TiledPacking,
    UnpadPacking,
    VisionSpec,
)

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "AnswerDrift",
    "AnswerReport",
    "AnyResolutionTiling",
    "AreaTiling",
    "AspectGridTiling",
    "BoxTokenFormat",
    "CanvasTiling",
    "CoveringGridTiling",
    "CropTiling",
    "CrossPacking",
    "DecoderSpec",
    "Drift",
    "FileEntry",
    "FitTiling",
    "FloorResizeTiling",
    "FramePacking",
    "Golden",
    "GridTiling",
    "ImageSpec",
    "JsonFormat",
    "LinesPacking",
    "ListFormat",
    "LocTokenFormat",
    "LocationFormat",
    "LongestEdgeTiling",
    "Manifest",
    "Normalization",
    "OnnxDecoderSpec",
    "OwnSizeGridTiling",
    "OwnSizeTiling",
    "Packing",
    "PanAndScanTiling",
    "ParityReport",
    "PromptSpec",
    "Resample",
    "ScaledGridTiling",
    "SliceTiling",
    "SmartResizeTiling",
    "Source",
    "SpecialToken",
    "StretchTiling",
    "Tasks",
    "TextInput",
    "TiledPacking",
    "Tiling",
    "ToolCallFormat",
    "UnpadPacking",
    "Usage",
    "VideoSpec",
    "VisionSpec",
]

SCHEMA_VERSION = 2
"""Version of the format that this edgevlm writes; it reads version 1, too."""
MANIFEST_NAME = "manifest.json"
"""File name of the manifest in the bundle folder."""


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``: the files of a bundle and how to use them."""

    schema_version: int
    """Version of the format: 2."""
    name: str
    """Name of the model; not empty."""
    source: Source
    """Origin of the checkpoint."""
    image: ImageSpec
    """How images are split into tiles."""
    vision: VisionSpec
    """The vision graph."""
    prompt: PromptSpec
    """How messages become tokens."""
    decoder: DecoderSpec
    """The decoder."""
    parity: ParityReport | None
    """Comparison with the checkpoint; null: not measured."""
    golden: Golden | None
    """A stored answer of the checkpoint; null: none."""
    created_with: dict[str, str]
    """Versions of the packages that made the bundle, by package name."""
    usage: Usage | None = None
    """What the model was trained to see and to answer; null: not known, as in older bundles."""
    video: VideoSpec | None = None
    """How videos become tiles; null: the model takes no video, or the bundle is of an older edgevlm."""

    def check(self) -> None:
        """Check the values."""
        require(bool(self.name), "name", self.name, "must not be empty")
        require(
            self.vision.width == self.decoder.width,
            "vision.width",
            self.vision.width,
            f"must equal decoder.width {self.decoder.width}",
        )
        require(
            not isinstance(self.vision.packing, UnpadPacking)
            or isinstance(self.image.tiling, AnyResolutionTiling),
            "vision.packing",
            self.vision.packing.kind,
            'can be "unpad" only if image.tiling is "any-resolution"',
        )
        require(
            not isinstance(self.vision.packing, FramePacking)
            or isinstance(self.image.tiling, CoveringGridTiling | StretchTiling),
            "vision.packing",
            self.vision.packing.kind,
            'can be "frame" only if image.tiling is "covering-grid" or "stretch"',
        )
        require(
            isinstance(self.vision.packing, TiledPacking) or self.decoder.attention != "images",
            "decoder.attention",
            self.decoder.attention,
            'can be "images" only with the packing "tiles"',
        )
        require(
            (self.image.tile_size is None) == (self.vision.tokens_per_tile is None),
            "vision.tokens_per_tile",
            self.vision.tokens_per_tile,
            f"must be {'null' if self.image.tile_size is None else 'a number'} for the tiles of "
            f'"{self.image.tiling.kind}"',
        )
        require(
            isinstance(self.vision.packing, CrossPacking) == (self.decoder.attention == "cross"),
            "vision.packing",
            self.vision.packing.kind,
            'must be "cross" if decoder.attention is "cross", and only then',
        )
        require(
            self.decoder.attention != "cross"
            or any(token.text == self.prompt.image_token for token in self.prompt.special_tokens),
            "prompt.image_token",
            self.prompt.image_token,
            'must be one of special_tokens if decoder.attention is "cross", which decodes it',
        )
        require(
            isinstance(self.vision.packing, CrossPacking)
            == isinstance(self.image.tiling, CanvasTiling),
            "vision.packing",
            self.vision.packing.kind,
            'must be "cross" if image.tiling is "canvas", and only then',
        )
        if self.vision.fixed_by_export:
            require(
                isinstance(self.image.tiling, StretchTiling),
                "image.tiling",
                self.image.tiling.kind,
                'must be "stretch" if vision.tokens_per_tile and vision.pixels_per_token are numbers',
            )
            tile_size = self.image.tile_size
            assert tile_size is not None and self.vision.pixels_per_token is not None
            require(
                all(side % self.vision.pixels_per_token == 0 for side in tile_size)
                and math.prod(self.vision.grid_size(tile_size)) == self.vision.tokens_per_tile,
                "vision.tokens_per_tile",
                self.vision.tokens_per_tile,
                f"must be the number of squares of {self.vision.pixels_per_token} x "
                f"{self.vision.pixels_per_token} pixels in a tile of {tile_size[1]} x {tile_size[0]}",
            )
        require(
            self.vision.tokens_per_tile is not None or self.decoder.attention != "images",
            "decoder.attention",
            self.decoder.attention,
            'can be "images" only with tiles of one size',
        )
        require(
            self.decoder.positions == "sequential"
            or (
                self.vision.pixels_per_token is not None
                and isinstance(self.vision.packing, TiledPacking)
            ),
            "decoder.positions",
            self.decoder.positions,
            'can be "grid" only with a number for vision.pixels_per_token and the packing "tiles"',
        )
        if self.video is not None:
            self._check_video(self.video)
        names = [entry.name for entry in self.files()]
        require(len(set(names)) == len(names), "files", names, "must not name one file twice")

    def _check_video(self, video: VideoSpec) -> None:
        """Check what the parts say about videos."""
        require(
            self.prompt.video_template is not None,
            "prompt.video_template",
            None,
            "must be a text for a model that takes videos",
        )
        size = video.tiling.tile_size if isinstance(video.tiling, StretchTiling) else None
        require(
            size == self.image.tile_size,
            "video.tiling",
            video.tiling.kind,
            "must make tiles of the size of image.tiling",
        )
        require(
            video.spans == "tiles" or self.decoder.positions == "grid",
            "video.spans",
            video.spans,
            'can be "video" only if decoder.positions is "grid"',
        )

    def files(self) -> list[FileEntry]:
        """Return all files of the bundle, vision graphs first."""
        return [*self.vision.entries(), *self.decoder.entries()]

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and check a manifest.

        Raises:
            BundleError: the text is not JSON, ``schema_version`` is unknown, or a field is missing, unknown
                or wrong.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"manifest is not JSON ({error}); the bundle is damaged, export it again"
            ) from error
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: object) -> Manifest:
        """Create a manifest from parsed JSON, and check it.

        Raises:
            BundleError: as `from_json`.
        """
        if not isinstance(data, dict):
            raise BundleError(f"manifest: must be an object, is {type(data).__name__}")
        if "schema_version" not in data:
            raise BundleError("manifest.schema_version: missing")
        if type(data["schema_version"]) is int and data["schema_version"] == 1:
            data = upgrade(data)
        if data["schema_version"] != SCHEMA_VERSION:
            raise BundleError(
                f"manifest.schema_version: {data['schema_version']!r} is unknown, this edgevlm reads 1 and "
                f"{SCHEMA_VERSION}; install the edgevlm that made the bundle, or export it again"
            )
        if "usage" in data:
            data = {**data, "usage": upgrade_usage(data["usage"])}
        manifest: Manifest = parse(cls, data, "manifest")
        return manifest

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check ``manifest.json`` of a bundle folder.

        Raises:
            BundleError: the file cannot be read, or as `from_json`.
        """
        path = folder / MANIFEST_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{folder} is not a bundle: cannot read {path} ({error})") from error
        return cls.from_json(text)
