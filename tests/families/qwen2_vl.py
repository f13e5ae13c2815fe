"""Qwen2-VL: images of their own size, and positions in a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)

from tests.families.llava import text_config
from tests.families.row import (
    IMAGE,
    Message,
    Row,
    conversations,
    load_without_video,
    save,
    text,
)
from tests.families.tokenizers import qwen2_tokenizer

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' or 'image' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif part.type == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in part %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADDED = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
SPECIAL = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
"""Settings of the configuration, and the tokens whose ids they are."""
IMAGE_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "merge_size": 2,
    "min_pixels": 56 * 56,
    "max_pixels": 60 * 28 * 28,
    "patch_size": 14,
    "temporal_patch_size": 2,
}
SIZES = ((225, 140), (60, 130), (112, 112), (400, 30), (9, 5), (1000, 700), (28, 250), (199, 243))
"""Lines and columns of embeddings: 5 and 8, 5 and 2, 4 and 4, 1 and 14, then the least and the most, 9 and 1,
and 9 and 6 (wide by tall of Qwen2-VL's). So windows of 4 x 4 are whole, and cut at each edge."""
VIDEO_PROCESSOR = {
    **{name: value for name, value in IMAGE_PROCESSOR.items() if "processor" not in name},
    "video_processor_type": "Qwen2VLVideoProcessor",
    "min_pixels": 4 * 28 * 28,
    "max_pixels": 40 * 28 * 28,
}


def ids(tokenizer: Tokenizer) -> dict[str, Any]:
    return {name: tokenizer.token_to_id(token) for name, token in TOKENS.items()}


def longer_conversations() -> list[tuple[list[Message], int]]:
    """Those of all families, and three turns with images of two sizes."""
    first = {"role": "user", "content": [IMAGE, text("What is this?")]}
    second = {"role": "user", "content": [text("And "), IMAGE, text("?")]}
    third = {"role": "user", "content": [text("Which of both is larger?")]}
    answer = {"role": "assistant", "content": [text("A picture.")]}
    return [*conversations(), ([first, answer, second, answer, third], 2)]


def language_model(
    model_type: str, tokenizer: Tokenizer, sections: list[int], **settings: Any
) -> dict[str, Any]:
    """A language model of two layers with M-RoPE."""
    return text_config(
        model_type,
        tokenizer,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        bos_token_id=tokenizer.token_to_id("<|endoftext|>"),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        **settings,
    )


def write(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    processor: str,
    image_processor: Mapping[str, Any] = IMAGE_PROCESSOR,
    template: str = TEMPLATE,
    video_processor: Mapping[str, Any] = VIDEO_PROCESSOR,
) -> Path:
    save(
        folder,
        model,
        tokenizer,
        dict(image_processor),
        special=SPECIAL,
        template=template,
        end="<|im_end|>",
        processor={"processor_class": processor},
    )
    settings = json.dumps(dict(video_processor))
    (folder / "video_preprocessor_config.json").write_text(settings)
    return folder


def qwen2_vl(folder: Path, *, tied: bool = False) -> Path:
    """Sections of heads in the ratio of the published 16, 24, 24."""
    tokenizer = qwen2_tokenizer(ADDED)
    config = Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 64,
            "num_heads": 4,
            "patch_size": 14,
        },
        text_config=language_model("qwen2_vl_text", tokenizer, [2, 3, 3], tie_word_embeddings=tied),
        tie_word_embeddings=tied,
        **ids(tokenizer),
    )
    model = Qwen2VLForConditionalGeneration(config)
    return write(folder, model, tokenizer, "Qwen2VLProcessor")


def qwen2_vl_tied(folder: Path) -> Path:
    """As the 2B model."""
    return qwen2_vl(folder, tied=True)


ROWS = [
    Row(
        "qwen2_vl",
        qwen2_vl,
        "images of their own size, positions in a grid; videos",
        processor=load_without_video(Qwen2VLProcessor),
        sizes=SIZES,
        messages=longer_conversations,
        videos=True,
    ),
    Row(
        "qwen2_vl, tied",
        qwen2_vl_tied,
        "the same without an output layer (2B)",
        processor=load_without_video(Qwen2VLProcessor),
        sizes=SIZES,
        messages=longer_conversations,
    ),
]
