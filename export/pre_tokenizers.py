"""Text rules of tokenizers: how ``tokenizer.json`` normalizes and splits text before the merges.

llama.cpp knows rules by name only. A rule is recognized by its exact structure, never by the name of a model,
and only rules with which llama.cpp gives transformers' ids are listed. It has two names, ``tekken`` and
``gpt-4o``, whose rules treat upper case outside ASCII and combining marks in another way than the tokenizers
of this name. Texts for Tekken are split by `edgevlm.inputs.splitting` in place of llama.cpp; GPT-4o's is left
out.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from edgevlm.errors import ExportError

Normalization: TypeAlias = Literal["nfc"]
SpacePrefix: TypeAlias = Literal["never", "prepend", "metaspace-always", "metaspace-first"]
Splitting: TypeAlias = Literal["tekken"]
Step: TypeAlias = dict[str, Any]
"""A normalizer or pre-tokenizer, as ``tokenizer.json`` describes it."""

SPACE = "▁"
SPACE_MARKED = "sarvam-moe"
"""llama.cpp's name for merges over text whose spaces are written ``▁``, split at newlines only."""

TEKKEN: Splitting = "tekken"

GPT2_PATTERN: Step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTES_ONLY: Step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
SINGLE_DIGITS: Step = {"type": "Digits", "individual_digits": True}
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_LLM_PATTERNS = (
    "[\r\n]",
    # scripts with upper and lower case
    "\\s?[A-Za-zµÀ-ÖØ-öø-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2"
    "\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    "\\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
)


def split(pattern: str) -> Step:
    """Return a pre-tokenizer that splits at a regular expression and keeps all text."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def metaspace(scheme: str) -> Step:
    """Return a pre-tokenizer that writes spaces as ``▁`` and splits nothing."""
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


BYTE_LEVEL: tuple[tuple[str, list[Step], bool], ...] = (
    ("gpt-2", [GPT2_PATTERN], False),
    ("smollm", [SINGLE_DIGITS, GPT2_PATTERN], False),
    ("llama-bpe", [split(LLAMA3_PATTERN), BYTES_ONLY], True),
    ("dbrx", [split(LLAMA3_PATTERN), BYTES_ONLY], False),
    ("qwen2", [split(QWEN2_PATTERN), BYTES_ONLY], False),
    ("qwen35", [split(QWEN35_PATTERN), BYTES_ONLY], False),
    (TEKKEN, [split(TEKKEN_PATTERN), BYTES_ONLY], False),
    ("deepseek-llm", [*map(split, DEEPSEEK_LLM_PATTERNS), SINGLE_DIGITS, BYTES_ONLY], False),
)
"""llama.cpp's name, the pre-tokenizers, and whether whole words skip the merges (``ignore_merges``).

The same rule may have several names there; Granite's ``refact``, StarCoder's and Command R's are ``smollm``.
"""

NFC: Step = {"type": "NFC"}
MARK_SPACES: Step = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND: Step = {"type": "Prepend", "prepend": SPACE}
DOUBLE_FIRST_MARK: Step = {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": SPACE * 2}
SPLIT_AT_SPACES: Step = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
"""Gemma's pre-tokenizer. It does nothing, since the normalizer leaves no space."""

SPACE_RULES: tuple[tuple[list[Step], list[Step], SpacePrefix], ...] = (
    ([MARK_SPACES], [], "never"),
    ([MARK_SPACES], [SPLIT_AT_SPACES], "never"),
    ([], [metaspace("never")], "never"),
    ([PREPEND, MARK_SPACES], [], "prepend"),
    # SentencePiece's rule, as transformers 5 writes it: Metaspace adds no mark before a mark
    ([MARK_SPACES, DOUBLE_FIRST_MARK], [metaspace("always")], "prepend"),
    ([], [metaspace("always")], "metaspace-always"),
    ([], [metaspace("first")], "metaspace-first"),
    ([MARK_SPACES], [metaspace("first")], "metaspace-first"),
)
"""Normalizers and pre-tokenizers of SentencePiece-like tokenizers, and their rule for a leading space."""


@dataclass(frozen=True)
class TextRules:
    """What happens to plain text before the merges, in two places."""

    pre_tokenizer: str
    """llama.cpp's name of the rule. Where `splitting` is set, llama.cpp is told to leave it out."""
    normalization: Normalization | None
    """What `edgevlm.inputs.plain_text` does before, since llama.cpp normalizes nothing."""
    space_prefix: SpacePrefix
    """The same: which texts get a leading space."""
    splitting: Splitting | None = None
    """The same: what splits texts before llama.cpp does."""
    changes_tokens: bool = False
    """True if the normalizer changes tokens that are searched in normalized text (``normalized``)."""


