"""PaddleOCR-VL: images of their own size, of which short sides are enlarged; positions in a grid."""

from __future__ import annotations

from pathlib import Path

from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration

from tests.families.llava import text_config
from tests.families.qwen2_vl import IMAGE_PROCESSOR
from tests.families.row import Row, save
from tests.families.tokenizers import llama_tokenizer

TEMPLATE = (
    "<|begin_of_sentence|>{% for message in messages %}{% if message.role == 'user' %}{{ 'User: ' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>{% endif %}{% endfor %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{{ '\\n' }}{% else %}"
    "{{ 'Assistant: ' if message.role == 'assistant' }}{{ message.content[0].text }}"
    "{{ '</s>' if message.role == 'assistant' else '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
IMAGE_TOKEN = "<|IMAGE_PLACEHOLDER|>"
ADDED = ["<|begin_of_sentence|>", "<|IMAGE_START|>", IMAGE_TOKEN, "<|IMAGE_END|>", "<pad>"]
SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "image_token": IMAGE_TOKEN,
}
SIZES = ((225, 140), (60, 130), (112, 112), (400, 20), (9, 50), (1000, 700), (30, 29), (199, 243))
"""Sides below 28 pixels are enlarged; the least, the most and those between."""


def paddleocr_vl(folder: Path) -> Path:
    tokenizer = llama_tokenizer(ADDED)
    rope = {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [2, 3, 3]}
    config = PaddleOCRVLConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 84,
            "patch_size": 14,
        },
        text_config=text_config(
            "paddleocr_vl_text",
            tokenizer,
            rope_parameters=rope,
            head_dim=16,
            tie_word_embeddings=False,
        ),
        image_token_id=tokenizer.token_to_id(IMAGE_TOKEN),
        vision_start_token_id=tokenizer.token_to_id("<|IMAGE_START|>"),
        vision_end_token_id=tokenizer.token_to_id("<|IMAGE_END|>"),
        tie_word_embeddings=False,
    )
    return save(
        folder,
        PaddleOCRVLForConditionalGeneration(config),
        tokenizer,
        {
            **IMAGE_PROCESSOR,
            "image_processor_type": "PaddleOCRVLImageProcessor",
            "temporal_patch_size": 1,
        },
        special=SPECIAL,
        template=TEMPLATE,
        end="</s>",
        processor={"processor_class": "PaddleOCRVLProcessor"},
    )


ROWS = [
    Row(
        "paddleocr_vl",
        paddleocr_vl,
        "images of their own size, short sides enlarged; positions in a grid; Ernie 4.5",
        sizes=SIZES,
    )
]
