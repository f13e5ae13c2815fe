"""Parts of vision graphs that families share.

A vision part is a module with children ``tower``, ``connector`` and, if it has them, ``learned``: vectors
that stand in the prompt beside the features, such as the one that ends a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.image_processing_backends import PilBackend

from edgevlm.errors import ExportError

NEWLINE = "image_newline"
"""The learned vector that ends a line of embeddings."""


class FeatureLayers(nn.Module):
    """A tower, hidden states of some of its layers side by side, and a connector.

    The vision part of LLaVA and what came from it.

    Args:
        config: the configuration of the whole model.
        connector: from features ``[n, tokens, layers * width]`` to embeddings.
        layers: indices of the hidden states; 0 is the input of the first layer. None:
            ``config.vision_feature_layer``.
        drop_class: leave out the first token of the tower. None: as
            ``config.vision_feature_select_strategy`` says.
        newline: append the learned vector `NEWLINE` to the embeddings of each tile.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        connector: nn.Module,
        *,
        layers: int | Sequence[int] | None = None,
        drop_class: bool | None = None,
        newline: bool = False,
    ) -> None:
        super().__init__()
        chosen: Any = config.vision_feature_layer if layers is None else layers
        self.layers = [chosen] if isinstance(chosen, int) else list(chosen)
        if drop_class is None:
            drop_class = config.vision_feature_select_strategy == "default"
        self.first = int(drop_class)
        self.tower = AutoModel.from_config(config.vision_config)
        self.connector = connector
        if newline:
            self.learned = nn.ParameterDict(
                {NEWLINE: nn.Parameter(torch.empty(config.get_text_config().hidden_size))}
            )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for normalized pixels ``[n, 3, height, width]``."""
        states = self.tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        features = torch.cat([states[layer][:, self.first :] for layer in self.layers], dim=-1)
        rows: torch.Tensor = self.connector(features)
        if hasattr(self, "learned"):
            newline = self.learned[NEWLINE].expand(rows.shape[0], 1, -1)
            rows = torch.cat([rows, newline], dim=1)
        return rows


class LastFeatures(nn.Module):
    """A tower, what it returns after its last norm, and a connector.

    Args:
        tower: a vision model of transformers; its result is ``last_hidden_state``.
        connector: from that result to embeddings ``[n, tokens, width]``.
        drop_class: leave out the first token of the tower.
    """

    def __init__(self, tower: nn.Module, connector: nn.Module, *, drop_class: bool = False) -> None:
        super().__init__()
        self.tower = tower
        self.connector = connector
        self.drop_class = drop_class

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for normalized pixels ``[n, 3, height, width]``."""
        features = self.tower(pixels, return_dict=True).last_hidden_state
        if self.drop_class:
            features = features[:, 1:]
        rows: torch.Tensor = self.connector(features)
        return rows


class BucketedPositions(nn.Module):
    """A SigLIP that puts the position of each patch into buckets, and a connector, as in Idefics3.

    Tiles are always whole, so positions are constants of the graph. The reference computes the buckets in
    float32. For some numbers of patches, such as 25 a side, this does not give one bucket after the other, so
    the graph takes the result of the reference.

    Args:
        config: the configuration of the whole model.
        tower, embeddings, connector: classes of transformers.
    """

    position_ids: torch.Tensor

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        tower: type[PreTrainedModel],
        embeddings: type[nn.Module],
        connector: type[nn.Module],
    ) -> None:
        super().__init__()
        self.tower = tower._from_config(config.vision_config)
        self.connector = connector(config)
        ids = bucketed_positions(embeddings(config.vision_config), config.vision_config)
        self.register_buffer("position_ids", ids, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for normalized pixels ``[n, 3, height, width]``."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        hidden = patches + embeddings.position_embedding(self.position_ids)
        hidden = self.tower.encoder(inputs_embeds=hidden).last_hidden_state
        rows: torch.Tensor = self.connector(self.tower.post_layernorm(hidden))
        return rows


def bucketed_positions(embeddings: nn.Module, config: PretrainedConfig) -> torch.Tensor:
    """Return the positions that the reference uses for a whole tile, int64 ``[patches]``."""
    seen: list[torch.Tensor] = []
    hook = embeddings.position_embedding.register_forward_pre_hook(  # type: ignore[union-attr]  # a child by name
        lambda module, inputs: seen.append(inputs[0])
    )
    side = config.image_size // config.patch_size
    pixels = torch.zeros(1, config.num_channels, config.image_size, config.image_size)
    with torch.no_grad():
        embeddings(pixels, torch.ones(1, side, side, dtype=torch.bool))
    hook.remove()
    return seen[0][0]


def check_grid(image_processor: PilBackend, config: PretrainedConfig, tokens_per_tile: int) -> None:
    """Check that model and image processor cut an image of any resolution into the same grid.

    transformers splits images by the settings of the image processor, and packs the embeddings by those of
    the model.

    Raises:
        ExportError: the resolutions differ, or the embeddings of a tile are no square.
    """
    by_processor = [tuple(size) for size in image_processor.image_grid_pinpoints]
    by_model = [tuple(size) for size in config.image_grid_pinpoints]
    if by_processor != by_model:
        raise ExportError(
            f"image_grid_pinpoints is {by_model} in config.json and {by_processor} in the settings of the "
            f"image processor; they must be equal"
        )
    size, patch = config.vision_config.image_size, config.vision_config.patch_size
    if tokens_per_tile != (size // patch) ** 2:
        raise ExportError(
            f"a tile has {tokens_per_tile} embeddings, which are not the {size // patch} x {size // patch} "
            f"patches; with a class token, vision_feature_select_strategy in config.json must be 'default', "
            f"without one 'full'"
        )


def pixel_shuffle(features: torch.Tensor, side: int, factor: int) -> torch.Tensor:
    """Join blocks of neighboring features.

    Args:
        features: ``[n, side**2, width]``.
        side: features in a line.
        factor: side of a block.

    Returns:
        ``[n, (side / factor)**2, width * factor**2]``.

    The features of a block follow each other row by row, as in InternVL.
    """
    n, _, width = features.shape
    small = side // factor
    blocks = features.reshape(n, small, factor, small, factor, width)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(n, small * small, factor * factor * width)
