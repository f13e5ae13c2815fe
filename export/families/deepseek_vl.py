"""DeepSeek-VL with one tower (1.3B), in transformers' format: a SigLIP, two linear layers and a Llama."""

from __future__ import annotations

from transformers import AutoModel, DeepseekVLProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.deepseek_vl.modeling_deepseek_vl import DeepseekVLAligner
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family
from edgevlm.export.vision_parts import LastFeatures

TENSORS = {
    r"(?:model\.)?vision_model\.(?:vision_model\.)?": "tower.",
    r"(?:model\.)?aligner\.": "connector.",
    r"(?:language_model\.)?lm_head\.": "head.",
    r"(?:model\.)?language_model\.(?:model\.)?": "decoder.",
}
"""Names differ between releases of transformers; checkpoints exist in each form."""


def vision(config: PretrainedConfig) -> LastFeatures:
    """Return tower and projector."""
    return LastFeatures(AutoModel.from_config(config.vision_config), DeepseekVLAligner(config))


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> DeepseekVLProcessor:
    """Return transformers' processor."""
    return DeepseekVLProcessor(image_processor, tokenizer, num_image_tokens=tokens_per_tile)


FAMILY = Family(
    tensors=TENSORS,
    vision=vision,
    image_processor="DeepseekVLImageProcessor",
    processor=processor,
    image_token="<image_placeholder>",
)
