"""Normalization and spaces before plain text, compared with the library tokenizers on any text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgevlm.inputs.plain_text import PlainText

MARK = "<mark>"
ADDED = ["<b>", "<b><b>"]
TEXT = st.lists(
    st.one_of(
        st.sampled_from([" ", "▁", "\n", "<b>", "<", ">", "e", "\u0301", "\u0338", "한", "\u1100"]),
        st.characters(codec="utf-8", max_codepoint=0x2FFF),
    ),
    max_size=12,
).map("".join)


def spelling(
    normalizer: normalizers.Normalizer | None, pre_tokenizer: pre_tokenizers.PreTokenizer | None
) -> Tokenizer:
    """Return a tokenizer of single bytes, so that decoding gives what it makes of a text."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: number for number, name in enumerate(names)}, merges=[], byte_fallback=True
        )
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens([AddedToken(MARK, normalized=False)])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    return tokenizer


def spell(part: str) -> list[int]:
    """Tokenize as a runtime does with spaces written ``▁``."""
    return [*part.replace(" ", "▁").encode()] if part not in ADDED else [257 + ADDED.index(part)]


def metaspace(scheme: Any) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)


SPACED: list[normalizers.Normalizer] = [
    normalizers.Prepend("▁"),
    normalizers.Replace(" ", "▁"),
]
RULES: list[Any] = [
    ("nfc", "never", spelling(normalizers.NFC(), metaspace("never"))),
    (None, "never", spelling(normalizers.Replace(" ", "▁"), None)),
    (None, "prepend", spelling(normalizers.Sequence(SPACED), None)),
    (None, "metaspace-always", spelling(None, metaspace("always"))),
    (None, "metaspace-first", spelling(None, metaspace("first"))),
]


@pytest.mark.parametrize(("normalization", "space_prefix", "reference"), RULES)
@given(before=TEXT, after=TEXT)
def test_equals_tokenizers(
    normalization: Any, space_prefix: Any, reference: Tokenizer, before: str, after: str
) -> None:
    plain_text = PlainText(
        spell, normalization=normalization, space_prefix=space_prefix, added_tokens=ADDED
    )
    found = [
        *plain_text.tokenize(before, at_start=True),
        256,
        *plain_text.tokenize(after, at_start=False),
    ]
    assert found == reference.encode(before + MARK + after).ids
