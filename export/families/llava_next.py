"""LLaVA-NeXT (1.6) and Granite Vision: an overview and a grid of tiles, in lines that a learned vector ends.

Tower, projector and language models are those of LLaVA. Granite Vision uses features of several layers.
"""

from __future__ import annotations

from torch import nn
from transformers import LlavaNextProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, llava
from edgevlm.export.vision_parts import FeatureLayers, check_grid
from edgevlm.manifest import UnpadPacking


def vision(config: PretrainedConfig) -> nn.Module:
    """Return tower, projector and the vector that ends a line."""
    return FeatureLayers(config, LlavaNextMultiModalProjector(config), newline=True)


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> LlavaNextProcessor:
    """Return transformers' processor, with settings that give the tokens of the model."""
    check_grid(image_processor, config, tokens_per_tile)
    return LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="full",
    )


FAMILY = Family(
    tensors=llava.TENSORS,
    vision=vision,
    image_processor="LlavaNextImageProcessor",
    processor=processor,
    packing=lambda config: UnpadPacking(),
)
