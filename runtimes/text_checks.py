"""Checks of texts and token ids that every decoder makes first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError

MAX_TEXT_BYTES = 2**18
"""Longest text that a decoder tokenizes, in bytes of UTF-8: more than most contexts hold."""


def encode_text(text: str) -> bytes:
    """Check a text, and return it as UTF-8.

    Raises:
        InputError: the text is not a string, has lone surrogates, which UTF-8 cannot encode, or is longer
            than `MAX_TEXT_BYTES`.
    """
    if not isinstance(text, str):
        raise InputError(f"text must be a string, is {type(text).__name__}")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"text holds the lone surrogate {text[error.start]!r} at character {error.start}, which "
            "is not Unicode text; remove it"
        ) from None
    if len(encoded) > MAX_TEXT_BYTES:
        raise InputError(
            f"text is {len(encoded)} bytes long, at most {MAX_TEXT_BYTES} can be tokenized; "
            "shorten it"
        )
    return encoded


def check_tokens(token_ids: Sequence[int], vocabulary_size: int) -> NDArray[np.int32]:
    """Check token ids and return them as int32 ``[n]``.

    Raises:
        InputError: the ids are no flat list of integers, or are outside the vocabulary.
    """
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"token ids must be a flat list of at least one integer, are {ids.dtype} "
            f"{list(ids.shape)}"
        )
    if ids.min() < 0 or ids.max() >= vocabulary_size:
        wrong = ids[(ids < 0) | (ids >= vocabulary_size)][0]
        raise InputError(f"token id {wrong} is outside the vocabulary of {vocabulary_size} tokens")
    return np.ascontiguousarray(ids, np.int32)
