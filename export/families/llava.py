"""LLaVA 1.5 and what has its layout (interleave, BakLLaVA, LLaVA-Llama-3, ...): one tile for an image.

A CLIP or SigLIP tower, features of an inner layer, two linear layers, and a Llama, Mistral or Qwen 2.
"""

from __future__ import annotations

from torch import nn
from transformers import LlavaProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family
from edgevlm.export.vision_parts import FeatureLayers

TENSORS = {
    r"(?:model\.)?vision_tower\.(?:vision_model\.)?": "tower.",
    r"(?:model\.)?multi_modal_projector\.": "connector.",
    r"(?:model\.)?image_newline$": "learned.image_newline",
    r"(?:language_model\.)?lm_head\.": "head.",
    r"(?:model\.)?language_model\.(?:model\.)?": "decoder.",
}
"""Names differ between releases of transformers; checkpoints exist in each form."""


def vision(config: PretrainedConfig) -> nn.Module:
    """Return tower and projector."""
    return FeatureLayers(config, LlavaMultiModalProjector(config))


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> LlavaProcessor:
    """Return transformers' processor, with settings that give the tokens of the model.

    The processor of a checkpoint may count one token for the class and drop one, or not.
    """
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=tokens_per_tile - patches,
    )


FAMILY = Family(
    tensors=TENSORS,
    vision=vision,
    image_processor="CLIPImageProcessor",
    processor=processor,
)
