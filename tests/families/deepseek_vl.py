"""DeepSeek-VL with one tower."""

from __future__ import annotations

from pathlib import Path

from transformers import DeepseekVLConfig, DeepseekVLForConditionalGeneration

from tests.families.llava import SIGLIP, text_config
from tests.families.row import Row, save
from tests.families.tokenizers import deepseek_tokenizer

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
TEMPLATE = (
    "{% if messages[0].role != 'system' %}{{ 'You look at images and answer.\\n\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.role != 'system' %}{{ message.role | capitalize }}: {% endif %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image_placeholder>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
    f"{{{{ '{END}' if message.role == 'assistant' else '\\n\\n' }}}}{{% endfor %}}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
IMAGE_PROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "min_size": 14,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 56, "width": 56},
}
SPECIAL = {
    "bos_token": BEGIN,
    "eos_token": END,
    "pad_token": "<|endoftext|>",
    "image_token": "<image_placeholder>",
}
SIZES = ((150, 100), (60, 130), (40, 40), (300, 20), (5, 9))
"""With one whose shorter side would be below ``min_size``."""


def deepseek_vl(folder: Path) -> Path:
    tokenizer = deepseek_tokenizer(["<image_placeholder>"])
    config = DeepseekVLConfig(
        vision_config={**SIGLIP, "vision_use_head": True},
        text_config=text_config("llama", tokenizer),
        image_token_id=tokenizer.token_to_id("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    return save(
        folder,
        DeepseekVLForConditionalGeneration(config),
        tokenizer,
        {"image_processor_type": "DeepseekVLImageProcessor", **IMAGE_PROCESSOR},
        special=SPECIAL,
        template=TEMPLATE,
        end=END,
        processor={"processor_class": "DeepseekVLProcessor", "num_image_tokens": 16},
    )


ROWS = [
    Row(
        "deepseek_vl",
        deepseek_vl,
        "SigLIP, image padded to a square; Llama (1.3B)",
        "the hybrid tower of the 7B (`deepseek_vl_hybrid`)",
        sizes=SIZES,
    )
]
