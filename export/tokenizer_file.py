"""Write the tokenizer file of a decoder that runs without llama.cpp.

It is the checkpoint's ``tokenizer.json``, changed so that it converts what `edgevlm.inputs.plain_text` passes
on: plain text that is normalized and has its leading space. `edgevlm.runtimes.onnx.vocabulary` reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.export.pre_tokenizers import (
    BYTES_ONLY,
    DOUBLE_FIRST_MARK,
    NFC,
    PREPEND,
    Step,
    list_steps,
)
from edgevlm.export.tokenizer import Vocabulary

DONE_BEFORE = (NFC, PREPEND, DOUBLE_FIRST_MARK)
"""Normalizers whose work `edgevlm.inputs.plain_text` does."""
WITHOUT_TEXT = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)
"""Types of tokens that a text does not spell, and that spell none."""


def write_tokenizer_file(path: Path, tokenizer: TokenizersBackend, vocabulary: Vocabulary) -> None:
    """Write the tokenizer file.

    Args:
        path: the new file.
        tokenizer: of the checkpoint, with the tokens that the model's processor adds.
        vocabulary: what was read from it.

    Raises:
        ExportError: the library tokenizers numbers the tokens in another way.
    """
    described = adapt(json.loads(tokenizer.backend_tokenizer.to_str()), vocabulary)
    written = json.dumps(described, ensure_ascii=False, separators=(",", ":"))
    check_numbers(Tokenizer.from_str(written), vocabulary)
    path.write_text(written, encoding="utf-8")


def adapt(described: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the content of the file.

    Args:
        described: content of the checkpoint's ``tokenizer.json``.
        vocabulary: what was read from it, so its text rules are known.
    """
    normalizers = list_steps(described["normalizer"], "normalizers")
    pre_tokenizers = list_steps(described["pre_tokenizer"], "pretokenizers")
    kept = [step for step in normalizers if step not in DONE_BEFORE]
    splits = [BYTES_ONLY] if vocabulary.splitting else [*map(without_prefix, pre_tokenizers)]
    added = {token["id"]: token for token in described["added_tokens"]}
    for row, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind in WITHOUT_TEXT:
            added[row] = special_token(row, text)
    return {
        **described,
        "truncation": None,
        "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {**step, "trim_offsets": True} if step["type"] == "ByteLevel" else step
                for step in splits
            ],
        }
        if splits
        else None,
        "post_processor": None,
        "decoder": None,
        "added_tokens": [added[row] for row in sorted(added)],
    }


def without_prefix(step: Step) -> Step:
    """Return a pre-tokenizer that puts no space before a text."""
    return {**step, "prepend_scheme": "never"} if step["type"] == "Metaspace" else step


def special_token(row: int, text: str) -> dict[str, Any]:
    """Return the description of a special token."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": row, "content": text, **flags, "special": True}


def check_numbers(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Check that the library gives each token its id.

    Raises:
        ExportError: it does not; the first such token is named.
    """
    for row, text in enumerate(vocabulary.tokens):
        if tokenizer.id_to_token(row) != text:
            raise ExportError(
                f"the library tokenizers has {tokenizer.id_to_token(row)!r} as token {row}, the checkpoint "
                f"{text!r}; its tokens must be numbered without a gap"
            )
    if tokenizer.get_vocab_size() != len(vocabulary.tokens):
        raise ExportError(
            f"the library tokenizers has {tokenizer.get_vocab_size()} tokens, the checkpoint "
            f"{len(vocabulary.tokens)}; two of its tokens have one text"
        )
