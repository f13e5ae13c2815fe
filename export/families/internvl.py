"""InternVL 2.5, 3 and 3.5 in transformers' format (repositories that end in ``-hf``); images only, no video.

A ViT with scaled layers over tiles of a grid, pixel shuffle, a norm and two linear layers, and a Qwen 2,
Qwen 3 or Llama.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel, InternVLProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, images_only, llava
from edgevlm.export.vision_parts import FeatureLayers, LastFeatures, pixel_shuffle


class Connector(InternVLMultiModalProjector):
    """Pixel shuffle and projector."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.factor = int(1 / config.downsample_ratio)
        height, width = config.vision_config.image_size
        patch_height, patch_width = config.vision_config.patch_size
        self.side = height // patch_height
        if self.factor * config.downsample_ratio != 1 or self.side % self.factor:
            raise ValueError(
                f"downsample_ratio {config.downsample_ratio} does not divide {self.side}"
            )
        if self.side != width // patch_width:
            raise ValueError(f"image_size {(height, width)} is not a square")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return embeddings for features ``[n, side**2, width]``."""
        embeddings: torch.Tensor = super().forward(pixel_shuffle(features, self.side, self.factor))
        return embeddings


def vision(config: PretrainedConfig) -> nn.Module:
    """Return tower and projector. The last layer is taken after the last norm of the tower."""
    if config.vision_feature_layer != -1:
        return FeatureLayers(config, Connector(config))
    drop_class = config.vision_feature_select_strategy == "default"
    tower = AutoModel.from_config(config.vision_config)
    return LastFeatures(tower, Connector(config), drop_class=drop_class)


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> InternVLProcessor:
    """Return transformers' processor."""
    return images_only(InternVLProcessor)(
        image_processor, tokenizer, image_seq_length=tokens_per_tile
    )


FAMILY = Family(
    tensors=llava.TENSORS,
    vision=vision,
    image_processor="GotOcr2ImageProcessor",
    image_settings=lambda config: {"crop_to_patches": True},
    processor=processor,
    image_template="<img>{% for tile in range(tiles) %}{{ image }}{% endfor %}</img>",
    image_token="<IMG_CONTEXT>",
)
