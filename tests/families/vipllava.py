"""ViP-LLaVA: features of several layers of CLIP, a layer norm, and a Llama."""

from __future__ import annotations

from pathlib import Path

from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

from tests.families.llava import (
    CLIP,
    CLIP_PROCESSOR,
    LLAMA_SPECIAL,
    LLAVA_PROCESSOR,
    text_config,
)
from tests.families.row import Row, save
from tests.families.tokenizers import llama_tokenizer

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ message.content[0].text }}"
    "{% else %}###{{ {'user': 'Human', 'assistant': 'Assistant'}[message.role] }}: "
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<image>\\n' }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}###Assistant:{% endif %}"
)


def build(folder: Path) -> Path:
    """As ViP-LLaVA 7B, with as many layers as the list of feature layers needs."""
    tokenizer = llama_tokenizer()
    config = VipLlavaConfig(
        vision_config={**CLIP, "num_hidden_layers": 4},
        text_config=text_config("llama", tokenizer),
        image_token_index=tokenizer.token_to_id("<image>"),
        vision_feature_layer=[-2, -3, 1],
        image_seq_length=16,
    )
    return save(
        folder,
        VipLlavaForConditionalGeneration(config),
        tokenizer,
        CLIP_PROCESSOR,
        special=LLAMA_SPECIAL,
        template=TEMPLATE,
        end="</s>",
        processor=LLAVA_PROCESSOR,
    )


ROWS = [Row("vipllava", build, "CLIP, features of several layers; Llama")]
