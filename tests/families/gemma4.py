"""Gemma 4 E2B: images of their own aspect ratio, layers of two kinds, and an embedding for each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4Processor,
    ProcessorMixin,
)

from tests.families.qwen2_vl import longer_conversations
from tests.families.row import Row, save
from tests.support.checkpoints import gemma_tokenizer

TEMPLATE = (
    "{%- macro without_thoughts(text) -%}{%- set found = namespace(text='') -%}"
    "{%- for part in text.split('<channel|>') -%}"
    "{%- set found.text = found.text + part.split('<|channel>')[0] -%}{%- endfor -%}"
    "{{- found.text | trim -}}{%- endmacro -%}"
    "{{- bos_token -}}{%- set turns = messages -%}"
    "{%- if messages[0]['role'] in ['system', 'developer'] -%}"
    "{{- '<|turn>system\n' + messages[0]['content'] | trim + '<turn|>\n' -}}"
    "{%- set turns = messages[1:] -%}{%- endif -%}"
    "{%- for message in turns -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{- '<|turn>' + role + '\n' -}}"
    "{%- if message['content'] is string -%}"
    "{{- without_thoughts(message['content']) if role == 'model' else message['content'] | trim -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}"
    "{{- without_thoughts(part['text']) if role == 'model' else part['text'] | trim -}}"
    "{%- elif part['type'] == 'image' -%}{{- '<|image|>' -}}"
    "{%- elif part['type'] == 'audio' -%}{{- '<|audio|>' -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<turn|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|turn>model\n' -}}{%- endif -%}"
)
"""The layout of the published one, without tools."""
SPECIAL = [
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|image>",
    "<image|>",
    "<|image|>",
    "<|audio>",
    "<audio|>",
    "<|audio|>",
]
SPECIAL_NAMES = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "image_token": "<|image|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "audio_token": "<|audio|>",
}
IMAGE_PROCESSOR = {
    "image_processor_type": "Gemma4ImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
    "max_soft_tokens": 70,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
"""As published, with the least number of embeddings that transformers takes, in place of 280."""
SIZES = ((225, 140), (60, 130), (112, 112), (400, 30), (9, 5), (1000, 700), (300, 4), (5, 640))
"""Each becomes about 70 embeddings. The last two become one line and one column of blocks."""
SLIDING, FULL = "sliding_attention", "full_attention"
LAYERS = [SLIDING, SLIDING, SLIDING, FULL, SLIDING, FULL]


def gemma4(folder: Path) -> Path:
    """The last two layers of six take keys and values of the two before. An image has more than a window."""
    tokenizer = gemma_tokenizer(700, SPECIAL, added=())
    ids = tokenizer.token_to_id
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids("<bos>"))]
    )
    rows = tokenizer.get_vocab_size() + 3
    config = Gemma4Config(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "position_embedding_size": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
            "use_clipped_linears": True,
        },
        text_config={
            "vocab_size": rows,
            "vocab_size_per_layer_input": rows,
            "hidden_size": 64,
            "hidden_size_per_layer_input": 16,
            "intermediate_size": 128,
            "num_hidden_layers": len(LAYERS),
            "layer_types": LAYERS,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "global_head_dim": 32,
            "max_position_embeddings": 2048,
            "sliding_window": 12,
            "final_logit_softcapping": 10.0,
            "bos_token_id": ids("<bos>"),
            "eos_token_id": ids("<eos>"),
            "pad_token_id": ids("<pad>"),
        },
        audio_config=AUDIO,
        boi_token_id=ids("<|image>"),
        eoi_token_id=ids("<image|>"),
        image_token_id=ids("<|image|>"),
        boa_token_id=ids("<|audio>"),
        eoa_token_index=ids("<audio|>"),
        audio_token_id=ids("<|audio|>"),
        video_token_id=None,
    )
    return save(
        folder,
        Gemma4ForConditionalGeneration(config),
        tokenizer,
        IMAGE_PROCESSOR,
        special=SPECIAL_NAMES,
        template=TEMPLATE,
        end="<turn|>",
        processor={"processor_class": "Gemma4Processor"},
    )


AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [8, 4],
    "output_proj_dims": 32,
}


def load_images_only(checkpoint: Path) -> Any:
    """transformers' processor without its part for video, which needs torchvision, and that for audio."""

    class TwoParts(ProcessorMixin):
        def __init__(self, image_processor: Any, tokenizer: Any, **others: Any) -> None:
            super().__init__(image_processor, tokenizer, chat_template=others["chat_template"])

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    class ImagesOnly(Gemma4Processor, TwoParts):
        pass

    kind: Any = ImagesOnly
    return kind(
        None,
        AutoImageProcessor.from_pretrained(checkpoint, backend="pil"),
        AutoTokenizer.from_pretrained(checkpoint),
        None,
        chat_template=(checkpoint / "chat_template.jinja").read_text(encoding="utf-8"),
    )


ROWS = [
    Row(
        name,
        gemma4,
        works,
        "audio, video; 26B-A4B, 31B",
        processor=load_images_only,
        sizes=SIZES,
        messages=longer_conversations,
        decoder=decoder,
    )
    for name, works, decoder in (
        (
            "gemma4",
            "images of their own aspect ratio; Gemma 4 with embeddings for each layer (E2B, E4B)",
            "f16",
        ),
        ("gemma4, ONNX Runtime", "the same, decoder in ONNX Runtime", "fp32"),
    )
]
