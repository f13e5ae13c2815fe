"""Plain text: what a tokenizer sees of it. `tests/reference/test_plain_text.py` compares with tokenizers."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.inputs.plain_text import PlainText

TEXT = st.text(st.one_of(st.sampled_from(" ▁\n<>ae\u0301\u0338é"), st.characters(codec="utf-8")))
PREFIXES = ("never", "prepend", "metaspace-always", "metaspace-first")


def seen(text: str, *, at_start: bool = True, **rules: Any) -> str:
    """Return the characters that the runtime tokenizes, each call ended by ``|``."""
    ids = PlainText(lambda part: [*map(ord, part), ord("|")], **rules).tokenize(
        text, at_start=at_start
    )
    return "".join(map(chr, ids)).removesuffix("|")


@given(TEXT)
def test_without_rules_the_text_stays_as_it_is(text: str) -> None:
    assert seen(text) == text


@given(TEXT)
def test_nfc_composes(text: str) -> None:
    assert seen(text, normalization="nfc") == unicodedata.normalize("NFC", text)


def test_tekken_splits_and_finds_added_tokens_first() -> None:
    assert seen("ÉtatЯ aB.", splitting="tekken") == "État|Я| a|B|."
    assert seen("a<xY>b", splitting="tekken", added_tokens=["<xY>"]) == "a|<xY>|b"
    assert seen("e\u0301A", splitting="tekken", normalization="nfc") == "é|A"


@pytest.mark.parametrize(
    ("prefix", "text", "at_start", "expected"),
    [
        ("never", "a", True, "a"),
        ("prepend", "a", False, " a"),
        ("prepend", " a", False, "  a"),
        ("prepend", "▁a", True, " ▁a"),
        ("prepend", "\na", False, " \na"),
        ("metaspace-always", "a", False, " a"),
        ("metaspace-always", " a", True, " a"),
        ("metaspace-always", "▁a", True, "▁a"),
        ("metaspace-always", "\na", False, " \na"),
        ("metaspace-first", "a", True, " a"),
        ("metaspace-first", " a", True, " a"),
        ("metaspace-first", "a", False, "a"),
    ],
)
def test_spaces_before_a_text(prefix: str, text: str, at_start: bool, expected: str) -> None:
    assert seen(text, at_start=at_start, space_prefix=prefix) == expected


@given(TEXT, st.sampled_from(PREFIXES), st.booleans())
def test_at_most_one_space_comes_before_and_nothing_else(
    text: str, prefix: str, at_start: bool
) -> None:
    assert seen(text, at_start=at_start, space_prefix=prefix) in (text, " " + text)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_no_text_has_no_tokens(prefix: str) -> None:
    assert seen("", normalization="nfc", space_prefix=prefix) == ""


def test_added_tokens_stay_whole() -> None:
    """``>`` and U+0338 compose, and a longer token is found before a shorter one."""
    added = ["<b>", "<b><b>"]
    assert seen("<b>\u0338", normalization="nfc") == "<b\u226f"
    assert seen("<b>\u0338", normalization="nfc", added_tokens=added) == "<b>|\u0338"
    assert seen("<b><b><b>a", space_prefix="prepend", added_tokens=added) == "<b><b>|<b>| a"
    assert seen("a<b>b", space_prefix="metaspace-first", added_tokens=added) == " a|<b>|b"
    assert seen("<b>b", space_prefix="metaspace-first", added_tokens=added) == "<b>|b"


@given(TEXT, st.sampled_from(PREFIXES), st.booleans())
def test_added_tokens_that_do_not_occur_change_nothing(
    text: str, prefix: str, at_start: bool
) -> None:
    rules: dict[str, Any] = {"normalization": "nfc", "space_prefix": prefix, "at_start": at_start}
    assert seen(text, added_tokens=["<\x00>"], **rules) == seen(text, **rules)
