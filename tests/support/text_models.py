"""Tiny language models of transformers with random weights, as checkpoints without a vision part."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
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
    """Transformers' causal language model of `text_config` in float32, with random weights."""
    config = text_config(model_type, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
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
    """A stand-in for a family: it only names the tensors of a language model, alone or in Gemma 3."""
    tensors = {
        r"language_model\.model\.": "decoder.",
        r"language_model\.lm_head\.": "head.",
        r"vision_tower\.": "tower.",
        r"multi_modal_projector\.": "connector.",
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
