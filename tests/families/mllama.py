"""Llama 3.2 Vision, whose layers of cross-attention look at images."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from edgevlm.export.pre_tokenizers import LLAMA3_PATTERN
from tests.families.row import IMAGE, Message, Row, conversations, save, text
from tests.families.row import load_model as load_plain_model
from tests.families.tokenizers import byte_level_tokenizer

BEGIN = "<|begin_of_text|>"
SPECIAL = (
    BEGIN,
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
    "<|python_tag|>",
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|image|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
IMAGE_PROCESSOR = {
    "image_processor_type": "MllamaImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_image_tiles": 4,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 56, "width": 56},
}
SIZES = ((150, 100), (60, 130), (40, 40), (300, 60), (5, 99), (110, 110))
"""Canvases of 2 x 2, 3 x 1, 1 x 1, 1 x 4, 4 x 1 and 2 x 2 tiles; those of the first ones are not filled."""


def mllama(folder: Path) -> Path:
    """A ViT of a local and a global part, and a Llama whose second and fourth layer look at images."""
    tokenizer = byte_level_tokenizer([LLAMA3_PATTERN], [*SPECIAL, "<|image|>"], 700)
    tokenizer.model.ignore_merges = True
    ids = tokenizer.token_to_id
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, ids(BEGIN))]
    )
    count = tokenizer.get_vocab_size() - 1
    assert ids("<|image|>") == count, "the image token must be behind the vocabulary"
    config = MllamaConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "intermediate_layers_indices": [0, 2],
            "vision_output_dim": 96,
        },
        text_config={
            "vocab_size": count,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "cross_attention_layers": [1, 3],
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "bos_token_id": ids(BEGIN),
            "eos_token_id": ids("<|eot_id|>"),
            "pad_token_id": ids("<|finetune_right_pad_id|>"),
        },
        image_token_index=count,
    )
    model = MllamaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.shape == (
                1,
            ):  # a gate, which begins closed, so that images would count little
                parameter.fill_(1.0)
    return save(
        folder,
        model,
        tokenizer,
        IMAGE_PROCESSOR,
        special={
            "bos_token": BEGIN,
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
        },
        template=TEMPLATE,
        end="<|eot_id|>",
        processor={"processor_class": "MllamaProcessor"},
    )


def load_model(checkpoint: Path) -> Any:
    """transformers' model, and what its layers look at of an image: the tiles that are there."""
    model = load_plain_model(checkpoint)

    def get_image_features(
        self: Any,
        pixel_values: torch.Tensor,
        aspect_ratio_ids: torch.Tensor,
        aspect_ratio_mask: torch.Tensor,
        **settings: Any,
    ) -> BaseModelOutputWithPooling:
        states = self.vision_model(pixel_values, aspect_ratio_ids, aspect_ratio_mask)
        rows = self.multi_modal_projector(states.last_hidden_state)
        return BaseModelOutputWithPooling(pooler_output=[rows[aspect_ratio_mask.bool()]])

    model.base_model.get_image_features = types.MethodType(get_image_features, model.base_model)
    return model


def questions() -> list[tuple[list[Message], int]]:
    """As of other families, and a third image that stands beside the second one."""
    question = {"role": "user", "content": [IMAGE, text("What is this?")]}
    answer = {"role": "assistant", "content": [text("A picture.")]}
    more = {"role": "user", "content": [IMAGE, IMAGE, text("And these?")]}
    return [*conversations(), ([question, answer, more], 3)]


ROWS = [
    Row(
        "mllama",
        mllama,
        "one to four tiles, several images; ViT of tiles; Llama with cross-attention, in ONNX Runtime only",
        "llama.cpp; prompts with other images share nothing in the KV cache",
        model=load_model,
        sizes=SIZES,
        messages=questions,
        decoder="fp32",
    )
]
