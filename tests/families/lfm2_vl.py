"""LFM2-VL: one tile of the image's own size, or a grid beside it, and a decoder with short convolutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlProcessor,
)

from edgevlm.export.lfm2_images import Lfm2VlImageProcessorPil
from tests.families.row import Row, save
from tests.families.tokenizers import lfm2_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADDED = [
    "<|startoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|pad|>",
    "<image>",
    "<|image_start|>",
    "<|image_end|>",
    "<|img_thumbnail|>",
    *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)),
]
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
IMAGE_PROCESSOR = {
    "image_processor_type": "Lfm2VlImageProcessorFast",
    "do_image_splitting": True,
    "downsample_factor": 2,
    "encoder_patch_size": 8,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_image_tokens": 16,
    "max_pixels_tolerance": 2.0,
    "max_tiles": 4,
    "min_image_tokens": 4,
    "min_tiles": 2,
    "resample": 2,
    "tile_size": 64,
    "use_thumbnail": True,
}
SIZES = ((200, 60), (60, 200), (64, 64), (9, 5), (70, 50), (300, 280), (17, 90), (128, 100))
"""Grids; one tile of 4 x 4 embeddings; the least; one tile of other ratios; and the largest grid."""


def lfm2_vl(folder: Path, **text: Any) -> Path:
    tokenizer = lfm2_tokenizer(ADDED)
    config = Lfm2VlConfig(
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_patches": 36,
            "patch_size": 8,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "lfm2",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 2048,
            "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            **text,
        },
        projector_hidden_size=96,
        image_token_id=tokenizer.token_to_id("<image>"),
    )
    return save(
        folder,
        Lfm2VlForConditionalGeneration(config),
        tokenizer,
        IMAGE_PROCESSOR,
        special=SPECIAL,
        template=TEMPLATE,
        end="<|im_end|>",
        processor={"processor_class": "Lfm2VlProcessor"},
    )


def load_processor(checkpoint: Path) -> Lfm2VlProcessor:
    """transformers' processor; `tests/reference/test_own_size_grid.py` compares the image processor."""
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text())
    return Lfm2VlProcessor(
        Lfm2VlImageProcessorPil.from_dict(settings),
        AutoTokenizer.from_pretrained(checkpoint),
        chat_template=(checkpoint / "chat_template.jinja").read_text(encoding="utf-8"),
    )


ROWS = [
    Row(
        name,
        lfm2_vl,
        works,
        "pixels may differ by one gray level from torchvision's",
        processor=load_processor,
        sizes=SIZES,
        decoder=decoder,
    )
    for name, works, decoder in (
        (
            "lfm2_vl",
            "images of their own size or in a grid; a decoder with short convolutions",
            "f16",
        ),
        ("lfm2_vl, ONNX Runtime", "the same, decoder in ONNX Runtime", "fp32"),
    )
]
