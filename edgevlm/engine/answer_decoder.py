"""Decode the tokens of one answer after its prompt, one after another or by drafts."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

import numpy as np

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.answer_text import AnswerText
from edgevlm.engine.kv_cache import KVCache
from edgevlm.engine.logprobs import token_logprob
from edgevlm.engine.prompt_lookup import PromptLookup, verify_draft
from edgevlm.engine.request import Request
from edgevlm.errors import DeadlineError
from edgevlm.results import Chunk, TokenLogprob
from edgevlm.runtimes.protocols import DecoderRuntime, Place, Sampler

MAX_FORCED_TOKENS = 64
"""Most tokens of an answer that are decoded at once because a JSON schema forces them. Who closes a stream
waits for the batch."""


class AnswerDecoder:
    """Decodes one answer at a time, after the prompt that the decoder holds.

    Args:
        end_tokens: tokens that end an answer.
    """

    def __init__(
        self, decoder: DecoderRuntime, kv_cache: KVCache, end_tokens: Collection[int]
    ) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._end_tokens = end_tokens
        self._lookup = PromptLookup()

    def new_answer(self, request: Request) -> AnswerText:
        """Return the answer to a request, without a token yet."""
        return AnswerText(
            self._decoder.piece, self._end_tokens, request.max_tokens, request.generation
        )

    def run(
        self, request: Request, prompt: Place, sampler: Sampler
    ) -> Generator[Chunk, None, AnswerText]:
        """Sample until the model, a stop string, the limit or the deadline ends the answer.

        Args:
            prompt: the place after the prompt.

        Yields:
            A chunk for each token but an end token.

        Returns:
            The answer. Its `AnswerText.rest` is in no chunk.

        Raises:
            CancelledError: the request was cancelled, or its deadline expired before the first token.
        """
        generation, watch = request.generation, request.watch
        answer = self.new_answer(request)
        self._lookup.start(request.items)
        following: list[int] = []
        while answer.finish_reason is None:
            if not following:
                try:
                    following = self._advance(answer, prompt, request, sampler)
                except DeadlineError:
                    if not answer.token_ids:
                        raise
                    answer.finish_reason = "deadline"
                    break
            token = following.pop(0)
            watch.lap("decode")
            if not answer.token_ids:
                answer.first_token_ms = watch.total_ms
            self._lookup.append(token)
            shown = answer.append(token)
            if shown is None:
                break
            watch.lap("decode")
            logprobs: tuple[TokenLogprob, ...] = ()
            if generation.top_logprobs is not None:
                logprobs = (token_logprob(self._decoder, token, generation.top_logprobs),)
            answer.logprobs += logprobs
            yield Chunk(shown, (token,), logprobs)
            watch.lap("consumer")
        self._lookup.finish()
        answer.accepted_draft_tokens = self._lookup.accepted
        return answer

    def _advance(
        self, answer: AnswerText, prompt: Place, request: Request, sampler: Sampler
    ) -> list[int]:
        """Decode the last token of an answer, and return at least one token that follows it.

        All but the last of them are decoded too, unless the answer ends with them.
        """
        generation, cancel = request.generation, request.cancel
        last, room = answer.token_ids[-1:], answer.room
        place = prompt.after(max(len(answer.token_ids) - 1, 0))
        if generation.draftable and last:
            draft = self._lookup.draft()[: min(room - 1, self._decoder.max_removable)]
            return self._advance_with_draft(last[0], place, draft, sampler, cancel)
        single = generation.top_logprobs is not None  # which needs the logits before each token
        forced = [] if single else sampler.forced(min(room, MAX_FORCED_TOKENS))
        ends = bool(forced) and forced[-1] in self._end_tokens
        answer.forced_tokens += len(forced) - ends
        if ends or len(forced) == room:
            return forced
        undecoded = [*last, *forced]
        more = len(forced) == MAX_FORCED_TOKENS
        if more:  # others may be forced after the last of them
            undecoded.pop()
        if undecoded:
            self._decode(undecoded, place, cancel)
        return forced if more else [*forced, sampler.sample()]

    def _advance_with_draft(
        self,
        token: int,
        place: Place,
        draft: Sequence[int],
        sampler: Sampler,
        cancel: CancelSignal,
    ) -> list[int]:
        """Decode a token and its draft; return the tokens that follow, all but the last decoded."""
        accepted: list[int] = []
        if draft:
            batch = [token, *draft]
            start = place.position
            positions = np.arange(start, start + len(batch), dtype=np.int32)
            logits = self._decoder.decode_draft(batch, positions, cancel=cancel)
            accepted, conclusive = verify_draft(logits, draft)
            self._lookup.record(len(accepted) - conclusive, len(draft))
            *kept, token = [token, *accepted]
            place = place.after(len(kept))
            self._decoder.truncate(place)
            self._kv_cache.extend(kept)
            if conclusive:
                return accepted
        self._decode([token], place, cancel)
        return [*accepted, sampler.sample()]

    def _decode(self, tokens: Sequence[int], place: Place, cancel: CancelSignal) -> None:
        """Decode tokens, the first of them at `place`, and compute the logits of the last."""
        positions = np.arange(place.position, place.position + len(tokens), dtype=np.int32)
        self._decoder.decode_tokens(tokens, positions, logits=True, cancel=cancel)
        self._kv_cache.extend(tokens)
