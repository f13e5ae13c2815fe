"""The vision part of Llama 3.2 Vision: a canvas becomes tiles of one size, which look at each other.

The arrangement of the tiles follows from the size of the canvas. The model always computes its largest number
of tiles. Missing ones are zeros after normalization, and tiles attend to them, as in transformers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import MllamaVisionModel, PretrainedConfig
from transformers.modeling_utils import AttentionInterface

from edgevlm.errors import ExportError

ATTENTION = "edgevlm tiles"
"""The name of our attention in transformers."""
TILES = 4
"""Tiles that a canvas has in all published checkpoints."""


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention of one layer, ``[n, rows, heads, size]``, computed for one tile at a time.

    The scores of all tiles together would take 2.6 GB in Llama 3.2 Vision.

    Args:
        module: the layer's attention.
        query, key, value: ``[n, heads, rows, size]``.
        attention_mask: ``[n, 1, rows, rows]``, added to the scores.
        scaling: factor of the scores.
        settings: what transformers passes beside that.
    """
    transposed = key.transpose(2, 3)
    parts = zip(query.chunk(TILES, 2), attention_mask.chunk(TILES, 2), strict=True)
    attended = [
        torch.softmax(torch.matmul(part * scaling, transposed) + mask, dim=-1) @ value
        for part, mask in parts
    ]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)


def rows_of_square(config: PretrainedConfig) -> int:
    """Return the rows of one tile: its patches and one more."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2 + 1)


class CanvasVision(nn.Module):
    """Tower and projector.

    Args:
        config: the configuration of the whole model.

    Raises:
        ExportError: the tower takes another number of tiles than `TILES`.
    """

    numbers: torch.Tensor

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        vision = copy.deepcopy(config.vision_config)
        if vision.max_num_tiles != TILES:
            raise ExportError(
                f"max_num_tiles of vision_config is {vision.max_num_tiles}; edgevlm exports towers of "
                f"{TILES} tiles"
            )
        self.side = int(vision.image_size)
        self.tower = MllamaVisionModel._from_config(vision)
        self.tower.set_attn_implementation(ATTENTION)
        self.connector = nn.Linear(vision.vision_output_dim, config.get_text_config().hidden_size)
        numbers = torch.zeros(TILES * TILES, dtype=torch.int64)
        for number, (rows, columns) in enumerate(vision.supported_aspect_ratios, 1):
            numbers[(rows - 1) * TILES + columns - 1] = number
        self.register_buffer("numbers", numbers, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, TILES * rows of a square, width]``.

        Args:
            pixels: normalized canvases, ``[n, 3, lines * side, columns * side]``, with at most `TILES`
                squares.
        """
        n, _, height, width = pixels.shape
        side = self.side
        lines, columns = height // side, width // side
        tiles = pixels.reshape(n, 3, lines, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        tiles = tiles.reshape(n, lines * columns, 3, side, side)
        order = torch.arange(TILES)
        there = order < lines * columns
        tiles = tiles.index_select(1, order.clamp(max=lines * columns - 1))
        tiles = tiles * there.to(tiles.dtype)[:, None, None, None]
        place = torch.arange(TILES * TILES) == (lines - 1) * TILES + columns - 1
        number = (self.numbers * place).sum().expand(n, 1)
        found = self.tower(
            pixel_values=tiles[:, None],
            aspect_ratio_ids=number,
            aspect_ratio_mask=there.to(torch.int64).expand(n, 1, TILES),
        ).last_hidden_state
        rows: torch.Tensor = self.connector(found).flatten(1, 3)
        return rows
