"""Qwen2.5-VL: as Qwen2-VL, and layers of the tower attend within windows."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from tests.families.qwen2_vl import (
    ADDED,
    SIZES,
    ids,
    language_model,
    longer_conversations,
    write,
)
from tests.families.row import Row, load_without_video
from tests.families.tokenizers import qwen2_tokenizer


def qwen2_5_vl(folder: Path) -> Path:
    """One layer of the tower attends within windows of 4 x 4 embeddings, one to all."""
    tokenizer = qwen2_tokenizer(ADDED)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "out_hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        text_config=language_model("qwen2_5_vl_text", tokenizer, [2, 3, 3]),
        tie_word_embeddings=False,
        **ids(tokenizer),
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    return write(folder, model, tokenizer, "Qwen2_5_VLProcessor")


ROWS = [
    Row(
        "qwen2_5_vl",
        qwen2_5_vl,
        "as Qwen2-VL, with windows that may be cut at the edges",
        processor=load_without_video(Qwen2_5_VLProcessor),
        sizes=SIZES,
        videos=True,
        messages=longer_conversations,
    )
]
