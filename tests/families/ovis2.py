"""Ovis2: probabilities of visual tokens, and learned rows around and between tiles."""

from __future__ import annotations

from pathlib import Path

from transformers import Ovis2Config, Ovis2ForConditionalGeneration

from edgevlm.export.ovis2_tower import LEARNED_TOKENS
from tests.families.llava import text_config
from tests.families.row import Row, save
from tests.families.tokenizers import qwen2_tokenizer

TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<image>\\n' }}"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGE_PROCESSOR = {
    "image_processor_type": "Ovis2ImageProcessor",
    "crop_to_patches": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_patches": 12,
    "min_patches": 1,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 56, "width": 56},
    "use_covering_area_grid": True,
}
SIZES = ((150, 100), (60, 130), (40, 40), (300, 60), (5, 9), (200, 190))


def ovis2(folder: Path, *, tie_word_embeddings: bool) -> Path:
    """Patches of 14 pixels, 2 x 2 of them a token."""
    tokenizer = qwen2_tokenizer(["<IMG_ATOM>", *LEARNED_TOKENS])
    text = text_config("qwen2", tokenizer, tie_word_embeddings=tie_word_embeddings)
    config = Ovis2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "vocab_size": 105,
            "hidden_stride": 2,
            "qkv_bias": tie_word_embeddings,
        },
        text_config=text,
        image_token_id=tokenizer.token_to_id("<IMG_ATOM>"),
        visual_indicator_token_ids=[tokenizer.token_to_id(token) for token in LEARNED_TOKENS],
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        tie_word_embeddings=tie_word_embeddings,
    )
    return save(
        folder,
        Ovis2ForConditionalGeneration(config),
        tokenizer,
        IMAGE_PROCESSOR,
        special={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        template=TEMPLATE,
        end="<|im_end|>",
        processor={"processor_class": "Ovis2Processor", "image_seq_length": 4},
    )


def large(folder: Path) -> Path:
    """As Ovis2 8B."""
    return ovis2(folder, tie_word_embeddings=False)


def small(folder: Path) -> Path:
    """As Ovis2 1B to 4B."""
    return ovis2(folder, tie_word_embeddings=True)


ROWS = [
    Row(
        name,
        build,
        works,
        "its authors' layout",
        sizes=SIZES,
        learned_tokens=LEARNED_TOKENS,
    )
    for name, build, works in (
        ("ovis2", large, "a table of visual tokens, a grid of tiles with learned rows; Qwen 2"),
        ("ovis2, tied", small, "the same without an output layer (1B to 4B)"),
    )
]
