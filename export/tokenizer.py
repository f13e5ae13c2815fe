"""Convert ``tokenizer.json`` to the tokenizer metadata of GGUF.

Byte-level BPE and SentencePiece-like BPE with byte fallback are supported, with the text rules that
`edgevlm.export.pre_tokenizers` knows.

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
from edgevlm.export.pre_tokenizers import (
    SPACE,
    Normalization,
    SpacePrefix,
    Splitting,
    byte_token,
    read_text_rules,
    unsupported,
)
from edgevlm.manifest import SpecialToken

NAMED_TOKENS = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF stores it."""

    pre_tokenizer: str
    """llama.cpp's name of the pre-tokenizer."""
    normalization: Normalization | None
    space_prefix: SpacePrefix
    """Both as of `edgevlm.inputs.plain_text.PlainText`, like `added_tokens`."""
    tokens: tuple[str, ...]
    """One for each row of the embedding table; rows without a token are named ``[PAD<id>]``."""
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    """Left and right part with a space between, by rank."""
    special_tokens: tuple[SpecialToken, ...]
    named_ids: dict[str, int]
    """Ids of ``bos``, ``eos``, ``unk`` and ``pad``, if the tokenizer has them."""
    begin_token_ids: tuple[int, ...]
    """What the tokenizer puts before a text, such as ``bos``."""
    added_tokens: tuple[str, ...]
    """Tokens that are not special, found in plain text before it is normalized, gets a space or is split."""
    splitting: Splitting | None
    """As of `edgevlm.inputs.plain_text.PlainText`."""

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
        ExportError: llama.cpp cannot reproduce the structure, the tokenizer puts tokens behind a text, or
            there are more tokens than rows.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise unsupported(f"its model is {model['type']}", "BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise unsupported(f"its model has {option} {model[option]!r}", "none")
    rules = read_text_rules(described)
    tokens: list[str | None] = [None] * rows
    types = [TokenType.UNUSED] * rows

    def put(text: str, token_id: int, kind: TokenType) -> None:
        if token_id >= rows:
            raise ExportError(
                f"the tokenizer has {text!r} as token {token_id}, the embedding table has {rows} rows; "
                f"tokenizer and weights are not of one checkpoint"
            )
        if tokens[token_id] not in (None, text):
            raise ExportError(
                f"the tokenizer has the id {token_id} for {tokens[token_id]!r} and for {text!r}; its files "
                f"are not of one checkpoint"
            )
        tokens[token_id], types[token_id] = text, kind

    for text, token_id in model["vocab"].items():
        put(text, token_id, vocabulary_type(text, model))
    special, found_first = [], []
    for added in described["added_tokens"]:
        kind = added_type(added, model)
        put(added["content"], added["id"], kind)
        if added["normalized"] and rules.changes_tokens:
            raise unsupported(
                f"it searches the token {added['content']!r} after normalization, which puts a space before "
                f"it",
                "tokens that are searched before it (normalized: false)",
            )
        if added["special"]:
            special.append(
                SpecialToken(added["content"], added["id"], added["lstrip"], added["rstrip"])
            )
        elif kind == TokenType.USER_DEFINED and (
            rules.space_prefix != "never"
            or (rules.normalization is not None and not added["normalized"])
            or rules.splitting is not None
        ):
            found_first.append(added["content"])
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
    return Vocabulary(
        pre_tokenizer=rules.pre_tokenizer,
        normalization=rules.normalization,
        space_prefix=rules.space_prefix,
        tokens=filled,
        types=tuple(types),
        merges=tuple(merges),
        special_tokens=tuple(special),
        named_ids=named_ids,
        begin_token_ids=read_begin_tokens(tokenizer),
        added_tokens=tuple(found_first),
        splitting=rules.splitting,
    )


def read_begin_tokens(tokenizer: TokenizersBackend) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts before a text.

    Raises:
        ExportError: it puts tokens behind the text, where an answer must follow.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    complete = tokenizer("a")["input_ids"]
    begin = complete[: len(complete) - len(plain)]
    if complete != [*begin, *plain]:
        raise unsupported(
            f"it makes {tokenizer.convert_ids_to_tokens(complete)} of 'a', with tokens behind the text",
            "tokens before a text only",
        )
    return tuple(begin)


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


BYTE_TOKENS = frozenset(map(byte_token, range(256)))
