"""The tower of MiniCPM-V 4.6 as a module for tiles of any size: a SigLIP with a merger between two layers.

transformers' tower reads the patches of all tiles as one row, with the size of each tile. This one reads
tiles ``[n, 3, height, width]`` of one size and computes positions from their shape, in the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import (
    MiniCPMV4_6Merger,
    MiniCPMV4_6VisionModel,
)

from edgevlm.errors import ExportError
from edgevlm.export.native_towers import attend_to_all

SIDE = 2
"""Patches on a side of a block that becomes one, in each of both mergers."""


class MiniCpmVTower(nn.Module):
    """The tower and its connector, the second merger.

    Patches stand in the order of blocks that become one embedding, and inside of these in the order of the
    blocks of the first merger. So each merger reads neighbors in a row. The other layers do not depend on the
    order of patches.

    Args:
        config: the configuration of the whole model.

    Raises:
        ExportError: the mergers have other settings than those of published models.
    """

    boundaries: torch.Tensor

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        check_mergers(config)
        self.tower: Any = MiniCPMV4_6VisionModel._from_config(config.vision_config)
        self.connector: Any = MiniCPMV4_6Merger(config)
        self.inserted = None if config.downsample_mode == "4x" else int(config.insert_layer_id)
        self.side = side_of_block(config)
        table = self.tower.embeddings.num_patches_per_side
        # The numbers of the reference, in float32, since a coordinate may be equal to one of them.
        self.register_buffer(
            "boundaries", torch.arange(1 / table, 1.0, 1 / table), persistent=False
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for normalized pixels ``[n, 3, height, width]``.

        Height and width are multiples of the side of a block that becomes one embedding.
        """
        embeddings = self.tower.embeddings
        n = pixels.shape[0]
        lines, columns = (length // embeddings.patch_size for length in pixels.shape[2:])
        # Positions come before the first product. So a conversion to float16 leaves them in float32.
        places = self.places(lines, columns)
        hidden = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        hidden = self.order(hidden + embeddings.position_embedding(places), lines, columns)
        for index, layer in enumerate(self.tower.encoder.layers):
            hidden = hidden + attend(layer.self_attn, layer.layer_norm1(hidden))
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
            if index == self.inserted:
                hidden = self.insert(hidden)
        hidden = self.tower.post_layernorm(hidden)
        blocks = hidden.reshape(-1, SIDE * SIDE * hidden.shape[-1])
        rows = (lines // self.side) * (columns // self.side)
        merged: torch.Tensor = self.connector.mlp[0](blocks).reshape(n, rows, -1)
        return merged

    def places(self, lines: int, columns: int) -> torch.Tensor:
        """Return the row of the table of positions for each patch, line by line: int64 ``[patches]``.

        The table is stretched to the grid of patches; each patch takes the nearest row towards the beginning.
        """
        down, across = (
            (coordinates(length)[:, None] >= self.boundaries).sum(1) for length in (lines, columns)
        )
        table = self.tower.embeddings.num_patches_per_side
        places: torch.Tensor = down[:, None] * table + across
        return places.reshape(-1)

    def order(self, hidden: torch.Tensor, lines: int, columns: int) -> torch.Tensor:
        """Sort patches ``[n, patches, width]``, which stand line by line, block by block."""
        n, patches, width = hidden.shape
        if self.inserted is None:
            grid = hidden.reshape(n, lines // SIDE, SIDE, columns // SIDE, SIDE, width)
            return grid.permute(0, 1, 3, 2, 4, 5).reshape(n, patches, width)
        side = SIDE * SIDE
        grid = hidden.reshape(n, lines // side, SIDE, SIDE, columns // side, SIDE, SIDE, width)
        return grid.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(n, patches, width)

    def insert(self, hidden: torch.Tensor) -> torch.Tensor:
        """Merge blocks of patches ``[n, patches, width]`` by the merger between two layers.

        The patches of a block attend to each other first.
        """
        merger = self.tower.vit_merger
        n, patches, width = hidden.shape
        windows = hidden.reshape(-1, SIDE * SIDE, width)
        windows = windows + attend(merger.self_attn, merger.layer_norm1(windows))
        joined = merger.pre_norm(windows.reshape(n, patches // SIDE**2, SIDE * SIDE * width))
        means = windows.mean(1).reshape(n, patches // SIDE**2, width)
        merged: torch.Tensor = merger.linear_2(merger.act(merger.linear_1(joined))) + means
        return merged


def attend(attention: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return the attention of ``[n, patches, width]``, in which each patch attends to all of its tile."""
    n, patches, _ = hidden.shape
    query, key, value = (
        project(hidden).reshape(n, patches, attention.num_heads, attention.head_dim)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    attended: torch.Tensor = attention.out_proj(
        attend_to_all(query * attention.scaling, key, value)
    )
    return attended


def coordinates(length: int) -> torch.Tensor:
    """Return the places of patches along a side from 0 to 1, float32 ``[length]``."""
    numbers = torch.arange(length, dtype=torch.float32)
    return numbers / torch.scalar_tensor(length, dtype=torch.float32)


def side_of_block(config: PretrainedConfig) -> int:
    """Return how many patches are on a side of a block that becomes one embedding."""
    return SIDE if config.downsample_mode == "4x" else SIDE * SIDE


def check_mergers(config: PretrainedConfig) -> None:
    """Check the settings of both mergers.

    Raises:
        ExportError: they are not those of published models.
    """
    layers = config.vision_config.num_hidden_layers
    settings = {
        "downsample_mode": (config.downsample_mode, ("4x", "16x")),
        "insert_layer_id": (config.insert_layer_id, range(layers)),
        "window_kernel_size": (tuple(config.vision_config.window_kernel_size), ((SIDE, SIDE),)),
        "merge_kernel_size": (tuple(config.merge_kernel_size), ((SIDE, SIDE),)),
        "merger_times": (config.merger_times, (1,)),
    }
    for name, (value, known) in settings.items():
        if value not in known:
            raise ExportError(
                f"{name} in config.json is {value!r}, edgevlm exports MiniCPM-V with "
                f"{' or '.join(map(repr, known))}"
            )
