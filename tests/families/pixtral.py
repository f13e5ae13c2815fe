"""Pixtral, a LLaVA with images of their own size, and Mistral 3, which merges its patches."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.pixtral import image_processing_pil_pixtral

from tests.families.llava import text_config
from tests.families.row import Row, save
from tests.families.tokenizers import tekken_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}[SYSTEM_PROMPT]{{ message.content[0].text }}[/SYSTEM_PROMPT]"
    "{% elif message.role == 'user' %}[INST]{% for part in message.content %}"
    "{% if part.type == 'image' %}[IMG]{% else %}{{ part.text }}{% endif %}{% endfor %}[/INST]"
    "{% else %}{{ message.content[0].text }}{{ eos_token }}{% endif %}{% endfor %}"
)
ADDED = [
    "[INST]",
    "[/INST]",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": None, "pad_token": "<|endoftext|>"}
SIZES = ((120, 75), (31, 70), (56, 56), (230, 20), (9, 5), (500, 350))
"""The last is larger than the longest edge, the others are not."""


def tower(patch: int) -> dict[str, Any]:
    return {
        "model_type": "pixtral",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": patch,
        "image_size": 240,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
    }


def write(
    folder: Path, model: PreTrainedModel, tokenizer: Tokenizer, patch: int, merge: int
) -> Path:
    return save(
        folder,
        model,
        tokenizer,
        {
            "image_processor_type": "PixtralImageProcessor",
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "patch_size": {"height": patch, "width": patch},
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"longest_edge": 240},
        },
        special=SPECIAL,
        template=TEMPLATE,
        end="</s>",
        processor={
            "processor_class": "PixtralProcessor",
            "patch_size": patch,
            "spatial_merge_size": merge,
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
    )


def pixtral(folder: Path) -> Path:
    """As Pixtral 12B in transformers' format."""
    tokenizer = tekken_tokenizer(ADDED)
    config = LlavaConfig(
        vision_config=tower(16),
        text_config=text_config("mistral", tokenizer, head_dim=24, sliding_window=None),
        image_token_index=tokenizer.token_to_id("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        multimodal_projector_bias=True,
        image_seq_length=1,
    )
    return write(folder, LlavaForConditionalGeneration(config), tokenizer, 16, 1)


def mistral3(folder: Path, *, kind: str = "mistral", tied: bool = False, **text: Any) -> Path:
    """As Mistral Small 3.1."""
    tokenizer = tekken_tokenizer(ADDED)
    settings = {"head_dim": 24, "sliding_window": None, "tie_word_embeddings": tied, **text}
    config = Mistral3Config(
        vision_config=tower(14),
        text_config=text_config(kind, tokenizer, **settings),
        image_token_index=tokenizer.token_to_id("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
        tie_word_embeddings=tied,
    )
    return write(folder, Mistral3ForConditionalGeneration(config), tokenizer, 14, 2)


def ministral3(folder: Path) -> Path:
    """As the 3B model. Positions are scaled, and from the 32nd on queries, too."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "max_position_embeddings": 512,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    return mistral3(folder, kind="ministral3", tied=True, rope_parameters=rope)


def load_pixtral(checkpoint: Path) -> Any:
    """transformers' processor. Its module imports a function from one that needs torchvision."""
    name = "transformers.models.pixtral.image_processing_pixtral"
    stand_in: Any = ModuleType(name)
    resize = image_processing_pil_pixtral.get_resize_output_image_size
    stand_in.get_resize_output_image_size = resize
    replaced = sys.modules.get(name)
    sys.modules[name] = stand_in
    try:
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor
    finally:
        del sys.modules[name]
        if replaced is not None:
            sys.modules[name] = replaced
    return PixtralProcessor.from_pretrained(
        checkpoint,
        image_processor=AutoImageProcessor.from_pretrained(checkpoint, backend="pil"),
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
    )


ROWS = [
    Row(
        "llava, Pixtral",
        pixtral,
        "images of their own size, a token after each line; Mistral (Pixtral 12B)",
        processor=load_pixtral,
        sizes=SIZES,
    ),
    Row(
        "mistral3",
        mistral3,
        "the same, patches are merged (Mistral Small 3.1, 3.2)",
        processor=load_pixtral,
        sizes=(*SIZES[:4], (9, 40), SIZES[5]),  # transformers fails for an image of one embedding
        processor_images={"patch_size": 28},
    ),
    Row(
        "mistral3, Ministral",
        ministral3,
        "the same with scaled positions (Ministral 3)",
        processor=load_pixtral,
        sizes=(*SIZES[:4], (9, 40), SIZES[5]),  # transformers fails for an image of one embedding
        processor_images={"patch_size": 28},
    ),
]
