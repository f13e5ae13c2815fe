"""The text of one answer while it grows by tokens, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection

from edgevlm.engine.detokenizer import Detokenizer
from edgevlm.options import Generation
from edgevlm.results import FinishReason, TokenLogprob


class AnswerText:
    """Tokens and text of an answer, which ends with an end token, a stop string or the limit of its tokens.

    Args:
        piece: returns the bytes of a token.
        end_tokens: tokens that end the answer and are no part of it.
        max_tokens: limit of its tokens, at least 1.
        generation: the settings of the request.
    """

    def __init__(
        self,
        piece: Callable[[int], bytes],
        end_tokens: Collection[int],
        max_tokens: int,
        generation: Generation,
    ) -> None:
        self._piece = piece
        self._end_tokens = end_tokens
        self.max_tokens = max_tokens
        self._text = Detokenizer(tuple(generation.stop or ()))
        self.token_ids: list[int] = []
        """Tokens so far, without the end token."""
        self.logprobs: list[TokenLogprob] = []
        """One for each of these tokens, if the request asks for them."""
        self.forced_tokens = 0
        """Tokens that the JSON schema left no choice for."""
        self.accepted_draft_tokens = 0
        """Draft tokens that were accepted, including the end token."""
        self.first_token_ms = 0.0
        """Time from the request to the first token in milliseconds."""
        self.finish_reason: FinishReason | None = None
        """Why the answer has ended; None while it has not."""

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.max_tokens - len(self.token_ids)

    def append(self, token: int) -> str | None:
        """Add a token, and return the text that is complete now; None for an end token."""
        if token in self._end_tokens:
            self.finish_reason = "stop"
            return None
        self.token_ids.append(token)
        shown = self._text.push(self._piece(token))
        if self._text.stopped:
            self.finish_reason = "stop"
        elif not self.room:
            self.finish_reason = "length"
        return shown

    def rest(self) -> str:
        """Return the text after the last token."""
        return self._text.finish()
