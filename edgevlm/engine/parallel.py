"""Answers of several requests, decoded together as branches of one KV cache (continuous batching).

Each prompt is prefilled up to its last image in the sequence that the decoder holds, so it shares what it has
in common with the prompt before it. Then a branch goes on with the text after the image and with the answer.
Each step decodes the next tokens of all branches in one batch. When an answer ends, the next request begins.

Where the best logit is not clearly above the second, the token is computed again alone, as after a draft
(`edgevlm.engine.prompt_lookup`). The entries before it keep the rounding of their batch. So where two tokens
are almost equally likely even then, the request is answered alone, after the others.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.answer_decoder import AnswerDecoder
from edgevlm.engine.answer_text import AnswerText
from edgevlm.engine.kv_cache import KVCache, count_positions
from edgevlm.engine.prefill import Prefill, PrefillStats
from edgevlm.engine.prompt_lookup import verify_draft
from edgevlm.engine.request import Request
from edgevlm.errors import CancelledError, ClosedError, DeadlineError, EdgeVLMError
from edgevlm.results import Chunk
from edgevlm.runtimes.protocols import DecoderRuntime, Sampler

EXPECTED_TOKENS = 32
"""Entries that must be free for an answer that begins beside others. If the context is full nevertheless, the
answer that began last begins again later."""


UNCERTAIN = 0.25
"""A token whose logit is not this much above the second, even if computed alone, makes an answer uncertain.
Of 480 answers of the built-in model in q8_0, 4 differed with 0.05, 1 with 0.1 and none with 0.25."""


@dataclass(frozen=True)
class Finished:
    """A complete answer."""

    request: Request
    answer: AnswerText
    text: str
    """All but `AnswerText.rest`."""
    prefill: PrefillStats


Outcome: TypeAlias = "Finished | Request | EdgeVLMError"
"""An answer, a request that must be answered alone, or an error."""

_Waiting: TypeAlias = "deque[tuple[int, Callable[[], Request]]]"


@dataclass
class _Running:
    """A request whose answer is being decoded."""

    index: int
    request: Request
    answer: AnswerText
    branch: int
    prefill: PrefillStats
    tokens: list[int]
    """Tokens that are decoded next: the rest of the prompt at first, then the last token of the answer; none
    when it has ended."""
    text: str = ""
    uncertain: bool = False
    """The answer must be decoded alone."""


class ParallelAnswers:
    """Decodes greedy answers together.

    Args:
        decoder: one with independent branches.
        answers: makes the empty answers.
        sampler: a greedy sampler.
        cancel: stops the work on all requests.
    """

    def __init__(
        self,
        decoder: DecoderRuntime,
        prefill: Prefill,
        kv_cache: KVCache,
        answers: AnswerDecoder,
        sampler: Sampler,
        cancel: CancelSignal,
    ) -> None:
        self._decoder = decoder
        self._prefill = prefill
        self._kv_cache = kv_cache
        self._answers = answers
        self._sampler = sampler
        self._cancel = cancel
        self._running: list[_Running] = []
        self._uncertain: list[tuple[int, Request]] = []

    def run(self, requests: Sequence[Callable[[], Request]]) -> Iterator[tuple[int, Outcome]]:
        """Answer all requests.

        Args:
            requests: each returns the request, or raises its error, when its turn comes.

        Yields:
            The index of a request and its outcome, as soon as it is there.
        """
        waiting: _Waiting = deque(enumerate(requests))
        try:
            while waiting or self._running:
                yield from self._begin_waiting(waiting)
                for one in self._make_room():
                    waiting.appendleft((one.index, functools.partial(_identity, one.request)))
                if self._running:
                    yield from self._step()
            if self._uncertain:
                self._kv_cache.reset()  # its entries lie between those of branches
            yield from self._uncertain
        finally:
            for one in self._running:
                self._decoder.drop(one.branch)
            self._running.clear()

    def _begin_waiting(self, waiting: _Waiting) -> Iterator[tuple[int, Outcome]]:
        """Begin requests as long as there are branches and room; yield the errors of those that fail."""
        while waiting and len(self._running) < self._decoder.max_branches:
            index, prepare = waiting.popleft()
            try:
                request = prepare()
                if not self._running or self._fits(request):
                    self._begin(index, request)
                else:
                    waiting.appendleft((index, functools.partial(_identity, request)))
                    return
            except EdgeVLMError as error:
                if stops_all(error):
                    raise
                yield index, error

    def _fits(self, request: Request) -> bool:
        """Return True if the context has room for a request beside those that run."""
        prompt = request.items
        shared = self._kv_cache.shared_entries(prompt[: self._prefill.head(prompt)])
        needed = count_positions(prompt) - shared + min(request.max_tokens, EXPECTED_TOKENS)
        for one in self._running:
            left = one.answer.max_tokens - len(one.answer.token_ids)
            needed += len(one.tokens) + min(left, EXPECTED_TOKENS)
        return needed <= self._decoder.room(shared)

    def _begin(self, index: int, request: Request) -> None:
        """Prefill a prompt up to its last image and open its branch."""
        prompt, watch = request.items, request.watch
        watch.lap("wait")
        head = self._prefill.head(prompt)
        prefill = _run(
            self._prefill.run(
                prompt[:head],
                watch,
                expect_continuation=False,
                cache_images=request.generation.cache_images,
                cancel=request.cancel,
                logits=head == len(prompt),
            )
        )
        answer = self._answers.new_answer(request)
        rest = [item for item in prompt[head:] if isinstance(item, int)]
        first = None if rest else self._sampler.sample()
        one = _Running(index, request, answer, self._decoder.branch(), prefill, rest)
        self._running.append(one)
        if first is not None:
            self._append(one, first)

    def _make_room(self) -> Iterator[_Running]:
        """Stop and yield the requests that began last, until the next tokens of the others fit."""
        while self._running:
            needed = sum(len(tokens) for _, tokens in self._next_batch())
            if needed <= self._decoder.room(self._kv_cache.held_positions):
                return
            if len(self._running) == 1:
                self._kv_cache.reset()
                return
            last = self._running.pop()
            self._decoder.drop(last.branch)
            yield last

    def _next_batch(self) -> list[tuple[_Running, list[int]]]:
        """Return the tokens that are decoded next, for each request that has its turn."""
        batch, room = [], self._decoder.batch_length
        for one in self._running:
            if tokens := one.tokens[:room]:
                batch.append((one, tokens))
                room -= len(tokens)
        return batch

    def _step(self) -> Iterator[tuple[int, Outcome]]:
        """Decode one batch, and yield the answers that end with it."""
        batch = self._next_batch()
        failed: dict[int, EdgeVLMError] = {}
        try:
            following = self._decode(batch) if batch else []
        except EdgeVLMError as error:
            if stops_all(error):
                raise
            failed = {one.index: error for one, _ in batch}
            following = []
        for one, tokens, token in following:
            try:
                self._append(one, self._decode_alone(one, tokens) if token is None else token)
            except EdgeVLMError as error:
                if stops_all(error):
                    raise
                failed[one.index] = error
        for one in list(self._running):
            outcome = failed.get(one.index) or self._outcome(one)
            if one.uncertain or outcome is not None:
                self._running.remove(one)
                self._decoder.drop(one.branch)
                if one.uncertain:
                    self._uncertain.append((one.index, one.request))
                elif outcome is not None:
                    yield one.index, outcome

    def _decode(
        self, batch: Sequence[tuple[_Running, list[int]]]
    ) -> list[tuple[_Running, list[int], int | None]]:
        """Decode a batch.

        Returns:
            For each request without tokens left: those of this batch, and the next one; None for a near tie.
        """
        complete = [len(tokens) == len(one.tokens) for one, tokens in batch]
        wanted = np.zeros(sum(len(tokens) for _, tokens in batch), np.bool_)
        wanted[np.cumsum([len(tokens) for _, tokens in batch]) - 1] = complete
        rows = iter(
            self._decoder.decode_branches(
                [one.branch for one, tokens in batch for _ in tokens],
                [token for _, tokens in batch for token in tokens],
                wanted,
                cancel=self._cancel,
            )
        )
        following: list[tuple[_Running, list[int], int | None]] = []
        for (one, tokens), whole in zip(batch, complete, strict=True):
            del one.tokens[: len(tokens)]
            if whole:
                accepted, conclusive = verify_draft(next(rows)[None], ())
                following.append((one, tokens, accepted[0] if conclusive else None))
        return following

    def _decode_alone(self, one: _Running, tokens: list[int]) -> int:
        """Decode the last tokens of a request again, in a batch of their own, and return the next one."""
        self._decoder.cut_branch(one.branch, len(tokens))
        wanted = np.zeros(len(tokens), np.bool_)
        wanted[-1] = True
        (logits,) = self._decoder.decode_branches(
            [one.branch] * len(tokens), tokens, wanted, cancel=self._cancel
        )
        second, best = np.partition(logits, -2)[-2:]
        one.uncertain = best - second < UNCERTAIN
        return self._sampler.sample()

    def _append(self, one: _Running, token: int) -> None:
        watch = one.request.watch
        watch.lap("decode")
        if not one.answer.token_ids:
            one.answer.first_token_ms = watch.total_ms
        one.text += one.answer.append(token) or ""
        one.tokens = [token] if one.answer.finish_reason is None else []

    def _outcome(self, one: _Running) -> Finished | None:
        """Return the answer if it has ended."""
        if one.answer.finish_reason is None:
            return None
        return Finished(one.request, one.answer, one.text, one.prefill)


def stops_all(error: EdgeVLMError) -> bool:
    """Return True if an error is not one of a single request: the model was closed, or all is cancelled."""
    return isinstance(error, ClosedError | CancelledError) and not isinstance(error, DeadlineError)


def _identity(request: Request) -> Request:
    return request


def _run(steps: Generator[Chunk, None, PrefillStats]) -> PrefillStats:
    """Run a prefill to its end and return its cost."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            stats: PrefillStats = end.value
            return stats
