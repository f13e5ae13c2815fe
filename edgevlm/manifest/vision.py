"""The vision graph of a bundle, and how its embeddings stand in the prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from edgevlm.manifest.files import FileEntry
from edgevlm.manifest.parsing import require


@dataclass(frozen=True)
class TiledPacking:
    """Each tile stands in the prompt by itself, with all its embeddings in their order."""

    kind: Literal["tiles"] = field(default="tiles", init=False)
    learned_rows: ClassVar = 0


@dataclass(frozen=True)
class UnpadPacking:
    """All tiles of an image stand in the prompt as one span: the first tile, then the grid of the others.

    The grid is read line by line, without the embeddings of padding. Each line ends with the learned row, the
    "newline" (``pack_image_features`` of LLaVA-NeXT and LLaVA-OneVision).
    """

    kind: Literal["unpad"] = field(default="unpad", init=False)
    learned_rows: ClassVar = 1
    max_tiles: int | None = None
    """A grid with more embeddings than this number of tiles has is shrunk to about as many, by bilinear
    interpolation; null: never (LLaVA-NeXT)."""

    def check(self) -> None:
        """Check the values."""
        require(
            self.max_tiles is None or self.max_tiles > 0,
            "max_tiles",
            self.max_tiles,
            "must be positive or null",
        )


@dataclass(frozen=True)
class LinesPacking:
    """Each line of the embeddings of a tile stands in the prompt by itself (Pixtral, Mistral 3).

    The image template writes what stands between two lines.
    """

    kind: Literal["lines"] = field(default="lines", init=False)
    learned_rows: ClassVar = 0


@dataclass(frozen=True)
class FramePacking:
    """All tiles of an image stand in the prompt as one span, with learned rows beside each (Ovis2).

    The order is: the row "start", the overview, the row "grid", the tiles of the grid, the row "end". The row
    "column" stands between two tiles of a line, the row "line" between two lines. The vision graph appends
    the five rows in the order start, grid, column, line, end.
    """

    kind: Literal["frame"] = field(default="frame", init=False)
    learned_rows: ClassVar = 5


@dataclass(frozen=True)
class CrossPacking:
    """An image takes one entry of the prompt, the image token. Cross-attention looks at the rows of its tile.

    The tile is a grid of squares of ``pixels_per_token`` pixels. The first rows are those of its squares, one
    square after the other; rows behind them are padding (Llama 3.2 Vision).
    """

    rows_per_square: int
    """Rows of one square."""
    kind: Literal["cross"] = field(default="cross", init=False)
    learned_rows: ClassVar = 0

    def check(self) -> None:
        """Check the values."""
        require(
            self.rows_per_square > 0, "rows_per_square", self.rows_per_square, "must be positive"
        )


Packing: TypeAlias = TiledPacking | UnpadPacking | LinesPacking | FramePacking | CrossPacking
"""Which embeddings of an image's tiles stand in the prompt, in which order: `edgevlm.inputs.packing`.

``learned_rows`` of each is the number of learned rows that it needs."""


@dataclass(frozen=True)
class TextInput:
    """A second input of the vision graph: the question, as int64 tokens ``[1, n]`` (InstructBLIP)."""

    input_name: str
    """Name of the graph's input."""
    tokenizer: FileEntry
    """A ``tokenizer.json`` of Hugging Face's tokenizers, which also adds the tokens around a text."""
    max_tokens: int
    """Longest question in tokens, with those around it; positive."""

    def check(self) -> None:
        """Check the values."""
        require(self.max_tokens > 0, "max_tokens", self.max_tokens, "must be positive")


