"""Convert ``tokenizer.json`` to the tokenizer metadata of GGUF.

Two kinds of tokenizer are supported, each recognized by its structure, not by its name:

- byte-level BPE: llama.cpp knows its pre-tokenizers by name, so the structure must be one of
  `BYTE_LEVEL`;
- SentencePiece-like BPE with byte fallback, as Gemma's: spaces written ``▁``, no word splitting. llama.cpp
  runs such merges exactly under the pre-tokenizer name `SPACE_MARKED`.

Special tokens become CONTROL, which llama.cpp does not read out of plain text; other added tokens become
USER_DEFINED, which it does read there, as transformers does.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import TokenType
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.manifest import SpecialToken

GPT2_PATTERN = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def split(pattern: str) -> dict[str, Any]:
    """Return a pre-tokenizer that splits at a regular expression and keeps all text."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


BYTE_LEVEL: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": ([GPT2_PATTERN], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, GPT2_PATTERN], False),
    "llama-bpe": ([split(LLAMA3_PATTERN), BYTES_ONLY], True),
    "qwen2": ([split(QWEN2_PATTERN), BYTES_ONLY], False),
}
"""llama.cpp's name to the pre-tokenizers and whether whole words skip the merges (``ignore_merges``)."""

NAMED_TOKENS = ("bos", "eos", "unk", "pad")
SPACE = "▁"
SPACE_MARKED = "sarvam-moe"
"""llama.cpp's name for merges over text whose spaces are written ``▁``, split at newlines only."""
SPACE_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
SPACE_SPLIT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
"""Gemma's pre-tokenizer. It does nothing, since the normalizer leaves no space."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF stores it."""

    pre_tokenizer: str
    """llama.cpp's name of the pre-tokenizer."""
    tokens: tuple[str, ...]
    """One for each row of the embedding table; rows without a token are named ``[PAD<id>]``."""
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    """Left and right part with a space between, by rank."""
    special_tokens: tuple[SpecialToken, ...]
    named_ids: dict[str, int]
    """Ids of ``bos``, ``eos``, ``unk`` and ``pad``, if the tokenizer has them."""

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Write the metadata."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types([int(kind) for kind in self.types])
        writer.add_token_merges(list(self.merges))
        add_id = {
            "bos": writer.add_bos_token_id,
            "eos": writer.add_eos_token_id,
            "unk": writer.add_unk_token_id,
            "pad": writer.add_pad_token_id,
        }
        for name, token_id in self.named_ids.items():
            add_id[name](token_id)
        writer.add_add_bos_token(False)  # the chat template writes it where it belongs
        writer.add_add_eos_token(False)


def read_vocabulary(tokenizer: TokenizersBackend, rows: int) -> Vocabulary:
    """Convert a tokenizer.

    Args:
        tokenizer: transformers' tokenizer, with the tokens that the model's processor adds.
        rows: rows of the embedding table.

    Raises:
        ExportError: llama.cpp cannot reproduce the structure, or there are more tokens than rows.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise unsupported(f"its model is {model['type']}", "BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise unsupported(f"its model has {option} {model[option]!r}", "none")
    if described["normalizer"] is None:
        pre_tokenizer = byte_level_pre_tokenizer(described)
    else:
        check_space_marked(described)
        pre_tokenizer = SPACE_MARKED
    tokens: list[str | None] = [None] * rows
    types = [TokenType.UNUSED] * rows

    def put(text: str, token_id: int, kind: TokenType) -> None:
        if token_id >= rows:
            raise ExportError(
                f"the tokenizer has {text!r} as token {token_id}, the embedding table has {rows} rows; "
                f"tokenizer and weights are not of one checkpoint"
            )
        tokens[token_id], types[token_id] = text, kind

    for text, token_id in model["vocab"].items():
        put(text, token_id, vocabulary_type(text, model))
    special = []
    for added in described["added_tokens"]:
        put(added["content"], added["id"], added_type(added, model))
        if added["special"]:
            special.append(
                SpecialToken(added["content"], added["id"], added["lstrip"], added["rstrip"])
            )
    filled = tuple(text if text is not None else f"[PAD{row}]" for row, text in enumerate(tokens))
    if len(set(filled)) != rows:
        doubled, _ = Counter(filled).most_common(1)[0]
        raise ExportError(
            f"the tokenizer has two ids for {doubled!r}; llama.cpp takes one for each text"
        )
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    named_ids = {
        name: token_id
        for name in NAMED_TOKENS
        if (token_id := getattr(tokenizer, f"{name}_token_id")) is not None
    }
    return Vocabulary(pre_tokenizer, filled, tuple(types), tuple(merges), tuple(special), named_ids)


def byte_level_pre_tokenizer(described: dict[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level BPE.

    Raises:
        ExportError: it is none of `BYTE_LEVEL`.
    """
    found = described["pre_tokenizer"] or {}
    steps = found["pretokenizers"] if found.get("type") == "Sequence" else [found]
    # trim_offsets moves only the reported character positions
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    ignore_merges = bool(described["model"].get("ignore_merges"))
    for name, (known, ignores) in BYTE_LEVEL.items():
        if steps == known and ignore_merges == ignores:
            return name
    raise unsupported(
        f"its pre-tokenizer is {json.dumps(steps)} with ignore_merges {ignore_merges}",
        f"the structures that llama.cpp calls {', '.join(BYTE_LEVEL)}",
    )


