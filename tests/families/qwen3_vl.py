"""Qwen3-VL: a table of positions in the tower, and features of inner layers for those of the decoder."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from tests.families.llava import text_config
from tests.families.qwen2_vl import (
    ADDED,
    IMAGE_PROCESSOR,
    SIZES,
    TEMPLATE,
    ids,
    longer_conversations,
    write,
)
from tests.families.row import Row, load_without_video
from tests.families.tokenizers import qwen2_tokenizer

WITHOUT_SYSTEM = TEMPLATE[TEMPLATE.index("<|im_start|>{{ message.role") :]
QWEN3_TEMPLATE = "{% for message in messages %}" + WITHOUT_SYSTEM
QWEN3_IMAGE_PROCESSOR = {
    **{name: value for name, value in IMAGE_PROCESSOR.items() if not name.endswith("_pixels")},
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 16,
    "size": {"shortest_edge": 64 * 64, "longest_edge": 60 * 32 * 32},
}
QWEN3_VIDEO_PROCESSOR = {
    **{name: value for name, value in QWEN3_IMAGE_PROCESSOR.items() if "processor" not in name},
    "video_processor_type": "Qwen3VLVideoProcessor",
    "size": {"shortest_edge": 8 * 32 * 32, "longest_edge": 160 * 32 * 32},
}


def qwen3_vl(folder: Path) -> Path:
    """Features of two layers of three; sections of heads in about the ratio of the published 24, 20, 20."""
    tokenizer = qwen2_tokenizer(ADDED)
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    config = Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "out_hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "patch_size": 16,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config=text_config(
            "qwen3_vl_text", tokenizer, rope_parameters=rope, head_dim=16, num_hidden_layers=3
        ),
        tie_word_embeddings=False,
        **ids(tokenizer),
    )
    model = Qwen3VLForConditionalGeneration(config)
    return write(
        folder,
        model,
        tokenizer,
        "Qwen3VLProcessor",
        QWEN3_IMAGE_PROCESSOR,
        QWEN3_TEMPLATE,
        QWEN3_VIDEO_PROCESSOR,
    )


ROWS = [
    Row(
        "qwen3_vl",
        qwen3_vl,
        "a table of positions, features of inner layers (deepstack); Qwen 3",
        processor=load_without_video(Qwen3VLProcessor),
        sizes=SIZES,
        videos=True,
        messages=longer_conversations,
    )
]
