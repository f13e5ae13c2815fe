"""The tower of Gemma 4 as a module for tiles of any size.

transformers' tower reads rows of patches, with the place of each patch beside them, and rows that are filled
up. This one reads tiles ``[n, 3, height, width]`` and computes places from their shape, in the graph. It
consists of transformers' own parts, so parameters have the names of a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.gemma4.modeling_gemma4 import apply_multidimensional_rope

from edgevlm.export.native_towers import attend_to_all, list_places


class Gemma4Tower(nn.Module):
    """Gemma 4's tower, the means of blocks of patches, and a connector.

    A patch has learned positions, one of its line and one of its column, and rotary positions in two
    dimensions. It attends to all of its tile.

    Args:
        tower: the tower of transformers.
        connector: from means ``[n, rows, width]`` to embeddings.
    """

    def __init__(self, tower: PreTrainedModel, connector: nn.Module) -> None:
        super().__init__()
        self.tower: Any = tower
        self.connector: Any = connector
        # transformers multiplies the means by the root of the width, which the norm of the connector undoes
        # but for its epsilon. In float16 the products could be too large.
        norm: Any = self.connector.embedding_pre_projection_norm
        norm.eps /= tower.config.hidden_size
        self.patch = int(tower.config.patch_size)
        self.side = int(tower.config.pooling_kernel_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for pixels ``[n, 3, height, width]`` from 0 to 1.

        Height and width are multiples of the side of a block.
        """
        n, channels, height, width = pixels.shape
        patch = self.patch
        lines, columns = height // patch, width // patch
        # Positions come before the first product. So a conversion to float16 leaves them in float32.
        places = list_places(lines, columns).flip(-1)[None]
        cosines, sines = self.tower.encoder.rotary_emb(pixels, places)
        across, down = self.tower.patch_embedder.position_embedding_table
        positions = down[:lines, None] + across[None, :columns]
        grid = pixels.reshape(n, channels, lines, patch, columns, patch)
        patches = grid.permute(0, 2, 4, 3, 5, 1).reshape(n, lines * columns, -1)
        hidden = self.tower.patch_embedder.input_proj(2 * (patches - 0.5))
        hidden = hidden + positions.reshape(1, lines * columns, -1)
        for layer in self.tower.encoder.layers:
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            query, key, value = (
                norm(project(linear, normed).reshape(n, lines * columns, -1, attention.head_dim))
                for linear, norm in (
                    (attention.q_proj, attention.q_norm),
                    (attention.k_proj, attention.k_norm),
                    (attention.v_proj, attention.v_norm),
                )
            )
            query, key = (
                apply_multidimensional_rope(part, cosines, sines, places) for part in (query, key)
            )
            attended = attend_to_all(query * attention.scaling, key, value)
            attended = project(attention.o_proj, attended)
            hidden = hidden + layer.post_attention_layernorm(attended)
            mlp, normed = layer.mlp, layer.pre_feedforward_layernorm(hidden)
            inner = mlp.act_fn(project(mlp.gate_proj, normed)) * project(mlp.up_proj, normed)
            fed = project(mlp.down_proj, inner)
            hidden = hidden + layer.post_feedforward_layernorm(fed)
        return self.connect(hidden, lines // self.side, columns // self.side)

    def connect(self, hidden: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return the embedding of the mean of each block of patches."""
        n, _, width = hidden.shape
        side = self.side
        means = hidden.reshape(n, rows, side, columns, side, width).mean((2, 4))
        embeddings: torch.Tensor = self.connector(means.reshape(n, rows * columns, width))
        return embeddings


def project(part: Any, values: torch.Tensor) -> torch.Tensor:
    """Return a linear layer's result, with its inputs and outputs kept within the bounds of the checkpoint.

    The bounds are vectors here. onnxscript 0.7.2 joins Max and Min with scalars to a Clip and names the
    scalars after the input. So it loses those of all but one Clip of the same input, as of queries and keys.

    Args:
        part: transformers' ``Gemma4ClippableLinear``.
        values: ``[n, patches, width]``.
    """
    projected: torch.Tensor = part.linear(clip(values, part, "input"))
    return clip(projected, part, "output")


def clip(values: torch.Tensor, part: Any, side: str) -> torch.Tensor:
    """Return values within the bounds of one side of a linear layer, ``input`` or ``output``."""
    if not part.use_clipped_linears:
        return values
    low, high = (getattr(part, f"{side}_{end}").expand(values.shape[-1]) for end in ("min", "max"))
    return torch.clamp(values, low, high)
