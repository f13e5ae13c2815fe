"""Check that the vocabulary of an existing GGUF file splits text as the checkpoint's tokenizer does.

Tokens, types, merges and pre-tokenizer must agree, since tokenization and the text of answers depend on
them. llama.cpp's converter differs from `edgevlm.export.tokenizer` where this changes neither, and its files
are accepted: rows without a token, tokens that look special, Gemma as a SentencePiece vocabulary. The ids of
special tokens (``bos`` and others) are not compared: edgevlm takes them from the manifest and lets llama.cpp
add none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import EdgeVLMError, ExportError
from edgevlm.export.pre_tokenizers import SPACE, SPACE_MARKED, TEKKEN
from edgevlm.export.text_battery import check_tokenizer
from edgevlm.export.tokenizer import Vocabulary
from edgevlm.runtimes.llama_cpp.guard import check_file

PRE_TOKENIZERS: Mapping[str, frozenset[str]] = {
    name: frozenset(names.split())
    for name, names in {
        "gpt-2": "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert "
        "jina-v1-en jina-v2-code roberta-bpe exaone4 mpt olmo jais trillion granite-docling",
        "smollm": "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        "llama-bpe": "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        "dbrx": "dbrx smaug-bpe chatglm-bpe",
        "qwen2": "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2",
        "qwen35": "qwen35",
        "deepseek-llm": "deepseek-llm",
        TEKKEN: f"{TEKKEN} superbpe pixtral",
        SPACE_MARKED: SPACE_MARKED,
    }.items()
}
"""Our name of a pre-tokenizer to llama.cpp's names for the same one.