def check_space_marked(described: dict[str, Any]) -> None:
    """Check that a BPE is SentencePiece-like, with byte fallback, as llama.cpp runs it exactly.

    Raises:
        ExportError: it is not.
    """
    model = described["model"]
    if described["normalizer"] != SPACE_NORMALIZER:
        raise unsupported(
            f"its normalizer is {json.dumps(described['normalizer'])}", "none, or space to ▁"
        )
    if described["pre_tokenizer"] not in (None, SPACE_SPLIT):
        raise unsupported(f"its pre-tokenizer is {json.dumps(described['pre_tokenizer'])}", "none")
    missing = [byte for byte in range(256) if byte_token(byte) not in model["vocab"]]
    if not model["byte_fallback"] or missing:
        raise unsupported("it has no token for some bytes", "byte fallback for all 256")
    for merge in model["merges"]:
        merged = "".join(merge.split(" ") if isinstance(merge, str) else merge)
        if "\n" in merged.strip("\n") or (merged.strip("\n") and "\n" in merged):
            raise unsupported(f"it merges a newline with other text ({merged!r})", "newlines apart")


def vocabulary_type(text: str, model: dict[str, Any]) -> TokenType:
    """Return the type of a token of the vocabulary."""
    if model["byte_fallback"] and text.startswith("<0x") and text in BYTE_TOKENS:
        return TokenType.BYTE
    if text == model["unk_token"] and model["byte_fallback"]:
        return TokenType.UNKNOWN
    return TokenType.NORMAL


def added_type(added: dict[str, Any], model: dict[str, Any]) -> TokenType:
    """Return the type of an added token, which is found in the text before any merge.

    A token with ``▁`` stands for spaces, which merges produce, too. It stays NORMAL, so that llama.cpp
    writes it as spaces.

    Raises:
        ExportError: the token has a rule about the text around it that llama.cpp does not have.
    """
    text = added["content"]
    if added["special"]:
        return TokenType.UNKNOWN if text == model["unk_token"] else TokenType.CONTROL
    for rule in ("single_word", "lstrip", "rstrip"):
        if added[rule]:
            raise unsupported(f"its added token {text!r} has the rule {rule}", "none")
    if SPACE in text and text in model["vocab"]:
        return TokenType.NORMAL
    return TokenType.USER_DEFINED


def byte_token(byte: int) -> str:
    """Return SentencePiece's name of a byte."""
    return f"<0x{byte:02X}>"


BYTE_TOKENS = frozenset(map(byte_token, range(256)))


def unsupported(found: str, wanted: str) -> ExportError:
    """Return the error for a tokenizer that llama.cpp cannot reproduce."""
    return ExportError(
        f"llama.cpp cannot reproduce this tokenizer: {found}, edgevlm can export {wanted}; take the "
        f"tokenizer of the model's family"
    )
