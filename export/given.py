"""A decoder that the user already has as GGUF, taken into the bundle as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
from gguf import LlamaFileType
from transformers import PretrainedConfig

from edgevlm.errors import ExportError
from edgevlm.export.tokenizer import Vocabulary


def copy_given_decoder(
    source: Path, folder: Path, vocabulary: Vocabulary, config: PretrainedConfig
) -> dict[str, Path]:
    """Check that a GGUF is the checkpoint's language model, and copy it.

    Returns:
        llama.cpp's type to the copy.

    Raises:
        ExportError: no GGUF, another width, or another vocabulary than the checkpoint's.
    """
    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError) as error:
        raise ExportError(f"{source} is no GGUF file: {error}") from error
    architecture = field(reader, "general.architecture")
    width = field(reader, f"{architecture}.embedding_length")
    expected = config.get_text_config().hidden_size
    if width != expected:
        raise ExportError(
            f"{source} has embeddings of width {width}, the checkpoint's language model {expected}; it is "
            f"another model"
        )
    tokens = field(reader, "tokenizer.ggml.tokens")
    for token_id, (theirs, ours) in enumerate(zip(tokens, vocabulary.tokens, strict=False)):
        if theirs != ours and not ours.startswith("[PAD"):
            raise ExportError(
                f"{source} has {theirs!r} as token {token_id}, the checkpoint {ours!r}; it was converted "
                f"from another tokenizer"
            )
    if len(tokens) != len(vocabulary.tokens):
        raise ExportError(
            f"{source} has {len(tokens)} tokens, the checkpoint {len(vocabulary.tokens)}"
        )
    name = LlamaFileType(field(reader, "general.file_type")).name.lower()
    file_type = name.removeprefix("mostly_").removeprefix("all_")
    copy = folder / f"decoder.{file_type}.gguf"
    shutil.copyfile(source, copy)
    return {file_type: copy}


def field(reader: gguf.GGUFReader, key: str) -> Any:
    """A metadata value.

    Raises:
        ExportError: the file has none of that name.
    """
    found = reader.get_field(key)
    if found is None:
        raise ExportError(f"the GGUF file has no {key}; it was not written for llama.cpp's models")
    return found.contents()
