"""Towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL as modules for tiles of any size.

transformers' towers read a row of patches, and the size of each image beside them. These read tiles
``[n, channels, height, width]`` and compute positions and windows from their shape, in the graph. They
consist of transformers' own parts, so parameters have the names of a checkpoint.

A tile has the 3 channels of an image, or the 6 of two frames of a video. To the tower, an image is a video of
two equal frames.

Patches stand in the order of transformers: line by line of blocks, and in a block its 2 x 2 patches. A block
becomes one embedding. So a merger reads four patches in a row, and a window consists of whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

HEADS_AT_ONCE = 2
"""Heads whose scores are in memory at once, 67 MB a head for 4096 patches. Fewer make a graph of more nodes,
which takes longer to export."""


@dataclass(frozen=True)
class Geometry:
    """What follows from the shape of the tiles."""

    n: int
    """Number of tiles."""
    rows: int
    """Lines of blocks."""
    columns: int
    """Blocks in a line."""
    places: torch.Tensor
    """Line and column of each patch, int64 ``[patches, 2]``."""
    cosines: torch.Tensor
    """Cosines of the rotary positions, float32 ``[patches, width of a head]``."""
    sines: torch.Tensor
    """Sines of the same angles."""


class NativeTower(nn.Module):
    """The tower of Qwen2-VL: rotary positions in two dimensions, and blocks of patches that are merged.

    Args:
        tower: the tower of transformers.
    """

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__()
        self.tower: Any = tower
        self.patch = int(tower.config.patch_size)
        self.merge = int(tower.config.spatial_merge_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for normalized pixels ``[n, 3 or 6, height, width]``.

        Height and width are multiples of the side of a block.
        """
        # Positions come before the first product. So a conversion to float16 leaves them in float32.
        geometry = self.measure(pixels)
        hidden = self.embed(pixels, geometry)
        merged = []
        for index, layer in enumerate(self.tower.blocks):
            normed = layer.norm1(hidden)
            query, key, value = self.project(layer.attn, normed, geometry)
            attended = self.attend(index, query * layer.attn.scaling, key, value, geometry)
            hidden = hidden + layer.attn.proj(attended)
            hidden = hidden + layer.mlp(layer.norm2(hidden))
            merged += self.merge_layer(index, hidden)
        features = torch.cat([self.tower.merger(hidden), *merged], dim=-1)
        n, embeddings = geometry.n, geometry.rows * geometry.columns
        return features.reshape(n, embeddings, features.shape[-1])

    def measure(self, pixels: torch.Tensor) -> Geometry:
        """Return the geometry of tiles."""
        merge = self.merge
        rows, columns = (length // (self.patch * merge) for length in pixels.shape[2:])
        shape = rows, columns, merge, merge
        lines = torch.arange(rows * merge).reshape(rows, 1, merge, 1).expand(shape)
        in_line = torch.arange(columns * merge).reshape(1, columns, 1, merge).expand(shape)
        places = torch.stack([lines.reshape(-1), in_line.reshape(-1)], dim=-1)
        cosines, sines = self.tower.rotary_pos_emb(pixels, places)
        return Geometry(pixels.shape[0], rows, columns, places, cosines, sines)

    def embed(self, pixels: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        """Return the input of the first layer, ``[n, patches, width]``."""
        projection = self.tower.patch_embed.proj
        frames = torch.cat([pixels[:, :3], pixels[:, -3:]], dim=1)
        kernel = projection.weight.transpose(1, 2).flatten(1, 2)
        patches = functional.conv2d(frames, kernel, projection.bias, stride=self.patch)
        width = patches.shape[1]
        shape = geometry.n, width, geometry.rows, self.merge, geometry.columns, self.merge
        blocks = patches.reshape(shape).permute(0, 2, 4, 3, 5, 1)
        hidden = blocks.reshape(geometry.n, geometry.places.shape[0], width)
        return hidden.contiguous()  # mergers take views

    def project(
        self, attention: Any, hidden: torch.Tensor, geometry: Geometry
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rotated queries, rotated keys and values, each ``[n, patches, heads, width of a head]``."""
        n, patches, _ = hidden.shape
        joined = attention.qkv(hidden).reshape(n, patches, 3, attention.num_heads, -1)
        query, key, value = joined.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, geometry.cosines, geometry.sines)
        return query, key, value

    def attend(
        self,
        index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        geometry: Geometry,
    ) -> torch.Tensor:
        """Return the attention of a layer, ``[n, patches, width]``: here over all patches of a tile."""
        return attend_to_all(query, key, value)

    def merge_layer(self, index: int, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Return embeddings that are made of the output of a layer: here none."""
        return []


class WindowTower(NativeTower):
    """The tower of Qwen2.5-VL: most layers attend within windows. Those at the edges may be smaller."""

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__(tower)
        self.window = int(tower.config.window_size) // (self.patch * self.merge)
        self.full = frozenset(tower.config.fullatt_block_indexes)

    def attend(
        self,
        index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        geometry: Geometry,
    ) -> torch.Tensor:
        """Return the attention of a layer, ``[n, patches, width]``."""
        if index in self.full:
            return attend_to_all(query, key, value)
        real = self.split(torch.ones_like(query[..., :1, :1]), geometry)
        bias = torch.where(real > 0, 0.0, torch.finfo(torch.float32).min).permute(0, 2, 3, 1)
        query, key, value = (
            self.split(part, geometry).transpose(1, 2) for part in (query, key, value)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) + bias, dim=-1)
        return self.join((weights @ value).transpose(1, 2), geometry)

    def split(self, values: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        """Split ``[n, patches, heads, width]`` into windows ``[n * windows, patches, heads, width]``.

        Windows that reach over an edge are filled up with zeros.
        """
        heads, width = values.shape[2:]
        side, block = self.window, self.merge**2
        tall, wide = self.count(geometry)
        down, right = tall * side - geometry.rows, wide * side - geometry.columns
        grid = values.reshape(geometry.n, geometry.rows, geometry.columns, block * heads * width)
        grid = functional.pad(grid, (0, 0, 0, right, 0, down))
        windows = grid.reshape(geometry.n, tall, side, wide, side, grid.shape[-1])
        windows = windows.permute(0, 1, 3, 2, 4, 5)
        return windows.reshape(geometry.n * tall * wide, side * side * block, heads, width)

    def join(self, windows: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        """Join windows ``[n * windows, patches, heads, width]`` to ``[n, patches, heads * width]``."""
        heads, width = windows.shape[2:]
        side, block = self.window, self.merge**2
        tall, wide = self.count(geometry)
        shape = geometry.n, tall, wide, side, side, block * heads * width
        grid = windows.reshape(shape).permute(0, 1, 3, 2, 4, 5)
        grid = grid.reshape(geometry.n, tall * side, wide * side, shape[-1])
        grid = grid[:, : geometry.rows, : geometry.columns]
        return grid.reshape(geometry.n, geometry.places.shape[0], heads * width)

    def count(self, geometry: Geometry) -> tuple[int, int]:
        """Return the number of lines of windows, and of windows in a line."""
        # Only positive numbers: ONNX rounds a quotient towards zero, Python down.
        lengths = geometry.rows, geometry.columns
        tall, wide = ((length + self.window - 1) // self.window for length in lengths)
        return tall, wide


class DeepstackTower(NativeTower):
    """The tower of Qwen3-VL: a table of positions, and embeddings of inner layers beside the last ones.

    llama.cpp adds those of the inner layers to the output of the first layers of the language model. They
    follow the embeddings of the last layer in each row, in the order of ``deepstack_visual_indexes``.
    """

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__(tower)
        self.side = int(tower.config.num_position_embeddings**0.5)
        layers = getattr(tower.config, "deepstack_visual_indexes", ())
        self.mergers = {int(layer): number for number, layer in enumerate(layers)}

    def embed(self, pixels: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        """Return the input of the first layer, ``[n, patches, width]``."""
        positions = self.interpolate(geometry.places)
        return super().embed(pixels, geometry) + positions

    def interpolate(self, places: torch.Tensor) -> torch.Tensor:
        """Return the position embedding of each patch, ``[patches, width]``.

        The table is stretched to the grid by bilinear interpolation, corner to corner.
        """
        last = self.side - 1
        exact = places.float() * last / places.amax(0).clamp(min=1)
        low = exact.floor()
        share = exact - low
        low = low.long()
        high = (low + 1).clamp(max=last)
        found: Any = 0
        for line, weight in ((low[:, 0], 1 - share[:, 0]), (high[:, 0], share[:, 0])):
            for column, part in ((low[:, 1], 1 - share[:, 1]), (high[:, 1], share[:, 1])):
                row = self.tower.pos_embed(line * self.side + column)
                found = found + row * (weight * part)[:, None]
        positions: torch.Tensor = found
        return positions

    def merge_layer(self, index: int, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Return embeddings that are made of the output of a layer, if it is one of those."""
        if index not in self.mergers:
            return []
        return [self.tower.deepstack_merger_list[self.mergers[index]](hidden)]


def list_places(rows: int, columns: int) -> torch.Tensor:
    """Return line and column of each patch, line by line: int64 ``[rows * columns, 2]``."""
    lines = torch.arange(rows).reshape(rows, 1).expand(rows, columns)
    in_line = torch.arange(columns).expand(rows, columns)
    return torch.stack([lines.reshape(-1), in_line.reshape(-1)], dim=-1)


def attend_to_all(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return attention over all patches, ``[n, patches, heads * width]``, of a few heads at once.

    Args:
        query, key, value: ``[n, patches, heads, width]``; queries with the factor of the scores.
    """
    n, patches, heads, width = query.shape
    parts = zip(
        query.transpose(1, 2).split(HEADS_AT_ONCE, dim=1),
        key.permute(0, 2, 3, 1).split(HEADS_AT_ONCE, dim=1),
        value.transpose(1, 2).split(HEADS_AT_ONCE, dim=1),
        strict=True,
    )
    attended = torch.cat([torch.softmax(q @ k, dim=-1) @ v for q, k, v in parts], dim=1)
    return attended.transpose(1, 2).reshape(n, patches, heads * width)
