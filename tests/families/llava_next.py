"""LLaVA-NeXT: CLIP with a Llama and with a Mistral; Granite Vision: SigLIP, several layers, Granite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from tests.families.llava import (
    CLIP,
    CLIP_PROCESSOR,
    LLAMA_SPECIAL,
    SIGLIP,
    SIGLIP_PROCESSOR,
    VICUNA_TEMPLATE,
    text_config,
)
from tests.families.row import Row, save
from tests.families.tokenizers import granite_tokenizer, llama_tokenizer

INST_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ ' ' + message.content[0].text + '</s>' }}{% else %}[INST] "
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %} [/INST]"
    "{% endif %}{% endfor %}"
)
GRANITE_TEMPLATE = (
    "<|system|>\nA chat between a user and an assistant.\n"
    "{% for message in messages %}{{ '<|' + message.role + '|>\\n' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<image>\\n' }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{{ '<|end_of_text|>' if message.role == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
GRANITE_SPECIAL = {
    "bos_token": "<|end_of_text|>",
    "eos_token": "<|end_of_text|>",
    "unk_token": "<|end_of_text|>",
    "pad_token": "<|end_of_text|>",
    "image_token": "<image>",
}
SIZES = ((150, 100), (60, 130), (40, 40), (300, 30), (9, 200), (113, 111), (7, 5))
"""Grids of all resolutions, and unpadding with every remainder."""


def resolutions(side: int, max_tiles: int) -> list[list[int]]:
    """Return all grids of 2 to `max_tiles` tiles, as heights and widths in pixels."""
    return [
        [rows * side, columns * side]
        for rows in range(1, max_tiles + 1)
        for columns in range(1, max_tiles + 1)
        if 2 <= rows * columns <= max_tiles
    ]


def write(
    folder: Path,
    tokenizer: Tokenizer,
    text: dict[str, Any],
    template: str,
    *,
    tower: dict[str, Any] = CLIP,
    image_processor: dict[str, Any] = CLIP_PROCESSOR,
    special: dict[str, Any] = LLAMA_SPECIAL,
    grid: list[list[int]],
    end: str = "</s>",
    **settings: Any,
) -> Path:
    """Write a checkpoint; `settings` are of the configuration."""
    config = LlavaNextConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=tokenizer.token_to_id("<image>"),
        image_grid_pinpoints=grid,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        **settings,
    )
    return save(
        folder,
        LlavaNextForConditionalGeneration(config),
        tokenizer,
        {
            **image_processor,
            "image_processor_type": "LlavaNextImageProcessor",
            "image_grid_pinpoints": grid,
            "do_pad": True,
        },
        special=special,
        template=template,
        end=end,
        processor={
            "processor_class": "LlavaNextProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "num_additional_image_tokens": int(tower is CLIP),
        },
    )


def clip_llama(folder: Path) -> Path:
    """As LLaVA 1.6 with Vicuna, with its resolutions at the scale of the tower."""
    tokenizer = llama_tokenizer()
    grid = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    return write(folder, tokenizer, text_config("llama", tokenizer), VICUNA_TEMPLATE, grid=grid)


def clip_mistral(folder: Path) -> Path:
    """As LLaVA 1.6 with Mistral."""
    tokenizer = llama_tokenizer()
    text = text_config("mistral", tokenizer, sliding_window=None)
    grid = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    return write(folder, tokenizer, text, INST_TEMPLATE, grid=grid)


def granite(folder: Path) -> Path:
    """As Granite Vision 3: tiles that the patches do not divide, features of several layers."""
    tokenizer = granite_tokenizer(["<image>"])
    text = text_config(
        "granite",
        tokenizer,
        tie_word_embeddings=True,
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        residual_multiplier=0.22,
        attention_multiplier=0.015625,
        bos_token_id=0,
        eos_token_id=0,
    )
    return write(
        folder,
        tokenizer,
        text,
        GRANITE_TEMPLATE,
        tower={**SIGLIP, "image_size": 60, "num_hidden_layers": 4},
        image_processor={
            **SIGLIP_PROCESSOR,
            "size": {"height": 60, "width": 60},
            "crop_size": {"height": 60, "width": 60},
        },
        special=GRANITE_SPECIAL,
        grid=resolutions(60, 10),
        end="<|end_of_text|>",
        vision_feature_layer=[-4, -3, -2, -1],
        vision_feature_select_strategy="full",
    )


ROWS = [
    Row(
        "llava_next",
        clip_llama,
        "CLIP; Llama (LLaVA 1.6 Vicuna)",
        "its authors' layout",
        sizes=SIZES,
    ),
    Row(
        "llava_next, Mistral",
        clip_mistral,
        "CLIP; Mistral (LLaVA 1.6 Mistral)",
        "its authors' layout",
        sizes=SIZES,
    ),
    Row(
        "llava_next, Granite",
        granite,
        "SigLIP, features of several layers; Granite (Granite Vision 3)",
        sizes=SIZES,
    ),
]
