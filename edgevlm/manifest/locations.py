"""How a model writes boxes and points: one dataclass for each format, with the settings of the checkpoint.

`edgevlm.locations` has the parser of each. A manifest names the format in the field ``kind``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from edgevlm.manifest.parsing import require


@dataclass(frozen=True)
class ListFormat:
    """Four numbers in brackets, ``[left, top, right, bottom]``, after the label (edgevlm-nano).

    The label is the text before the box in the same line.
    """

    scale: float
    """Value of the right or bottom edge of the image: 100 for percent, 1 for fractions."""
    kind: Literal["list"] = field(default="list", init=False)

    def check(self) -> None:
        """Check the values."""
        require(self.scale > 0, "scale", self.scale, "must be positive")


@dataclass(frozen=True)
class LocTokenFormat:
    """Four tokens for top, left, bottom and right, before the label (PaliGemma).

    ``<loc0114><loc0206><loc0835><loc1001> cat ; <loc0310>...``: a token is the index of a bin, 0 to
    `bins` - 1. Source: ai.google.dev/gemma/docs/paligemma, and the parser of the authors' demonstration,
    huggingface.co/spaces/big-vision/paligemma.
    """

    bins: int
    """Number of bins along a side of the image."""
    kind: Literal["loc-tokens"] = field(default="loc-tokens", init=False)

    def check(self) -> None:
        """Check the values."""
        require(0 < self.bins <= 10_000, "bins", self.bins, "must be from 1 to 10000")


@dataclass(frozen=True)
class BoxTokenFormat:
    """Two corners between special tokens, after the label between two others (Qwen2-VL).

    ``<|object_ref_start|>cat<|object_ref_end|><|box_start|>(206,114),(835,902)<|box_end|>``. Several boxes
    may follow one label. Source: the Qwen2-VL report, arxiv.org/abs/2409.12191, data format.
    """

    scale: float
    """Value of the right or bottom edge of the image."""
    kind: Literal["box-tokens"] = field(default="box-tokens", init=False)

    def check(self) -> None:
        """Check the values."""
        require(self.scale > 0, "scale", self.scale, "must be positive")


@dataclass(frozen=True)
class JsonFormat:
    """JSON objects, one for each thing, whatever stands around them (Qwen2.5-VL, Qwen3-VL, Moondream).

    - Qwen2.5-VL: ``{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}`` and ``{"point_2d": [x, y], "label": ...}``
      in pixels of the resized image. Qwen3-VL: the same, from 0 to 1000. Source:
      github.com/QwenLM/Qwen3-VL, the notebooks ``spatial_understanding`` and ``2d_grounding`` in its folder
      ``cookbooks``, and the authors in its discussion 1427.
    - Moondream: ``{"x_min": 0.2, "y_min": 0.1, "x_max": 0.8, "y_max": 0.9}`` and ``{"x": 0.5, "y": 0.4}`` in
      fractions. Source: docs.moondream.ai, the skills ``detect`` and ``point``.
    """

    box_keys: tuple[str, ...]
    """Key of a list of left, top, right and bottom; or their four keys."""
    point_keys: tuple[str, ...]
    """Key of a list of x and y; or their two keys; empty: the model writes no points."""
    label_key: str | None
    """Key of the label; null: objects have none."""
    scale: float | None
    """Value of the right or bottom edge of the image; null: coordinates are pixels of the image as it was
    resized for the model."""
    kind: Literal["json"] = field(default="json", init=False)

    def check(self) -> None:
        """Check the values."""
        require(len(self.box_keys) in (1, 4), "box_keys", self.box_keys, "must be one key or four")
        require(
            len(self.point_keys) in (0, 1, 2),
            "point_keys",
            self.point_keys,
            "must be no key, one or two",
        )
        require(
            self.scale is None or self.scale > 0, "scale", self.scale, "must be positive or null"
        )


LocationFormat: TypeAlias = ListFormat | LocTokenFormat | BoxTokenFormat | JsonFormat
"""How boxes and points are written in an answer."""
