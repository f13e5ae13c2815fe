"""The SigLIP 2 of LFM2-VL as a module for tiles of any size (NaFlex)."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


class Siglip2Tower(nn.Module):
    """A SigLIP 2 that stretches its table of positions to the grid of patches, and a connector.

    transformers' tower reads rows of patches with a mask. This one reads tiles, whose shape it knows.

    Args:
        tower: the tower of transformers.
        connector: from features ``[1, lines, columns, width]`` to embeddings of blocks.
    """

    def __init__(self, tower: PreTrainedModel, connector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.connector = connector
        self.patch = int(tower.config.patch_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for normalized pixels ``[n, 3, height, width]``."""
        n, channels, height, width = pixels.shape
        patch = self.patch
        lines, columns = height // patch, width // patch
        positions = self.stretch(lines, columns)
        grid = pixels.reshape(n, channels, lines, patch, columns, patch)
        patches = grid.permute(0, 2, 4, 3, 5, 1).reshape(n, lines * columns, -1)
        hidden = self.tower.embeddings.patch_embedding(patches) + positions
        hidden = self.tower.encoder(inputs_embeds=hidden).last_hidden_state
        hidden = self.tower.post_layernorm(hidden)
        rows = self.connector(hidden.reshape(n, lines, columns, hidden.shape[-1]))
        embeddings: torch.Tensor = rows.reshape(n, -1, rows.shape[-1])
        return embeddings

    def stretch(self, lines: int, columns: int) -> torch.Tensor:
        """Return the table of positions for a grid, ``[lines * columns, width]``.

        The interpolation is linear in each direction, so it is a product with a matrix on each side.
        """
        embeddings = self.tower.embeddings
        side = int(embeddings.position_embedding_size)
        table = embeddings.position_embedding.weight
        down, across = interpolation(side, lines), interpolation(side, columns)
        stretched = (down @ table.reshape(side, -1)).reshape(lines, side, table.shape[-1])
        return (across @ stretched).reshape(lines * columns, table.shape[-1])


def interpolation(old: int, new: int) -> torch.Tensor:
    """Return the weights of PyTorch's bilinear interpolation with antialiasing, ``[new, old]``."""
    scale = old / torch.scalar_tensor(new, dtype=torch.float32)
    support = scale.clamp(min=1)
    centers = (torch.arange(new, dtype=torch.float32) + 0.5) * scale
    places = torch.arange(old, dtype=torch.float32) + 0.5
    weights = (1 - (places - centers[:, None]).abs() / support).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)
