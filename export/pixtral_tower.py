"""The towers of Pixtral and Mistral 3 as modules for tiles of any size.

transformers' tower reads images of several sizes as one row of patches, with the sizes beside them. These
read tiles ``[n, 3, height, width]`` of one size and compute positions from their shape, in the graph. They
consist of transformers' own parts, so parameters have the names of a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PixtralVisionModel, PretrainedConfig
from transformers.models.pixtral.modeling_pixtral import apply_rotary_pos_emb

from edgevlm.export.native_towers import attend_to_all, list_places


class PixtralTower(nn.Module):
    """Pixtral's tower, hidden states of some of its layers side by side, and a connector.

    Patches have rotary positions in two dimensions, and each attends to all of its tile.

    Args:
        config: the configuration of the whole model.
        connector: from features ``[n, patches, layers * width]`` to embeddings.
    """

    def __init__(self, config: PretrainedConfig, connector: nn.Module) -> None:
        super().__init__()
        chosen: Any = config.vision_feature_layer
        self.layers = [chosen] if isinstance(chosen, int) else list(chosen)
        self.tower: Any = PixtralVisionModel._from_config(config.vision_config)
        self.connector: Any = connector

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for normalized pixels ``[n, 3, height, width]``.

        Height and width are multiples of the side of a patch.
        """
        n = pixels.shape[0]
        rows, columns = (length // self.tower.patch_size for length in pixels.shape[2:])
        # Positions come before the first product. So a conversion to float16 leaves them in float32.
        places = list_places(rows, columns)
        cosines, sines = self.tower.patch_positional_embedding(pixels, places)
        hidden = self.tower.ln_pre(self.tower.patch_conv(pixels).flatten(2).transpose(1, 2))
        states = [hidden]
        for layer in self.tower.transformer.layers:
            attention, normed = layer.attention, layer.attention_norm(hidden)
            query, key, value = (
                project(normed).reshape(n, rows * columns, attention.num_heads, attention.head_dim)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = apply_rotary_pos_emb(query, key, cosines, sines)
            attended = attend_to_all(query * attention.scaling, key, value)
            hidden = hidden + attention.o_proj(attended)
            hidden = hidden + layer.feed_forward(layer.ffn_norm(hidden))
            states.append(hidden)
        features = torch.cat([states[layer] for layer in self.layers], dim=-1)
        return self.connect(features, rows, columns)

    def connect(self, features: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return the embeddings of features ``[n, rows * columns, layers * width]``: here one of each."""
        embeddings: torch.Tensor = self.connector(features)
        return embeddings


class MergingPixtralTower(PixtralTower):
    """The tower of Mistral 3, whose connector merges blocks of patches."""

    def connect(self, features: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return the embeddings of features ``[n, rows * columns, width]``, one of each block."""
        connector, merger = self.connector, self.connector.patch_merger
        side = merger.spatial_merge_size
        n, _, width = features.shape
        grid = connector.norm(features).reshape(n, rows // side, side, columns // side, side, width)
        # The values of a block stand channel by channel, as `unfold` writes them.
        blocks = grid.permute(0, 1, 3, 5, 2, 4)
        blocks = blocks.reshape(n, (rows // side) * (columns // side), width * side * side)
        merged = connector.linear_1(merger.merging_layer(blocks))
        embeddings: torch.Tensor = connector.linear_2(connector.act(merged))
        return embeddings