@dataclass(frozen=True)
class VisionSpec:
    """The vision graph, from uint8 tiles ``[n, height, width, 3]`` to float32 ``[n, rows, width]``.

    The rows of a tile are its embeddings and then the learned rows.
    """

    input_name: str
    """Name of the graph's input for tiles."""
    output_name: str
    """Name of the graph's output."""
    tokens_per_tile: int | None
    """Number of embeddings of one tile; positive. Null: it follows from the size of the tile."""
    learned_rows: int
    """Number of further rows that the graph appends to each tile: learned embeddings that the packing needs,
    such as the one that ends a line. 0 for most families."""
    width: int
    """Number of values in one embedding; equal to the width of the decoder."""
    packing: Packing
    """Which embeddings of the tiles of an image stand in the prompt."""
    files: dict[str, FileEntry]
    """The ONNX file of each precision (``fp32``, ``fp16``, ``int8``, ``int4``); at least one. Earlier
    versions also wrote ``int8-static``, with fixed scales of activations."""
    pixels_per_token: int | None = None
    """Side in pixels of the square that one embedding stands for. A tile then has
    ``height // pixels_per_token`` lines of ``width // pixels_per_token`` embeddings. Null: the embeddings of
    a tile have no such lines, or nothing needs them."""
    weights: dict[str, FileEntry] = field(default_factory=dict)
    """The file that the graph of a precision reads its weights from, as external data under this name, if one
    ONNX file cannot hold them (2 GB)."""
    text_input: TextInput | None = None
    """How the graph gets the question; null: embeddings do not depend on it."""
    calibration: str | None = None
    """Images that the quantized files were fitted to, in words; null: no such file, or not known."""

    @property
    def fixed_by_export(self) -> bool:
        """True if the checkpoint takes images of any size, and the export fixed one (``--image-size``).

        The input of the vision graph then is uint8 ``[1, height, width, 3]``.
        """
        return self.tokens_per_tile is not None and self.pixels_per_token is not None

    def grid_size(self, tile_size: tuple[int, int]) -> tuple[int, int]:
        """Return the lines and columns of the embeddings of a tile; needs `pixels_per_token`.

        Args:
            tile_size: height and width of the tile in pixels.
        """
        assert self.pixels_per_token is not None
        height, width = tile_size
        return height // self.pixels_per_token, width // self.pixels_per_token

    def check(self) -> None:
        """Check the values."""
        for name in ("tokens_per_tile", "pixels_per_token"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "must be positive or null")
        require(
            self.tokens_per_tile is not None or self.pixels_per_token is not None,
            "pixels_per_token",
            self.pixels_per_token,
            "must be a number if tokens_per_tile is null",
        )
        require(self.learned_rows >= 0, "learned_rows", self.learned_rows, "must not be negative")
        require(self.width > 0, "width", self.width, "must be positive")
        if isinstance(self.packing, UnpadPacking):
            require(
                self.tokens_per_tile is not None
                and math.isqrt(self.tokens_per_tile) ** 2 == self.tokens_per_tile,
                "tokens_per_tile",
                self.tokens_per_tile,
                "must be a square number for the unpad packing",
            )
        needed = self.packing.learned_rows
        require(
            not needed or self.learned_rows == needed,
            "learned_rows",
            self.learned_rows,
            f"must be {needed} for the {self.packing.kind} packing",
        )
        require(
            not isinstance(self.packing, LinesPacking | CrossPacking)
            or self.pixels_per_token is not None,
            "pixels_per_token",
            self.pixels_per_token,
            f"must be a number for the {self.packing.kind} packing",
        )
        require(bool(self.files), "files", self.files, "must not be empty")
        require(
            self.weights.keys() <= self.files.keys(),
            "weights",
            sorted(self.weights),
            f"must have precisions of files, {sorted(self.files)}",
        )

    @property
    def weight_files(self) -> dict[str, FileEntry]:
        """The file with the weights of each precision: the graph itself, or the one beside it."""
        return self.files | self.weights

    def needed(self, chosen: FileEntry) -> list[FileEntry]:
        """Return all files that one of `files` needs, itself first."""
        beside = [self.weights[name] for name in self.weights if self.files[name] == chosen]
        return [chosen, *beside, *self._tokenizers()]

    def entries(self) -> list[FileEntry]:
        """Return all files."""
        return [*self.files.values(), *self.weights.values(), *self._tokenizers()]

    def _tokenizers(self) -> list[FileEntry]:
        return [] if self.text_input is None else [self.text_input.tokenizer]
