"""Aya Vision: a SigLIP over tiles of a grid, pixel shuffle, a gated projector, and a Cohere 2."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import AyaVisionProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.aya_vision.modeling_aya_vision import AyaVisionMultiModalProjector
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.cohere_tokens import mark_control_tokens
from edgevlm.export.families import Family, llava
from edgevlm.export.vision_parts import FeatureLayers

IMAGE_TEMPLATE = (
    "<|START_OF_IMG|>"
    "{% for tile in range(1, tiles) %}TILE_{{ tile }}{{ image }}{% endfor %}TILE_GLOBAL{{ image }}"
    "<|END_OF_IMG|>"
)


class Connector(AyaVisionMultiModalProjector):
    """Pixel shuffle and projector."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return embeddings ``[n, tokens, width]`` for features ``[n, side**2, width]``."""
        embeddings: torch.Tensor = super().forward(features).flatten(1, 2)
        return embeddings


def vision(config: PretrainedConfig) -> nn.Module:
    """Return tower and projector."""
    return FeatureLayers(config, Connector(config))


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> AyaVisionProcessor:
    """Return transformers' processor, with sizes that give the tokens of the model."""
    mark_control_tokens(tokenizer)
    side = math.isqrt(tokens_per_tile)
    return AyaVisionProcessor(image_processor, tokenizer, patch_size=1, img_size=side)


FAMILY = Family(
    tensors=llava.TENSORS,
    vision=vision,
    image_processor="GotOcr2ImageProcessor",
    image_settings=lambda config: {"crop_to_patches": True},
    processor=processor,
    image_template=IMAGE_TEMPLATE,
    image_token="<|IMG_PATCH|>",
    image_placeholder="<image>",
)
