"""MiniCPM-V 4.6: an overview and slices, patches that are merged twice, and the decoder of Qwen3.5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    MiniCPMV4_6Processor,
)

from tests.families.qwen2_vl import longer_conversations
from tests.families.row import IMAGE, Message, Row, save, text
from tests.families.tokenizers import qwen35_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|image_pad|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMED = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
"""Attributes of the tokenizer, by which the processor knows its tokens."""
SPECIAL: dict[str, Any] = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "extra_special_tokens": NAMED,
}
IMAGE_PROCESSOR = {
    "image_processor_type": "MiniCPMV4_6ImageProcessor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_slice_nums": 4,
    "patch_size": 4,
    "scale_resolution": 64,
}
SIZES = (
    (40, 150),
    (300, 260),
    (9, 5),
    (64, 64),
    (130, 60),
    (20, 23),
    (350, 40),
    (75, 61),
    (65, 200),
)
"""A column of three slices; two rows of two; one tile of 3 x 5 embeddings, enlarged, and one of 4 x 4; two
slices side by side; one tile, enlarged; a row of four slices; two that are taller than wide; a column."""


def more_conversations() -> Sequence[tuple[list[Message], int]]:
    """Those of Qwen's models, and one with numbers of images that have two digits."""
    many = [{"role": "user", "content": [*[IMAGE] * 11, text("Which?")]}]
    return [*longer_conversations(), (many, 11)]


def minicpmv4_6(folder: Path, *, mode: str = "16x") -> Path:
    """As published: no sections of M-RoPE, no output layer, and more positions in the table than patches."""
    tokenizer = qwen35_tokenizer(["<|im_start|>", "<|im_end|>", "<|endoftext|>", *NAMED.values()])
    torch.manual_seed(0)  # the decay of delta nets is random, and `scatter` keeps its mean
    config = MiniCPMV4_6Config(
        vision_config={
            "hidden_size": 48,
            "image_size": 80,
            "intermediate_size": 96,
            "num_attention_heads": 3,
            "num_hidden_layers": 3,
            "patch_size": 4,
        },
        text_config={
            "model_type": "qwen3_5_text",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.25,
            },
            "tie_word_embeddings": True,
        },
        downsample_mode=mode,
        insert_layer_id=1,
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        tie_word_embeddings=True,
    )
    return save(
        folder,
        MiniCPMV4_6ForConditionalGeneration(config),
        tokenizer,
        {**IMAGE_PROCESSOR, "downsample_mode": mode},
        special=SPECIAL,
        template=TEMPLATE,
        end="<|im_end|>",
    )


def less_merged(folder: Path) -> Path:
    """A quarter of the merging, which a checkpoint can ask for."""
    return minicpmv4_6(folder, mode="4x")


class ImagesOnly(MiniCPMV4_6Processor):
    """transformers' processor, whose part for video needs torchvision.

    It asks that part for two settings, which the image processor has, too.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(image_processor, image_processor, tokenizer, **settings)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "video_processor", "tokenizer"]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """All arguments are of their classes."""


def load_processor(checkpoint: Path) -> MiniCPMV4_6Processor:
    return ImagesOnly(
        AutoImageProcessor.from_pretrained(checkpoint, backend="pil"),
        AutoTokenizer.from_pretrained(checkpoint),
        chat_template=(checkpoint / "chat_template.jinja").read_text(encoding="utf-8"),
    )


ROWS = [
    Row(
        "minicpmv4_6",
        minicpmv4_6,
        "an overview and slices, a tower that merges patches twice; Qwen3.5's decoder, compared in f32",
        "video",
        processor=load_processor,
        sizes=SIZES,
        messages=more_conversations,
        decoder="f32",
    ),
    Row(
        "minicpmv4_6, 4x",
        less_merged,
        "the same with four times as many embeddings (`downsample_mode`)",
        "video",
        processor=load_processor,
        sizes=SIZES[:6],
        messages=longer_conversations,
        decoder="f32",
    ),
]
