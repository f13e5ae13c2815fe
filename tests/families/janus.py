"""Janus and Janus-Pro, which here answer about images."""

from __future__ import annotations

from pathlib import Path

from transformers import JanusConfig, JanusForConditionalGeneration

from tests.families.deepseek_vl import END, IMAGE_PROCESSOR, SIZES, SPECIAL
from tests.families.llava import text_config
from tests.families.row import Row, save
from tests.families.tokenizers import deepseek_tokenizer

ADDED = ["<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>"]
TEMPLATE = (
    "{%- for message in messages %}{{ '<|' ~ message.role | capitalize ~ '|>: ' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "{{ '' if loop.first else '\\n' }}<image_placeholder>{{ '' if loop.last else '\\n' }}"
    "{% else %}{% set text = part.text.lstrip() if loop.first else part.text %}"
    "{{ text.rstrip() if loop.last else text }}{% endif %}{% endfor %}"
    f"{{{{ '{END}' if message.role == 'assistant' else '\\n\\n' }}}}{{% endfor %}}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)
"""Like that of Janus-Pro: spaces go at the ends of a message only, not beside an image."""


def janus(folder: Path) -> Path:
    tokenizer = deepseek_tokenizer(ADDED)
    config = JanusConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 64,
            "num_image_tokens": 16,
            "mlp_ratio": 2.0,
        },
        text_config=text_config("llama", tokenizer),
        vq_config={
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "embed_dim": 8,
            "image_token_embed_dim": 64,
            "latent_channels": 32,
            "num_embeddings": 32,
            "num_res_blocks": 1,
            "projection_dim": 64,
        },
        image_token_id=tokenizer.token_to_id("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    return save(
        folder,
        JanusForConditionalGeneration(config),
        tokenizer,
        {"image_processor_type": "JanusImageProcessor", **IMAGE_PROCESSOR},
        special={**SPECIAL, "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
        template=TEMPLATE,
        end=END,
        processor={
            "processor_class": "JanusProcessor",
            "num_image_tokens": 16,
            "use_default_system_prompt": True,
        },
    )


ROWS = [
    Row(
        "janus",
        janus,
        "questions about images: ViT, image padded to a square; Llama (Janus, Janus-Pro)",
        "generation of images",
        sizes=SIZES,
    )
]
