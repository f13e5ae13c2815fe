"""The tower of PaddleOCR-VL as a module for tiles of any size: a SigLIP with rotary positions, too.

transformers' tower reads a row of patches with the size of each image. This one reads tiles
``[n, 3, height, width]`` and computes positions from their shape, in the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.paddleocr_vl.modeling_paddleocr_vl import apply_rotary_pos_emb_vision

from edgevlm.export.native_towers import attend_to_all, list_places
from edgevlm.export.siglip2_tower import stretch_table


class PaddleOcrTower(nn.Module):
    """The tower, and a connector that merges blocks of patches.

    Args:
        tower: the tower of transformers.
        connector: its projector.
    """

    def __init__(self, tower: nn.Module, connector: nn.Module) -> None:
        super().__init__()
        self.tower: Any = tower
        self.connector: Any = connector

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for normalized pixels ``[n, 3, height, width]``.

        Height and width are multiples of the side of a block.
        """
        embeddings, encoder = self.tower.embeddings, self.tower.encoder
        n = pixels.shape[0]
        rows, columns = (length // embeddings.patch_size for length in pixels.shape[2:])
        # Positions come before the first product. So a conversion to float16 leaves them in float32.
        places = list_places(rows, columns)
        cosines, sines = encoder.rotary_pos_emb(pixels, places)
        positions = stretch_table(
            embeddings.position_embedding.weight,
            embeddings.num_grid_per_side,
            (rows, columns),
            antialias=False,
        )
        hidden = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2) + positions
        for layer in encoder.layers:
            attention, normed = layer.self_attn, layer.layer_norm1(hidden)
            query, key, value = (
                project(normed).reshape(n, rows * columns, attention.num_heads, attention.head_dim)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = apply_rotary_pos_emb_vision(query, key, cosines, sines)
            attended = attend_to_all(query * attention.scaling, key, value)
            hidden = hidden + attention.out_proj(attended)
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        return self.connect(self.tower.post_layernorm(hidden), rows, columns)

    def connect(self, features: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return the embeddings of features ``[n, rows * columns, width]``, one of each block."""
        side, _ = self.connector.merge_kernel_size
        n, _, width = features.shape
        tall, wide = rows // side, columns // side
        grid = self.connector.pre_norm(features).reshape(n, tall, side, wide, side, width)
        blocks = grid.permute(0, 1, 3, 2, 4, 5).reshape(n, tall * wide, side * side * width)
        hidden = self.connector.act(self.connector.linear_1(blocks))
        embeddings: torch.Tensor = self.connector.linear_2(hidden)
        return embeddings
