"""Qwen3.5: images of their own size, positions in a grid, and a decoder with gated delta nets."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

from tests.families.qwen2_vl import ADDED, SIZES, ids, write
from tests.families.qwen3_vl import QWEN3_IMAGE_PROCESSOR, QWEN3_TEMPLATE, QWEN3_VIDEO_PROCESSOR
from tests.families.row import Row, load_without_video
from tests.families.tokenizers import qwen35_tokenizer


def qwen3_5(folder: Path) -> Path:
    """Three delta nets and then attention, as published; a quarter of each head is rotated."""
    tokenizer = qwen35_tokenizer(ADDED)
    torch.manual_seed(0)  # the decay of delta nets is random, and `scatter` keeps its mean
    config = Qwen3_5Config(
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "out_hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "patch_size": 16,
            "num_position_embeddings": 36,
        },
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.25,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        tie_word_embeddings=False,
        **ids(tokenizer),
    )
    return write(
        folder,
        Qwen3_5ForConditionalGeneration(config),
        tokenizer,
        "Qwen3VLProcessor",
        QWEN3_IMAGE_PROCESSOR,
        QWEN3_TEMPLATE,
        QWEN3_VIDEO_PROCESSOR,
    )


ROWS = [
    Row(
        "qwen3_5",
        qwen3_5,
        "as Qwen3-VL without features of inner layers; a decoder with gated delta nets, compared in f32",
        processor=load_without_video(Qwen3VLProcessor),
        sizes=SIZES,
        videos=True,
        decoder="f32",
    )
]
