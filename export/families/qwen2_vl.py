"""Qwen2-VL: images of their own size, positions in a grid (M-RoPE), and a Qwen 2."""

from __future__ import annotations

from transformers import PretrainedConfig, Qwen2VLProcessor
from transformers.image_processing_backends import PilBackend
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, chat_usage, images_only
from edgevlm.export.native_towers import NativeTower
from edgevlm.export.videos import FamilyVideo, read_qwen2
from edgevlm.manifest import BoxTokenFormat

TENSORS = {
    r"(?:model\.)?visual\.": "tower.",
    r"lm_head\.": "head.",
    r"(?:model\.)?language_model\.": "decoder.",
    r"model\.": "decoder.",
}
"""Published checkpoints name the language model ``model``, newer releases of transformers do not."""


def vision(config: PretrainedConfig) -> NativeTower:
    """Return the tower, whose merger is the connector."""
    return NativeTower(Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config))


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Qwen2VLProcessor:
    """Return transformers' processor."""
    return images_only(Qwen2VLProcessor)(image_processor, tokenizer)


FAMILY = Family(
    tensors=TENSORS,
    vision=vision,
    image_processor="Qwen2VLImageProcessor",
    processor=processor,
    image_token="<|image_pad|>",
    positions="grid",
    usage=lambda repository: chat_usage(
        BoxTokenFormat(scale=1000), "Detect the bounding box of {thing}."
    ),
    video=FamilyVideo(placeholder="<|video_pad|>", template="{{ image }}", read=read_qwen2),
)
