"""Qwen3-VL: as Qwen2-VL, with features of inner layers of the tower for the first ones of a Qwen 3."""

from __future__ import annotations

import dataclasses

from transformers import AutoModel, PretrainedConfig, Qwen3VLProcessor
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import chat_usage, images_only, qwen2_5_vl, qwen2_vl
from edgevlm.export.native_towers import DeepstackTower
from edgevlm.export.videos import FamilyVideo, read_qwen3


def vision(config: PretrainedConfig) -> DeepstackTower:
    """Return the tower, whose merger is the connector."""
    return DeepstackTower(AutoModel.from_config(config.vision_config))


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Qwen3VLProcessor:
    """Return transformers' processor."""
    return images_only(Qwen3VLProcessor)(image_processor, tokenizer)


LOCATION_FORMAT = dataclasses.replace(qwen2_5_vl.LOCATION_FORMAT, scale=1000)

FAMILY = dataclasses.replace(
    qwen2_vl.FAMILY,
    vision=vision,
    processor=processor,
    usage=lambda repository: chat_usage(LOCATION_FORMAT, qwen2_5_vl.DETECT, qwen2_5_vl.POINT),
    video=FamilyVideo(
        placeholder="<|video_pad|>",
        # The chat template writes another pair of both tokens around all of this.
        template="{% for time in times %}<{{ '%.1f' | format(time) }} seconds>"
        "<|vision_start|>{{ image }}<|vision_end|>{% endfor %}",
        read=read_qwen3,
    ),
)
