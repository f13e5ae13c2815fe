"""LLaVA-OneVision: SigLIP, Qwen 2, and grids that are shrunk."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)

from tests.families.llava import QWEN_SPECIAL, SIGLIP, SIGLIP_PROCESSOR, text_config
from tests.families.row import Row, load_without_video, save
from tests.families.tokenizers import qwen2_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role + ' ' }}"
    "{% for part in message.content if part.type == 'image' %}<image>{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ '\\n' + part.text }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIDE = 60
GRID = [[rows * SIDE, columns * SIDE] for rows in range(1, 7) for columns in range(1, 7)]


def build(folder: Path) -> Path:
    """As LLaVA-OneVision 0.5B: all grids to 6 x 6, of which those over 9 tiles are shrunk."""
    tokenizer = qwen2_tokenizer(["<image>", "<video>"])
    config = LlavaOnevisionConfig(
        vision_config={**SIGLIP, "image_size": SIDE},
        text_config=text_config("qwen2", tokenizer, tie_word_embeddings=True),
        image_token_index=tokenizer.token_to_id("<image>"),
        video_token_index=tokenizer.token_to_id("<video>"),
        image_grid_pinpoints=GRID,
        tie_word_embeddings=True,
    )
    return save(
        folder,
        LlavaOnevisionForConditionalGeneration(config),
        tokenizer,
        {
            **SIGLIP_PROCESSOR,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": SIDE, "width": SIDE},
            "image_grid_pinpoints": GRID,
            "do_pad": True,
        },
        special={**QWEN_SPECIAL, "video_token": "<video>"},
        template=TEMPLATE,
        end="<|im_end|>",
        processor={
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
    )


ROWS = [
    Row(
        "llava_onevision",
        build,
        "SigLIP; Qwen 2; each image of a message at any resolution",
        missing="video; its authors' layout",
        processor=load_without_video(LlavaOnevisionProcessor),
        # 1, 4 and 12 tiles, then grids that are shrunk: 20, 36 and, unpadded to an edge, 24
        sizes=((50, 40), (110, 101), (230, 170), (290, 200), (350, 340), (350, 233), (9, 340)),
    )
]
