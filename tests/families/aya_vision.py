"""Aya Vision: a grid of tiles with their numbers, and a Cohere 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration

from tests.families.row import Row, save
from tests.families.tokenizers import cohere_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>"
    "{% if message.role == 'user' %}<|USER_TOKEN|>{% elif message.role == 'assistant' %}"
    "<|CHATBOT_TOKEN|><|START_RESPONSE|>{% else %}<|SYSTEM_TOKEN|>{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}IMAGE"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{% endif %}"
)
IMAGE_TOKENS = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "<|IMG_PATCH|>")
RESPONSE_TOKENS = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
TILE_TOKENS = (*(f"TILE_{tile}" for tile in range(1, 13)), "TILE_GLOBAL")
SPECIAL = {
    "bos_token": "<BOS_TOKEN>",
    "eos_token": "<|END_OF_TURN_TOKEN|>",
    "pad_token": "<PAD>",
    "unk_token": "<UNK>",
}
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
"""Tiles of 16 patches, which are joined to 4 embeddings."""
IMAGE_PROCESSOR = {
    "crop_to_patches": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_patches": 12,
    "min_patches": 1,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 56, "width": 56},
}
SIZES = ((150, 100), (60, 130), (40, 40), (300, 60), (5, 9), (200, 190))


def cohere2_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Three of four layers slide, over fewer positions than an image has; the last has no rotation."""
    return {
        "model_type": "cohere2",
        "vocab_size": tokenizer.get_vocab_size() + 5,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "sliding_window": 24,
        "logit_scale": 0.25,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        "bos_token_id": tokenizer.token_to_id("<BOS_TOKEN>"),
        "eos_token_id": tokenizer.token_to_id("<|END_OF_TURN_TOKEN|>"),
        "pad_token_id": tokenizer.token_to_id("<PAD>"),
        "tie_word_embeddings": True,
    }


def aya_vision(folder: Path) -> Path:
    tokenizer = cohere_tokenizer([*IMAGE_TOKENS, *RESPONSE_TOKENS, *TILE_TOKENS])
    config = AyaVisionConfig(
        vision_config={"model_type": "siglip_vision_model", **SIGLIP, "vision_use_head": False},
        text_config=cohere2_config(tokenizer),
        image_token_index=tokenizer.token_to_id("<|IMG_PATCH|>"),
        alignment_intermediate_size=96,
    )
    return save(
        folder,
        AyaVisionForConditionalGeneration(config),
        tokenizer,
        {"image_processor_type": "GotOcr2ImageProcessor", **IMAGE_PROCESSOR},
        special=SPECIAL,
        template=TEMPLATE.replace("IMAGE", "<image>"),
        end="<|END_OF_TURN_TOKEN|>",
        processor={
            "processor_class": "AyaVisionProcessor",
            "patch_size": 14,
            "downsample_factor": 2,
            "img_size": 56,
        },
    )


ROWS = [
    Row(
        "aya_vision",
        aya_vision,
        "SigLIP over a grid of tiles with their numbers; Cohere 2, its logits not scaled",
        sizes=SIZES,
        processor_images={"crop_to_patches": True},
    )
]
