"""Gemma 3: with a sliding window shorter than an image, and with pan and scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tests.families.row import Row, save
from tests.support.checkpoints import gemma_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else 'user' }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<start_of_image>' }}"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SPECIAL = [
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
]


IMAGE_PROCESSOR = {
    "image_processor_type": "Gemma3ImageProcessor",
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 56, "width": 56},
}
SPECIAL_NAMES = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}


def gemma3(folder: Path, **image_settings: Any) -> Path:
    """A window of 12 positions, where an image has 16."""
    tokenizer = gemma_tokenizer(700, SPECIAL, added=())
    ids = tokenizer.token_to_id
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids("<bos>"))]
    )
    config = Gemma3Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 7,
            "vision_use_head": False,
        },
        text_config={
            "vocab_size": tokenizer.get_vocab_size() + 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "max_position_embeddings": 2048,
            "sliding_window": 12,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "factor": 8.0,
                    "rope_theta": 1_000_000.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            "bos_token_id": ids("<bos>"),
            "eos_token_id": ids("<eos>"),
            "pad_token_id": ids("<pad>"),
        },
        mm_tokens_per_image=16,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )
    return save(
        folder,
        Gemma3ForConditionalGeneration(config),
        tokenizer,
        {**IMAGE_PROCESSOR, **image_settings},
        special=SPECIAL_NAMES,
        template=TEMPLATE,
        end="<end_of_turn>",
        processor={"processor_class": "Gemma3Processor", "image_seq_length": 16},
    )


PAN_AND_SCAN = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 32,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


def pan_and_scan(folder: Path) -> Path:
    """With crops along the longer side."""
    return gemma3(folder, **PAN_AND_SCAN)


ROWS = [
    Row("gemma3", gemma3, "SigLIP; Gemma 3, each image attends to itself both ways"),
    Row(
        "gemma3, pan and scan",
        pan_and_scan,
        "the same with crops of long images",
        sizes=((150, 100), (60, 130), (40, 40), (300, 64)),
        processor_images=PAN_AND_SCAN,
    ),
]
