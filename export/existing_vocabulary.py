"""Check that the vocabulary of an existing GGUF file splits text as the checkpoint's tokenizer does.

Tokens, types, merges and pre-tokenizer must agree, since tokenization and the text of answers depend on
them. llama.cpp's converter differs from `edgevlm.export.tokenizer` where this changes neither, and its files
are accepted: rows without a token, tokens that look special, Gemma as a SentencePiece vocabulary. The ids of
special tokens (``bos`` and others) are not compared: edgevlm takes them from the manifest and lets llama.cpp
add none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from edgevlm.errors import EdgeVLMError, ExportError
from edgevlm.export.tokenizer import SPACE, SPACE_MARKED, Vocabulary
from edgevlm.runtimes.llama_cpp.guard import check_file
from edgevlm.runtimes.llama_cpp.model import LlamaCppModel

PRE_TOKENIZERS: Mapping[str, frozenset[str]] = {
    "gpt-2": frozenset(
        (
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "exaone4",
        )
    ),
    "llama-bpe": frozenset(
        (
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        )
    ),
    "qwen2": frozenset(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez")),
    "smollm": frozenset(("smollm",)),
    SPACE_MARKED: frozenset((SPACE_MARKED,)),
}
"""Our name of a pre-tokenizer to llama.cpp's names for the same one."""
AGAIN = (
    "convert it again from this checkpoint with llama.cpp's convert_hf_to_gguf.py, or leave out "
    "--decoder-gguf, and edgevlm writes the decoder"
)
KINDS: Mapping[int, TokenType] = {int(kind): kind for kind in TokenType}
UNREAD = frozenset((TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED))
"""Types that llama.cpp does not find in plain text."""
SAMPLED = 400
"""Tokens of the vocabulary that are tried, evenly distributed."""
TEXTS = (
    "What is in the picture?",
    "  two  three   four    spaces     ",
    " leading and trailing ",
    "a\nb\n\nc\n\n\nd \n e\t\tf\r\ng",
    "\n\n\n\n\n",
    "2026-07-02 12:34:56.789 10000000 3.14159 ²³¼ ١٢٣ 一二三",
    "it's we'll I'M YOU'RE they'd o'clock 'tis",
    "def f(x):\n    return x[1:] == {'a': 0}  # comment",
    "naïve Żółć Ελληνικά русский עברית العربية हिन्दी ไทย 日本語 한국어",
    "🎈👩‍👩‍👧‍👦🏳️‍🌈\u200b\u00a0\u2028",
    "é é ½ ﬁ Ⅷ",
    "https://example.org/?q=a%20b&c=[1,2]#x",
    "CamelCase snake_case kebab-case SCREAMING word" + "word" * 20,
    "▁ ▁▁ a▁b <0x41> [PAD5] <unused5> <|unknown|>",
    "!!! ... --- *** ((())) \"quoted\" 'quoted'",
    " " * 40,
)


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
        field(
            path, fields, "scores"
        )  # SentencePiece merges by these; `check_tokenization` tries them
        if fields.get("tokenizer.ggml.add_space_prefix", True):
            raise ExportError(
                f"{path} puts a space before every text (tokenizer.ggml.add_space_prefix), the checkpoint's "
                f"tokenizer does not; {AGAIN}"
            )
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


def check_tokenization(path: Path, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    """Compare llama.cpp with the checkpoint's tokenizer on many texts.

    Raises:
        ExportError: llama.cpp cannot load the file, or the tokens of a text differ.
    """
    special = {token.id for token in vocabulary.special_tokens}
    try:
        check_file(path)
        model = LlamaCppModel(path, gpu_layers=0, extra_buffer_types=False)
    except EdgeVLMError as error:
        raise ExportError(f"{error}") from error
    try:
        for text in texts(vocabulary, tokenizer):
            found = model.tokenize(text)
            expected = tokenizer.encode(text, add_special_tokens=False).ids
            if found != expected:
                raise ExportError(
                    f"{path} makes the tokens {found[:16]} of {text[:60]!r}, the checkpoint's tokenizer "
                    f"{expected[:16]}; {AGAIN}"
                )
        for token in vocabulary.special_tokens:
            if special & set(model.tokenize(f"a {token.text} b")):
                raise ExportError(
                    f"{path} reads the special token {token.text!r} out of a user's text; {AGAIN}"
                )
    finally:
        model.close()


def texts(vocabulary: Vocabulary, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield `TEXTS`, and tokens of the vocabulary between letters.

    Left out: texts that the tokenizer cannot reproduce, and texts with a special token.
    """
    kinds = list(enumerate(vocabulary.types))
    added = [token for token, kind in kinds if kind == TokenType.USER_DEFINED]
    normal = [token for token, kind in kinds if kind == TokenType.NORMAL]
    chosen = [
        tokenizer.decode([token], skip_special_tokens=False)
        for group in (added, normal)
        for token in group[:: max(1, len(group) // SAMPLED)]
    ]
    unread = [token.text for token in vocabulary.special_tokens]
    unread += [
        vocabulary.tokens[token] for token in added if looks_special(vocabulary.tokens[token])
    ]
    for text in (*TEXTS, *(f"a{text}b {text}" for text in chosen)):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        spelled = tokenizer.decode(ids, skip_special_tokens=False) == text
        if spelled and not any(token in text for token in unread):
            yield text
