"""LLaVA: with CLIP and a Llama as 1.5, with SigLIP and a Qwen 2 as interleave, with padding to a square."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import LlavaConfig, LlavaForConditionalGeneration

from tests.families.row import Row, save
from tests.families.tokenizers import llama_tokenizer, qwen2_tokenizer

VICUNA_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ message.content[0].text + ' ' }}"
    "{% else %}{{ message.role | upper + ': ' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<image>\\n' }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{{ '</s>' if message.role == 'assistant' else ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<image>\\n' }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "image_token": "<image>",
}
QWEN_SPECIAL = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "image_token": "<image>"}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 16,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}
CLIP_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 56},
}
SIGLIP_PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 56, "width": 56},
}

LLAVA_PROCESSOR = {
    "processor_class": "LlavaProcessor",
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}


def text_config(model_type: str, tokenizer: Tokenizer, **settings: Any) -> dict[str, Any]:
    """A language model of two layers."""
    return {
        "model_type": model_type,
        "vocab_size": tokenizer.get_vocab_size() + 5,  # padded, as checkpoints are
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
        **settings,
    }


def clip_llama(folder: Path, processor: dict[str, Any] = CLIP_PROCESSOR) -> Path:
    """As LLaVA 1.5."""
    tokenizer = llama_tokenizer()
    config = LlavaConfig(
        vision_config=CLIP,
        text_config=text_config("llama", tokenizer),
        image_token_index=tokenizer.token_to_id("<image>"),
        image_seq_length=16,
    )
    return save(
        folder,
        LlavaForConditionalGeneration(config),
        tokenizer,
        processor,
        special=LLAMA_SPECIAL,
        template=VICUNA_TEMPLATE,
        end="</s>",
        processor=LLAVA_PROCESSOR,
    )


def padded(folder: Path) -> Path:
    """As LLaVA 1.5 with the image padded to a square first, which its authors did."""
    processor = {
        **CLIP_PROCESSOR,
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": True,
    }
    return clip_llama(folder, processor)


def siglip_qwen2(folder: Path) -> Path:
    """As LLaVA-Interleave: SigLIP without a class token, all tokens of the last layer."""
    tokenizer = qwen2_tokenizer(["<image>"])
    config = LlavaConfig(
        vision_config=SIGLIP,
        text_config=text_config("qwen2", tokenizer, tie_word_embeddings=True),
        image_token_index=tokenizer.token_to_id("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=16,
    )
    return save(
        folder,
        LlavaForConditionalGeneration(config),
        tokenizer,
        SIGLIP_PROCESSOR,
        special=QWEN_SPECIAL,
        template=CHATML_TEMPLATE,
        end="<|im_end|>",
        processor={
            "processor_class": "LlavaProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": "full",
            "num_additional_image_tokens": 0,
        },
    )


ROWS = [
    Row("llava", clip_llama, "CLIP, center crop; Llama (LLaVA 1.5, BakLLaVA)"),
    Row("llava, padded", padded, "CLIP, image padded to a square; Llama"),
    Row("llava, SigLIP and Qwen 2", siglip_qwen2, "SigLIP; Qwen 2 (LLaVA-Interleave)"),
]
