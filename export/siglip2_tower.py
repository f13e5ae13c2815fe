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
        embeddings = self.tower.embeddings
        positions = stretch_table(
            embeddings.position_embedding.weight,
            int(embeddings.position_embedding_size),
            (lines, columns),
            antialias=True,
        )
        grid = pixels.reshape(n, channels, lines, patch, columns, patch)
        patches = grid.permute(0, 2, 4, 3, 5, 1).reshape(n, lines * columns, -1)
        hidden = embeddings.patch_embedding(patches) + positions
        hidden = self.tower.encoder(inputs_embeds=hidden).last_hidden_state
        hidden = self.tower.post_layernorm(hidden)
        rows = self.connector(hidden.reshape(n, lines, columns, hidden.shape[-1]))
        joined: torch.Tensor = rows.reshape(n, -1, rows.shape[-1])
        return joined


def stretch_table(
    table: torch.Tensor, side: int, grid: tuple[int, int], *, antialias: bool
) -> torch.Tensor:
    """Return a table of positions, stretched to the lines and columns of a grid.

    The interpolation is linear in each direction, so it is a product with a matrix on each side.

    Args:
        table: ``[side * side, width]``, line by line.
        side: lines and columns of the table.
        grid: lines and columns to which it is stretched.
        antialias: widen the filter where the table is shrunk.

    Returns:
        ``[lines * columns, width]``.
    """
    down, across = (interpolation(side, length, antialias=antialias) for length in grid)
    width = table.shape[-1]
    stretched = (down @ table.reshape(side, -1)).reshape(grid[0], side, width)
    return (across @ stretched).reshape(grid[0] * grid[1], width)


def interpolation(old: int, new: int, *, antialias: bool) -> torch.Tensor:
    """Return the weights of PyTorch's bilinear interpolation along a side, ``[new, old]``.

    Args:
        antialias: as of `stretch_table`. Without it, positions beyond the centers of the outer values count
            as theirs.
    """
    scale = old / torch.scalar_tensor(new, dtype=torch.float32)
    centers = (torch.arange(new, dtype=torch.float32) + 0.5) * scale - 0.5
    places = torch.arange(old, dtype=torch.float32)
    if not antialias:
        centers = centers.clamp(0, old - 1)
        return (1 - (places - centers[:, None]).abs()).clamp(min=0)
    support = scale.clamp(min=1)
    weights = (1 - (places - centers[:, None]).abs() / support).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)
