"""Qwen2.5-VL: as Qwen2-VL, and most layers of the tower attend within windows."""

from __future__ import annotations

import dataclasses

from transformers import AutoModel, PretrainedConfig, Qwen2_5_VLProcessor
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import chat_usage, images_only, qwen2_vl
from edgevlm.export.native_towers import WindowTower
from edgevlm.manifest import JsonFormat


def vision(config: PretrainedConfig) -> WindowTower:
    """Return the tower, whose merger is the connector."""
    return WindowTower(AutoModel.from_config(config.vision_config))


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Qwen2_5_VLProcessor:
    """Return transformers' processor."""
    return images_only(Qwen2_5_VLProcessor)(image_processor, tokenizer)


LOCATION_FORMAT = JsonFormat(("bbox_2d",), ("point_2d",), "label", scale=None)
DETECT = "Locate every {thing} in the image and output the bbox coordinates in JSON format."
POINT = "Point to every {thing} in the image and output the point_2d coordinates in JSON format."

FAMILY = dataclasses.replace(
    qwen2_vl.FAMILY,
    vision=vision,
    processor=processor,
    usage=lambda repository: chat_usage(LOCATION_FORMAT, DETECT, POINT),
)
