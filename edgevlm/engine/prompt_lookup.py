"""Speculation without a second model: what an answer may go on with is checked in one batch.

A *draft* is what followed the same words in the conversation or in an earlier answer (prompt lookup
decoding, Saxena 2023). The decoder takes a draft in as one batch, which costs little more than one token,
and as much of it is kept as the decoder would have chosen itself. It pays where answers repeat: a standing
question to a camera, lists, JSON, quoted text.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Tokens: TypeAlias = "tuple[int, ...]"

DRAFT_LENGTH = 8
"""Tokens of a draft at most."""

FIRST_LENGTH = 3
"""Tokens of an answer's first draft, and of one after a draft that was wrong somewhere; each draft that is
right is followed by one of twice its length. On a CPU a batch of 4 costs 1.5 to 2.3 single tokens, one of 9
costs 2.4 to 4.8 (`benchmarks/drafts.py`)."""

SAME_WORDS = 3
"""Tokens that have to be the same for a text to go on as an earlier one did."""

KEPT = 8192
"""Places in earlier answers that are remembered, those used last."""

NEAR_TIE = 0.25
"""Logits of a batch and of single tokens differ by rounding. What follows where the best logit is not so much
above the second is computed again by itself, so that the answer is the one without drafts."""

MISSES = 2
"""Drafts in a row of which nothing was right, after which an answer gets no more of them."""


class Drafts:
    """Texts that answers may repeat; one for an engine.

    For each answer: `begin`, then `push` for each token and `draft` and `judge` between them, then `end`.
    """

    def __init__(self) -> None:
        self._earlier: OrderedDict[Tokens, Tokens] = OrderedDict()
        self._prompt: dict[Tokens, Tokens] = {}
        self._text: list[int] = []
        self._misses = 0
        self._length = FIRST_LENGTH
        self.right = 0
        """Tokens that were right in this answer's drafts."""

    def begin(self, prompt: Sequence[int | bytes]) -> None:
        """An answer to this prompt, of token ids and tiles, comes next."""
        self._prompt, self._text = {}, []
        self._misses = self.right = 0
        self._length = FIRST_LENGTH
        for is_tile, group in itertools.groupby(prompt, key=lambda unit: isinstance(unit, bytes)):
            text = [] if is_tile else [unit for unit in group if isinstance(unit, int)]
            self._prompt.update(_continuations(text))
            self._text = text[1 - SAME_WORDS :]

    def push(self, token: int) -> None:
        """The answer goes on with this token."""
        self._text.append(token)

    def draft(self) -> Tokens:
        """What may follow; empty if nothing is known."""
        if self._misses == MISSES:
            return ()
        last = tuple(self._text[-SAME_WORDS:])
        known = self._earlier.get(last) or self._prompt.get(last, ())
        return known[: self._length]

    def judge(self, right: int, length: int) -> None:
        """So many tokens of a draft of this length were right."""
        self.right += right
        self._misses = 0 if right else self._misses + 1
        self._length = min(2 * length, DRAFT_LENGTH) if right == length else FIRST_LENGTH

    def end(self) -> None:
        """The answer is complete: what it says may be said again."""
        for words, after in _continuations(self._text).items():
            self._earlier[words] = after
            self._earlier.move_to_end(words)
        while len(self._earlier) > KEPT:
            self._earlier.popitem(last=False)


def _continuations(text: Sequence[int]) -> dict[Tokens, Tokens]:
    """What follows each few tokens; where they come again, what follows last."""
    return {
        tuple(text[at - SAME_WORDS : at]): tuple(text[at : at + DRAFT_LENGTH])
        for at in range(SAME_WORDS, len(text))
    }


def chosen(logits: NDArray[np.float32], draft: Sequence[int]) -> tuple[list[int], bool]:
    """What greedy decoding makes of a draft.

    Args:
        logits: float32 ``[len(draft) + 1, vocabulary]``; row i is what follows ``draft[:i]``.

    Returns:
        The beginning of the draft that is right and the token that follows it; without that token, and
        False, if it is too close to call.
    """
    tokens: list[int] = []
    for row, guess in itertools.zip_longest(logits, draft):
        token = int(row.argmax())
        others = max(row[:token].max(initial=-np.inf), row[token + 1 :].max(initial=-np.inf))
        if not row[token] - others >= NEAR_TIE:  # nor if it is NaN, which the sampler tells
            return tokens, False
        tokens.append(token)
        if tokens[-1] != guess:
            break
    return tokens, True
