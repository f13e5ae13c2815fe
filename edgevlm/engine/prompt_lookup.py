"""Prompt lookup decoding: speculative decoding without a draft model.

A *draft* is what followed the same n-gram in the conversation or in an earlier answer (A. Saxena, "Prompt
Lookup Decoding", 2023). The decoder decodes a draft as one batch, which costs little more than one token,
and keeps as much of it as greedy decoding would have chosen. It pays where answers repeat: a standing
question to a camera, lists, JSON, quoted text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.inputs.image_processor import Span
from edgevlm.inputs.prompt import PromptItem
from edgevlm.lru_cache import LruCache

Tokens: TypeAlias = "tuple[int, ...]"

MAX_DRAFT_LENGTH = 8
"""Tokens of the longest draft."""

MIN_DRAFT_LENGTH = 3
"""Tokens of an answer's first draft, and of a draft after one that was not accepted whole. Each draft that is
accepted whole doubles the length. On a CPU a batch of 4 costs 1.5 to 2.3 single tokens, one of 9 costs 2.4
to 4.8 (`benchmarks/drafts.py`)."""

NGRAM_SIZE = 3
"""Tokens that must be equal for a draft."""

MAX_NGRAMS = 8192
"""N-grams of earlier answers that are remembered, the most recently used."""

NEAR_TIE = 0.25
"""Logits of a batch and of single tokens differ by rounding. Where the best logit is not this much above the
second, the token is computed again alone, so that the answer is the one without drafts."""

MAX_CONSECUTIVE_MISSES = 2
"""Drafts in a row without one accepted token, after which an answer gets no more drafts."""


class PromptLookup:
    """Finds drafts for the answers of one engine.

    For each answer call `start`; `append` for each token, with `draft` and `record` between them; `finish`.
    """

    def __init__(self) -> None:
        self._earlier: LruCache[Tokens, Tokens] = LruCache(MAX_NGRAMS)
        self._prompt: dict[Tokens, Tokens] = {}
        self._text: list[int] = []
        self._misses = 0
        self._length = MIN_DRAFT_LENGTH
        self.accepted = 0
        """Draft tokens of this answer that were accepted."""

    def start(self, prompt: Sequence[PromptItem]) -> None:
        """Begin an answer to this prompt."""
        self._prompt, self._text = {}, []
        self._misses = self.accepted = 0
        self._length = MIN_DRAFT_LENGTH
        for is_span, group in itertools.groupby(prompt, key=lambda item: isinstance(item, Span)):
            text = [] if is_span else [item for item in group if isinstance(item, int)]
            self._prompt.update(_continuations(text))
            self._text = text[1 - NGRAM_SIZE :]

    def append(self, token: int) -> None:
        """Add a token to the answer."""
        self._text.append(token)

    def draft(self) -> Tokens:
        """Return what may follow; empty if nothing is known."""
        if self._misses == MAX_CONSECUTIVE_MISSES:
            return ()
        last = tuple(self._text[-NGRAM_SIZE:])
        known = self._earlier.get(last) or self._prompt.get(last, ())
        return known[: self._length]

    def record(self, accepted: int, length: int) -> None:
        """Record how many tokens of a draft of this length were accepted."""
        self.accepted += accepted
        self._misses = 0 if accepted else self._misses + 1
        whole = accepted == length
        self._length = min(2 * length, MAX_DRAFT_LENGTH) if whole else MIN_DRAFT_LENGTH

    def finish(self) -> None:
        """Remember the n-grams of the complete answer."""
        for ngram, following in _continuations(self._text).items():
            self._earlier[ngram] = following


def _continuations(text: Sequence[int]) -> dict[Tokens, Tokens]:
    """Map each n-gram to the tokens after its last occurrence."""
    return {
        tuple(text[at - NGRAM_SIZE : at]): tuple(text[at : at + MAX_DRAFT_LENGTH])
        for at in range(NGRAM_SIZE, len(text))
    }


def verify_draft(
    logits: NDArray[np.float32], draft: Sequence[int], near_tie: float | None = None
) -> tuple[list[int], bool]:
    """Return what greedy decoding makes of a draft.

    Args:
        logits: float32 ``[len(draft) + 1, vocabulary]``; row i is what follows ``draft[:i]``.
        near_tie: least distance of the best logit to the second; None: `NEAR_TIE`.

    Returns:
        The accepted prefix of the draft and the token that follows it, and True; without that token, and
        False, if it is a near tie.
    """
    least = NEAR_TIE if near_tie is None else near_tie
    tokens: list[int] = []
    for row, guess in itertools.zip_longest(logits, draft):
        token = int(row.argmax())
        others = max(row[:token].max(initial=-np.inf), row[token + 1 :].max(initial=-np.inf))
        if not row[token] - others >= least:  # false for NaN too, which the sampler reports
            return tokens, False
        tokens.append(token)
        if tokens[-1] != guess:
            break
    return tokens, True
