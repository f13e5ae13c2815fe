"""InternVL: with Qwen 2 as 2.5 and 3, with Qwen 3 as 3.5, and with a Llama that was an InternLM 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor

from edgevlm.export.families import images_only
from tests.families.llava import text_config
from tests.families.row import Row, save
from tests.families.tokenizers import llama_tokenizer, qwen2_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADDED = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<box>", "</box>"]
IMAGE_PROCESSOR = {
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "crop_to_patches": False,  # the processor turns it on
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_patches": 12,
    "min_patches": 1,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 56, "width": 56},
}
SIZES = ((150, 100), (60, 130), (40, 40), (300, 60), (5, 9), (200, 190))


def load_processor(checkpoint: Path) -> InternVLProcessor:
    """transformers' own without video, with its image processor for Pillow."""
    return images_only(InternVLProcessor).from_pretrained(checkpoint, backend="pil")


def internvl(
    folder: Path,
    tokenizer: Tokenizer,
    text: dict[str, Any],
    special: dict[str, str],
    **vision: Any,
) -> Path:
    """Tiles of 4 tokens, up to 12 and an overview."""
    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [56, 56],
            "patch_size": [14, 14],
            **vision,
        },
        text_config=text,
        image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return save(
        folder,
        InternVLForConditionalGeneration(config),
        tokenizer,
        IMAGE_PROCESSOR,
        special={
            **special,
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        template=TEMPLATE,
        end="<|im_end|>",
        processor={"processor_class": "InternVLProcessor", "image_seq_length": 4},
    )


def qwen2(folder: Path) -> Path:
    """As InternVL 2.5 and 3."""
    tokenizer = qwen2_tokenizer(ADDED)
    text = text_config("qwen2", tokenizer)
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return internvl(folder, tokenizer, text, special, attention_bias=True)


def qwen3(folder: Path) -> Path:
    """As InternVL 3.5, with the norms of the 6B tower."""
    tokenizer = qwen2_tokenizer(ADDED)
    text = text_config("qwen3", tokenizer, head_dim=32)
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return internvl(
        folder,
        tokenizer,
        text,
        special,
        norm_type="rms_norm",
        use_qk_norm=True,
        use_mean_pooling=False,
    )


def llama(folder: Path) -> Path:
    """As InternVL 2.5 with an InternLM 2, which the conversion turns into a Llama."""
    tokenizer = llama_tokenizer(["<|im_start|>", "<|im_end|>", *ADDED])
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    text = text_config("llama", tokenizer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return internvl(folder, tokenizer, text, special, attention_bias=True)


MISSING = "video"
CROPPED = {"crop_to_patches": True}
ROWS = [
    Row(
        name,
        build,
        works,
        MISSING,
        processor=load_processor,
        sizes=SIZES,
        processor_images=CROPPED,
    )
    for name, build, works in (
        ("internvl", qwen2, "grid by aspect ratio, overview; Qwen 2 (InternVL 2.5, 3)"),
        ("internvl, Qwen 3", qwen3, "the same with RMS norms and norms of heads; Qwen 3 (3.5)"),
        ("internvl, Llama", llama, "the same with a Llama (2.5 with InternLM 2)"),
    )
]