Text for Tekken is split before llama.cpp gets it, so it may have any name that is given to this vocabulary:
``superbpe`` by earlier versions of edgevlm, ``pixtral`` for checkpoints that name Llama 3's rule by mistake.
"""
AGAIN = (
    "convert it again from this checkpoint with llama.cpp's convert_hf_to_gguf.py, or leave out "
    "--decoder-gguf, and edgevlm writes the decoder"
)
KINDS: Mapping[int, TokenType] = {int(kind): kind for kind in TokenType}
UNREAD = frozenset((TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED))
"""Types that llama.cpp does not find in plain text."""


def check_vocabulary(
    path: Path, fields: Mapping[str, Any], vocabulary: Vocabulary, chat_template: str
) -> None:
    """Compare the vocabulary of the file with the one that edgevlm would write.

    Args:
        chat_template: the chat template, which may need a token that looks special.

    Raises:
        ExportError: a difference changes tokenization; the first one is named.
    """
    tokens = field(path, fields, "tokens")
    types = field(path, fields, "token_type")
    if len(tokens) != len(vocabulary.tokens) or len(types) != len(tokens):
        raise ExportError(
            f"{path} has {len(tokens)} tokens and {len(types)} types, the checkpoint "
            f"{len(vocabulary.tokens)}; {AGAIN}"
        )
    pairs = zip(vocabulary.tokens, vocabulary.types, strict=True)
    for token_id, (text, kind) in enumerate(pairs):
        check_token(
            path, token_id, (text, kind), (tokens[token_id], types[token_id]), chat_template
        )
    text, count = Counter(tokens).most_common(1)[0]
    if count > 1:  # llama.cpp finds only one, which may be the row without a token
        raise ExportError(f"{path} has {count} tokens {text!r}; {AGAIN}")
    check_merging(path, fields, vocabulary)


def check_token(
    path: Path,
    token_id: int,
    ours: tuple[str, TokenType],
    theirs: tuple[str, int],
    chat_template: str,
) -> None:
    """Compare the text and type of one token.

    Raises:
        ExportError: a difference changes tokenization.
    """
    (text, kind), (given, number) = ours, theirs
    name = f"token {token_id}, {text!r},"
    given_kind = KINDS.get(number)
    if kind == TokenType.UNUSED:  # a row without a token must not be found in text
        if given_kind not in UNREAD:
            raise ExportError(
                f"{path} has {given!r} of type {type_name(number)} as token {token_id}, which the "
                f"checkpoint's tokenizer does not have; {AGAIN}"
            )
        return
    spaces = SPACE in text and given_kind == TokenType.USER_DEFINED
    if given != text and not (spaces and given == text.replace(SPACE, " ")):
        raise ExportError(
            f"{path} has {given!r} as token {token_id}, the checkpoint {text!r}; it was converted from "
            f"another tokenizer: {AGAIN}"
        )
    accepted: set[TokenType] = {kind}
    if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
        accepted = {TokenType.CONTROL, TokenType.UNKNOWN}
    elif kind == TokenType.USER_DEFINED and looks_special(text) and text not in chat_template:
        accepted |= UNREAD
    elif kind == TokenType.NORMAL and SPACE in text:
        accepted |= {TokenType.USER_DEFINED}
    if given_kind in accepted:
        return
    if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
        raise ExportError(
            f"{path} has the special {name} of type {type_name(number)}: llama.cpp would read it out of a "
            f"user's text; {AGAIN}"
        )
    raise ExportError(
        f"{path} has {name} of type {type_name(number)}, the checkpoint's tokenizer makes it "
        f"{kind.name}; {AGAIN}"
    )


def type_name(number: int) -> str:
    """Return the name of a token type."""
    return KINDS[number].name if number in KINDS else repr(number)


def looks_special(text: str) -> bool:
    """Return True if llama.cpp's converter makes such a token CONTROL.

    tokenizer.json does not call it special. Text that spells it then becomes plain characters, which is no
    harm.
    """
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>")))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def check_merging(path: Path, fields: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Compare how characters become tokens.

    Raises:
        ExportError: the algorithm, the pre-tokenizer or the merges differ.
    """
    model = field(path, fields, "model")
    if model == "llama" and vocabulary.pre_tokenizer == SPACE_MARKED:
        # SentencePiece merges by scores; `check_tokenization` tries them. That llama.cpp would put a space
        # before a text (add_space_prefix) does not matter: edgevlm lets it add none.
        field(path, fields, "scores")
        return
    if model != "gpt2":
        raise ExportError(
            f"{path} has a vocabulary of kind {model!r}, the checkpoint's is byte-pair encoding ('gpt2'); "
            f"{AGAIN}"
        )
    pre = field(path, fields, "pre")
    known = PRE_TOKENIZERS.get(vocabulary.pre_tokenizer, frozenset((vocabulary.pre_tokenizer,)))
    if pre not in known:
        raise ExportError(
            f"{path} splits words as {pre!r}, the checkpoint's tokenizer as {vocabulary.pre_tokenizer!r}; "
            f"{AGAIN}"
        )
    merges = field(path, fields, "merges")
    for rank, (given, ours) in enumerate(zip(merges, vocabulary.merges, strict=False)):
        if given != ours:
            raise ExportError(
                f"{path} has {given!r} as merge {rank}, the checkpoint {ours!r}; it was converted from "
                f"another tokenizer: {AGAIN}"
            )
    if len(merges) != len(vocabulary.merges):
        raise ExportError(
            f"{path} has {len(merges)} merges, the checkpoint {len(vocabulary.merges)}; {AGAIN}"
        )


def field(path: Path, fields: Mapping[str, Any], name: str) -> Any:
    """Return a value of the tokenizer metadata.

    Raises:
        ExportError: it is missing, or has another type.
    """
    key = f"tokenizer.ggml.{name}"
    value = fields.get(key)
    if not isinstance(value, str if name in ("model", "pre") else list):
        raise ExportError(f"{path} has no {key}, without which llama.cpp would guess; {AGAIN}")
    return value


def check_tokenization(path: Path, vocabulary: Vocabulary, tokenizer: TokenizersBackend) -> int:
    """Compare llama.cpp with the checkpoint's tokenizer on many texts, and return their number.

    Raises:
        ExportError: llama.cpp cannot load the file, or the tokens of a text differ.
    """
    unread = [
        text
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind == TokenType.USER_DEFINED and looks_special(text)
    ]
    try:
        check_file(path)
        return check_tokenizer(path, vocabulary, tokenizer, unread=unread)
    except EdgeVLMError as error:
        raise ExportError(f"{error}; {AGAIN}") from error
