"""Command A Vision: as Aya Vision, with another rule for the grid and a token after each tile."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel, Cohere2VisionProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.cohere2_vision.modeling_cohere2_vision import (
    Cohere2VisionMultiModalProjector,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.export.cohere2_images import Cohere2VisionImageProcessorPil
from edgevlm.export.cohere_tokens import check_named_tokens, mark_control_tokens
from edgevlm.export.families import Family, llava
from edgevlm.export.vision_parts import LastFeatures

IMAGE_TEMPLATE = (
    "<|START_OF_IMG|>"
    "{% for tile in range(tiles) %}{{ image }}<|IMG_LINE_BREAK|>{% endfor %}"
    "<|END_OF_IMG|>"
)
NAMED_TOKENS = {
    "boi_token": "<|START_OF_IMG|>",
    "image_token": "<|IMG_PATCH|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
    "eoi_token": "<|END_OF_IMG|>",
}
"""Tokens that transformers' processor asks the tokenizer for."""


class Connector(Cohere2VisionMultiModalProjector):
    """Pixel shuffle and projector."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return embeddings ``[n, tokens, width]`` for features ``[n, side**2, width]``."""
        embeddings: torch.Tensor = super().forward(features).flatten(1, 2)
        return embeddings


def vision(config: PretrainedConfig) -> nn.Module:
    """Return tower and projector. The features are those after the last norm of the tower."""
    tower = AutoModel.from_config(config.vision_config)
    return LastFeatures(tower, Connector(config))


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Cohere2VisionProcessor:
    """Return transformers' processor.

    Raises:
        ExportError: the image processor counts other tokens of a tile than the model has, or a token that
            stands in an image has another text.
    """
    assert isinstance(image_processor, Cohere2VisionImageProcessorPil)
    if image_processor.patch_size**2 != tokens_per_tile:
        raise ExportError(
            f"patch_size in the settings of the image processor is {image_processor.patch_size}, the lines "
            f"of embeddings of a tile; the model has {tokens_per_tile} embeddings"
        )
    check_named_tokens(tokenizer, NAMED_TOKENS)
    mark_control_tokens(tokenizer)
    return Cohere2VisionProcessor(image_processor, tokenizer)


FAMILY = Family(
    tensors=llava.TENSORS,
    vision=vision,
    image_processor="Cohere2VisionImageProcessor",
    processor=processor,
    image_template=IMAGE_TEMPLATE,
    image_token="<|IMG_PATCH|>",
)
