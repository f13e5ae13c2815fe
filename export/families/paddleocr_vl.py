"""PaddleOCR-VL: a SigLIP for images of their own size, merged blocks of patches, and an Ernie 4.5."""

from __future__ import annotations

from transformers import PaddleOCRVLProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.paddleocr_vl.modeling_paddleocr_vl import (
    PaddleOCRProjector,
    PaddleOCRVisionTransformer,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family
from edgevlm.export.paddleocr_tower import PaddleOcrTower

IMAGE_TOKEN = "<|IMAGE_PLACEHOLDER|>"


def vision(config: PretrainedConfig) -> PaddleOcrTower:
    """Return tower and projector."""
    return PaddleOcrTower(
        PaddleOCRVisionTransformer._from_config(config.vision_config), PaddleOCRProjector(config)
    )


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> PaddleOCRVLProcessor:
    """Return transformers' processor, which asks the tokenizer for the image token."""
    tokenizer.image_token = IMAGE_TOKEN
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    return PaddleOCRVLProcessor(image_processor, tokenizer)


FAMILY = Family(
    tensors={
        # The pooling head of SigLIP, which transformers does not load either.
        r"(?:model\.)?visual\.vision_model\.head\.": "unused.",
        r"(?:model\.)?visual\.vision_model\.embeddings\.packing_position_embedding\.": "unused.",
        r"(?:model\.)?visual\.vision_model\.": "tower.",
        r"mlp_AR\.|(?:model\.)?projector\.": "connector.",
        r"lm_head\.": "head.",
        r"model\.(?:language_model\.)?": "decoder.",
    },
    vision=vision,
    image_processor="PaddleOCRVLImageProcessor",
    processor=processor,
    image_token=IMAGE_TOKEN,
    positions="grid",
)
