"""Janus and Janus-Pro, in transformers' format: they answer about images, and do not generate any here.

A ViT, a few linear layers and a Llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import JanusProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.janus.modeling_janus import JanusVisionAlignerMLP, JanusVisionModel
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, deepseek_vl
from edgevlm.export.vision_parts import LastFeatures

TENSORS = {
    **deepseek_vl.TENSORS,
    r"(?:model\.)?(?:vqmodel|generation_embeddings|generation_aligner|generation_head)\.": "unused.",
}


def vision(config: PretrainedConfig) -> LastFeatures:
    """Return tower and projector."""
    tower = JanusVisionModel._from_config(config.vision_config)
    return LastFeatures(tower, JanusVisionAlignerMLP(config.vision_config))


def prompt_prefix(settings: Mapping[str, Any]) -> str:
    """Return the system prompt that transformers' processor writes by its settings."""
    return DEFAULT_SYSTEM_PROMPT if settings.get("use_default_system_prompt") else ""


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> JanusProcessor:
    """Return transformers' processor. The system prompt is in the chat template already."""
    return JanusProcessor(
        image_processor,
        tokenizer,
        use_default_system_prompt=False,
        num_image_tokens=tokens_per_tile,
    )


FAMILY = Family(
    tensors=TENSORS,
    vision=vision,
    image_processor="JanusImageProcessor",
    processor=processor,
    image_template="<begin_of_image>{{ image }}<end_of_image>",
    image_token="<image_placeholder>",
    prompt_prefix=prompt_prefix,
)
