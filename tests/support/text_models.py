"""Tiny language models of transformers with random weights, as checkpoints without a vision part."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from edgevlm.export import decoder
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import Family, find_family
from edgevlm.export.tokenizer import read_vocabulary
from edgevlm.export.weights import read_entries
from tests.support.checkpoints import byte_level_tokenizer, scatter

VOCABULARY = 512
IMAGE, VIDEO, IMAGE_START, IMAGE_END = 508, 509, 510, 511
"""Special tokens of the vision-language models."""


def text_config(model_type: str, *, width: int = 64, **settings: Any) -> PretrainedConfig:
    """The configuration of a small causal language model."""
    config: PretrainedConfig = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
            **settings,
        },
    )
    return config


def text_model(model_type: str, **settings: Any) -> PreTrainedModel:
    """Transformers' causal language model of `text_config` in float32, with random weights.

    The language models of Qwen2-VL to 3-VL and PaddleOCR-VL exist with a vision tower only.
    """
    config = text_config(model_type, **settings)
    if model_type.endswith("_vl_text"):
        return vision_language_model(config)
    with torch.random.fork_rng():  # Qwen3.5's decays are around what transformers draws
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    scatter(model, 0)
    return model


def vision_language_model(text: PretrainedConfig, deepstack: int = 0) -> PreTrainedModel:
    """A Qwen2-VL, 2.5-VL, 3-VL or 3.5, or a PaddleOCR-VL, with a small tower of 4-pixel patches.

    Each merges 2 x 2 patches.

    Args:
        deepstack: layers of a Qwen3-VL that add features of the tower.
    """
    width = {"out_hidden_size": text.hidden_size}
    tower: dict[str, Any] = {"depth": max(deepstack, 2), "num_heads": 2, "patch_size": 4, **width}
    if text.model_type == "paddleocr_vl_text":
        tower = {"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 4}
        tower |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    elif text.model_type == "qwen2_vl_text":
        tower |= {"embed_dim": 32, "hidden_size": text.hidden_size, "mlp_ratio": 2}
    else:
        tower |= {"hidden_size": 32, "intermediate_size": 64}
    if text.model_type in ("qwen3_vl_text", "qwen3_5_text"):
        tower |= {"num_position_embeddings": 16}
    if text.model_type == "qwen3_vl_text":
        tower |= {"deepstack_visual_indexes": list(range(deepstack))}
    config = AutoConfig.for_model(
        text.model_type.removesuffix("_text"),
        text_config=text.to_dict(),
        vision_config=tower,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=IMAGE_START,
        vision_end_token_id=IMAGE_END,
        tie_word_embeddings=getattr(text, "tie_word_embeddings", False),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config).eval()
    scatter(model, 0)
    return model


class TextCheckpoint(Checkpoint):
    """A folder that holds a language model alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder.name
        self.revision = None
        self.config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.tensors = read_entries(folder)


def text_family() -> Family:
    """A stand-in for a family: it only names the tensors of a language model, alone or with a tower."""
    tensors = {
        r"model\.language_model\.": "decoder.",
        r"(model\.)?visual\.": "tower.",
        r"language_model\.model\.": "decoder.",
        r"language_model\.lm_head\.": "head.",
        r"vision_tower\.": "tower.",
        r"multi_modal_projector\.|mlp_AR\.": "connector.",
        r"model\.": "decoder.",
        r"lm_head\.": "head.",
    }
    return dataclasses.replace(find_family("smolvlm"), tensors=tensors)


def write_text_model(model: PreTrainedModel, folder: Path, *, file_type: str = "f16") -> Path:
    """Save a language model in a folder and write its GGUF file as an export does."""
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Random weights\n")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(VOCABULARY))
    path = folder / f"decoder.{file_type}.gguf"
    decoder.write_decoder(
        TextCheckpoint(folder),
        text_family(),
        read_vocabulary(tokenizer, VOCABULARY),
        path,
        file_type=file_type,
        progress=False,
    )
    return path