def read_text_rules(described: dict[str, Any]) -> TextRules:
    """Return the rules of a BPE tokenizer.

    Args:
        described: content of ``tokenizer.json``, as the library tokenizers writes it.

    Raises:
        ExportError: llama.cpp cannot reproduce the structure; the message has the part that is unknown.
    """
    normalizers = list_steps(described["normalizer"], "normalizers")
    pre_tokenizers = list_steps(described["pre_tokenizer"], "pretokenizers")
    for known_normalizers, known_pre_tokenizers, space_prefix in SPACE_RULES:
        if (normalizers, pre_tokenizers) == (known_normalizers, known_pre_tokenizers):
            check_byte_fallback(described)
            changes_tokens = PREPEND in normalizers or DOUBLE_FIRST_MARK in normalizers
            return TextRules(SPACE_MARKED, None, space_prefix, changes_tokens=changes_tokens)
    if normalizers not in ([], [NFC]):
        raise unsupported(
            f"its normalizer is {show(normalizers)} before the pre-tokenizer {show(pre_tokenizers)}",
            "no normalizer, NFC, or the forms of SentencePiece's space rule",
        )
    name = find_byte_level(pre_tokenizers, described)
    normalization: Normalization | None = "nfc" if normalizers else None
    if name == TEKKEN:
        return TextRules(name, normalization, "never", TEKKEN)
    return TextRules(name, normalization, "never")


def list_steps(step: Step | None, key: str) -> list[Step]:
    """Return the steps of a normalizer or pre-tokenizer, without nested sequences."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [inner for part in step[key] for inner in list_steps(part, key)]
    # trim_offsets moves only the reported character positions
    return [{name: value for name, value in step.items() if name != "trim_offsets"}]


def find_byte_level(pre_tokenizers: list[Step], described: dict[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizers of a byte-level BPE.

    Raises:
        ExportError: llama.cpp has no such name, or gives other ids under it with these merges.
    """
    ignore_merges = bool(described["model"].get("ignore_merges"))
    found = [(name, ignores) for name, steps, ignores in BYTE_LEVEL if steps == pre_tokenizers]
    if not found:
        raise unsupported(
            f"its pre-tokenizer is {show(pre_tokenizers)}",
            f"the structures that llama.cpp calls {', '.join(name for name, *_ in BYTE_LEVEL)}",
        )
    name = next((name for name, ignores in found if ignores == ignore_merges), None)
    if name is None:
        name = found[0][0]
        check_merges_reach_tokens(described, name)
    if name == "deepseek-llm":
        check_digits_stay_apart(described)
    return name


def check_merges_reach_tokens(described: dict[str, Any], name: str) -> None:
    """Check that each token is what the merges make of its own text: then ``ignore_merges`` changes nothing.

    Raises:
        ExportError: a token is something else.
    """
    merging = Tokenizer.from_str(
        json.dumps(
            {
                **described,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": None,
                "post_processor": None,
                "model": {**described["model"], "ignore_merges": False},
            }
        )
    )
    added = {token["content"] for token in described["added_tokens"]}
    tokens = [token for token in described["model"]["vocab"] if token not in added]
    for token, encoded in zip(tokens, merging.encode_batch(tokens), strict=True):
        if len(encoded.ids) != 1:
            raise unsupported(
                f"it has ignore_merges {described['model'].get('ignore_merges')}, and its merges make "
                f"{encoded.tokens} of the token {token!r}",
                f"the pre-tokenizer {name} with merges that make every token",
            )


def check_digits_stay_apart(described: dict[str, Any]) -> None:
    """Check that no merge joins bytes of two numbers: llama.cpp's ``deepseek-llm`` does not split them.

    The first merge across two numbers would join the end of one with the start of the next.

    Raises:
        ExportError: there is such a merge.
    """
    letters = bytes_to_unicode()
    starts, ends = set(), set()
    for character in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(character).startswith("N"):
            spelled = "".join(letters[byte] for byte in character.encode())
            starts |= {spelled[:size] for size in range(1, len(spelled) + 1)}
            ends |= {spelled[-size:] for size in range(1, len(spelled) + 1)}
    for merge in described["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left in ends and right in starts:
            raise unsupported(
                f"it merges {left!r} and {right!r}, the bytes of two numbers", "numbers apart"
            )


def check_byte_fallback(described: dict[str, Any]) -> None:
    """Check that a SentencePiece-like BPE has what llama.cpp needs to run it exactly.

    Raises:
        ExportError: a byte has no token, or a merge joins a newline and other text, which llama.cpp splits.
    """
    model = described["model"]
    missing = [byte for byte in range(256) if byte_token(byte) not in model["vocab"]]
    if not model["byte_fallback"] or missing:
        raise unsupported("it has no token for some bytes", "byte fallback for all 256")
    for merge in model["merges"]:
        merged = "".join(merge.split(" ") if isinstance(merge, str) else merge)
        if "\n" in merged and merged.strip("\n"):
            raise unsupported(f"it merges a newline with other text ({merged!r})", "newlines apart")
    if model.get("ignore_merges"):
        check_merges_reach_tokens(described, SPACE_MARKED)


def byte_token(byte: int) -> str:
    """Return SentencePiece's name of a byte."""
    return f"<0x{byte:02X}>"


def show(steps: list[Step]) -> str:
    """Return steps as JSON, for messages."""
    return json.dumps(steps, ensure_ascii=False)


def unsupported(found: str, wanted: str) -> ExportError:
    """Return the error for a tokenizer that llama.cpp cannot reproduce."""
    return ExportError(
        f"llama.cpp cannot reproduce this tokenizer: {found}, edgevlm can export {wanted}; take the "
        f"tokenizer of the model's family"
    )
