"""Tekken's split is that of its own regular expression, in the library tokenizers."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from edgevlm.export.pre_tokenizers import TEKKEN_PATTERN
from edgevlm.export.text_battery import make_texts
from edgevlm.inputs.splitting import split_tekken

REFERENCE = pre_tokenizers.Split(Regex(TEKKEN_PATTERN), "isolated")
LETTERS = st.sampled_from(
    "aAbBéÉжЖǅʰªº中のㄱักि\u0301\u0345\u20dd1½Ⅷ٣ \t\n\r\x0b\x1c\x85\xa0\u2003\u2028\u200b/.,!'_-€🎈"
)
TEXTS = st.lists(LETTERS, max_size=30).map("".join)


def expected(text: str) -> list[str]:
    return [text[begin:end] for _, (begin, end) in REFERENCE.pre_tokenize_str(text)]


@given(TEXTS)
@example("ПриветМир ÉCOLE écoleÉtat हिन्दी e\u0301te\u0301")
@example("  a\n\n  b  \r\n/ ./\n/ 'sauce 2026")
def test_equals_tokenizers(text: str) -> None:
    assert split_tekken(text) == expected(text)
    assert "".join(split_tekken(text)) == text


def test_equals_tokenizers_on_hard_texts() -> None:
    for text in make_texts():
        assert split_tekken(text) == expected(text)


@pytest.mark.parametrize("character", ["a", "A", "中", "\u0301", " ", "\n", "!"])
def test_long_texts_take_linear_time(character: str) -> None:
    """No class makes the expression try each length again: a hundred thousand characters are quick."""
    assert "".join(split_tekken(character * 100_000)) == character * 100_000
