"""Answers of several requests, decoded together as branches of one KV cache.

Requests are answered in *groups*. First the prompt of each is prefilled up to its last image, in an empty KV
cache as alone, and copied out. Then a branch for each goes on with the text after the image and with the
answer. Each step decodes the next tokens of all branches in one batch. When an answer ends, a request about
the same image may join; any other one waits for the next group.

So where the decoder rounds a batch as a single token (`DecoderRuntime.is_exact`), answers are to the last bit
those of one request after another. Elsewhere a token whose logit is not clearly above the second is computed
again alone, as after a draft (`edgevlm.engine.prompt_lookup`). The entries before it keep the rounding of
their batch. So where two tokens are almost equally likely even then, the request is answered alone, after its
group.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.answer_decoder import AnswerDecoder
from edgevlm.engine.answer_text import AnswerText
from edgevlm.engine.kv_cache import KVCache, count_positions, place_after
from edgevlm.engine.prefill import Prefill, PrefillStats
from edgevlm.engine.prompt_lookup import NEAR_TIE, verify_draft
from edgevlm.engine.request import Request
from edgevlm.errors import CancelledError, ClosedError, DeadlineError, EdgeVLMError
from edgevlm.inputs.prompt import PromptItem
from edgevlm.results import Chunk
from edgevlm.runtimes.protocols import DecoderRuntime, Place, Sampler

EXPECTED_TOKENS = 32
"""Entries that must be free for an answer that begins beside others. If the context is full nevertheless, the
answer that began last begins again later."""

UNCERTAIN = 0.25
"""Where batches are rounded otherwise, a token whose logit is not this much above the second, even if
computed alone, makes an answer uncertain. Of 480 answers of the built-in model that were decoded so, 4
differed with 0.05, 1 with 0.1 and none with 0.25."""


@dataclass(frozen=True)
class Finished:
    """A complete answer, whose chunks were yielded before."""

    request: Request
    answer: AnswerText
    prefill: PrefillStats


@dataclass(frozen=True)
class Uncertain:
    """A request that must be answered alone."""

    request: Request
    told: int
    """Tokens of its answer whose chunks were yielded before; they are right."""


Event: TypeAlias = "Chunk | Finished | Uncertain | EdgeVLMError"
"""A chunk of an answer, the end of an answer, or the error of its request."""

Item = TypeVar("Item")
"""What a request is made from when its turn comes."""

Waiting: TypeAlias = "deque[tuple[int, Item | Request]]"
"""Requests that wait, each with a number."""


@dataclass
class _Head:
    """The part of a prompt that is prefilled, up to its last image."""

    items: list[PromptItem]
    first: int | None
    """The first token of the answer, if this is the whole prompt."""
    held: bool = True
    """The decoder holds it."""
    copy: NDArray[np.uint8] | None = None
    """What the decoder held after it, until a branch of it is open."""
    branch: int | None = None
    """A branch of the copy."""

    @property
    def place(self) -> Place:
        return place_after(self.items)


@dataclass
class _Running:
    """A request whose answer is being decoded."""

    index: int
    request: Request
    answer: AnswerText
    head: _Head
    prefill: PrefillStats
    tokens: list[int]
    """Tokens that are decoded next: the rest of the prompt at first, then the last token of the answer; none
    when it has ended."""
    branch: int = 0
    untold: list[Chunk] = field(default_factory=list)
    """Chunks that were not yielded yet."""
    exact: bool = True
    """All tokens so far are those of the request alone, to the last bit."""
    uncertain: bool = False
    """The answer must be decoded alone."""


class ParallelAnswers(Generic[Item]):
    """Decodes greedy answers together.

    Args:
        prepare: makes a request, or raises its error.
        decoder: one with independent branches.
        answers: makes the empty answers.
        sampler: a greedy sampler.
        cancel: stops the work on all requests.
    """

    def __init__(
        self,
        prepare: Callable[[Item], Request],
        decoder: DecoderRuntime,
        prefill: Prefill,
        kv_cache: KVCache,
        answers: AnswerDecoder,
        sampler: Sampler,
        cancel: CancelSignal,
    ) -> None:
        self._prepare = prepare
        self._decoder = decoder
        self._prefill = prefill
        self._kv_cache = kv_cache
        self._answers = answers
        self._sampler = sampler
        self._cancel = cancel
        self._running: list[_Running] = []
        self._uncertain: list[tuple[int, Uncertain]] = []
        self._told: dict[int, int] = {}
        """Tokens of each request whose chunks were yielded."""
        self._heads: list[_Head] = []
        self._free = 0
        """Entries that no request of this group is expected to need."""

    def run(self, waiting: Waiting[Item]) -> Iterator[tuple[int, Event]]:
        """Answer all requests that wait. More may be added while this runs.

        Yields:
            The number of a request, and what happened to it. Where rounding could change an answer, its
            chunks come at its end.

        Raises:
            CancelledError, ClosedError: the work on all requests was stopped.
        """
        try:
            while waiting:
                yield from self._begin_group(waiting)
                while self._running:
                    for one in self._make_room():
                        waiting.appendleft((one.index, one.request))
                    yield from self._step()
                    yield from self._admit(waiting, join=True)
                if self._uncertain:
                    self._kv_cache.reset()  # decoded after nothing, as in a new model
                uncertain, self._uncertain = self._uncertain, []
                yield from uncertain
        finally:
            self._drop_all()

    def _drop_all(self) -> None:
        for one in self._running:
            if one.branch:
                self._decoder.drop(one.branch)
        self._running.clear()
        self._heads.clear()

    def _begin_group(self, waiting: Waiting[Item]) -> Iterator[tuple[int, Event]]:
        """Prefill the next requests and open their branches; yield the errors of those that fail."""
        self._heads.clear()
        self._free = self._decoder.context_length
        yield from self._admit(waiting)
        if not any(head.held for head in self._heads):
            self._kv_cache.reset()  # of a prompt that failed
        for one in self._running:
            one.branch = self._open_branch(one.head)

    def _admit(self, waiting: Waiting[Item], *, join: bool = False) -> Iterator[tuple[int, Event]]:
        """Begin requests, first come, first served, as long as there are branches and room.

        Args:
            join: only requests whose prompts begin with the held head, which join the others at once.
        """
        while waiting and len(self._running) < self._decoder.max_branches:
            index, item = waiting.popleft()
            try:
                request = item if isinstance(item, Request) else self._prepare(item)
                request.cancel.check()
                needed = self._entries(request)
                head = self._find_head(request)
                held = head is not None and head.held
                if (join and not held) or (self._running and needed > self._free):
                    waiting.appendleft((index, request))
                    return
                for chunk in self._begin(index, request, head):
                    yield index, chunk
                if join:
                    self._running[-1].branch = self._decoder.branch()
                self._free -= needed
            except EdgeVLMError as error:
                raise_if_fatal(error, self._cancel)
                yield index, error

    def _entries(self, request: Request) -> int:
        """Return how many entries a request is expected to need beside those that run."""
        needed = count_positions(request.items) + min(request.max_tokens, EXPECTED_TOKENS)
        head = self._find_head(request)
        return needed if head is None else needed - count_positions(head.items)

    def _find_head(self, request: Request) -> _Head | None:
        """Return the head of this group that the prompt of a request begins with."""
        items = list(request.items[: self._prefill.head(request.items)])
        return next((head for head in self._heads if head.items == items), None)

    def _begin(
        self, index: int, request: Request, head: _Head | None
    ) -> Generator[Chunk, None, None]:
        """Prefill the head of a prompt, if it is new, and add the request to the group.

        Yields:
            Chunks without text during prefill.
        """
        request.watch.lap("wait")
        prefill = None
        if head is None:
            items = list(request.items[: self._prefill.head(request.items)])
            for other in self._heads:
                if other.held:
                    other.copy, other.held = self._decoder.save(), False
            whole = len(items) == len(request.items)
            steps = self._prefill.run(
                items,
                request.watch,
                expect_continuation=False,
                cache_images=request.generation.cache_images,
                cancel=request.cancel,
                logits=whole,
            )
            with contextlib.ExitStack() as stack:
                if request.cancel is not self._cancel:
                    stack.enter_context(self._cancel.interrupting(request.cancel.cancel))
                prefill = yield from steps
            head = _Head(items, self._sampler.sample() if whole else None)
            self._heads.append(head)
        self._append(index, request, head, prefill)

    def _append(
        self, index: int, request: Request, head: _Head, prefill: PrefillStats | None = None
    ) -> None:
        """Add a request whose head was prefilled; None: for another request of this group."""
        answer = self._answers.new_answer(request)
        rest = [item for item in request.items[len(head.items) :] if isinstance(item, int)]
        stats = prefill or self._prefill.reuse(head.items)
        one = _Running(index, request, answer, head, stats, rest)
        self._running.append(one)
        if head.first is not None:
            self._add_token(one, head.first)

    def _open_branch(self, head: _Head) -> int:
        """Return a new branch of a head: of the first one, of its copy, or of the held sequence."""
        if head.branch is not None:
            return self._decoder.branch(head.branch)
        if head.copy is None:
            return self._decoder.branch()
        head.branch = self._decoder.branch_of_copy(head.copy, head.place)
        head.copy = None
        return head.branch

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
        batch, room = [], self._decoder.exact_batch_length
        for one in self._running:
            if tokens := one.tokens[:room]:
                batch.append((one, tokens))
                room -= len(tokens)
        return batch

    def _step(self) -> Iterator[tuple[int, Event]]:
        """Decode one batch; yield the new chunks, and the answers that end."""
        failed = self._find_cancelled()
        batch = [(one, tokens) for one, tokens in self._next_batch() if one.index not in failed]
        following: list[tuple[_Running, list[int], int | None]] = []
        try:
            following = self._decode(batch) if batch else []
        except EdgeVLMError as error:
            raise_if_fatal(error, self._cancel)
            for one, _ in batch:
                self._fail(one, error, failed)
        for one, tokens, token in following:
            try:
                self._add_token(one, self._decode_alone(one, tokens) if token is None else token)
            except EdgeVLMError as error:
                raise_if_fatal(error, self._cancel)
                self._fail(one, error, failed)
        for one in list(self._running):
            failure = failed.get(one.index)
            ended = one.uncertain or failure is not None or one.answer.finish_reason is not None
            if ended:
                self._running.remove(one)
                self._decoder.drop(one.branch)
            if one.uncertain:
                told = self._told.pop(one.index, 0)
                self._uncertain.append((one.index, Uncertain(one.request, told)))
                continue
            if one.exact or (ended and failure is None):
                yield from self._tell(one)
            if ended:
                self._told.pop(one.index, None)
            if failure is not None:
                yield one.index, failure
            elif ended:
                yield one.index, Finished(one.request, one.answer, one.prefill)

    def _find_cancelled(self) -> dict[int, EdgeVLMError]:
        """Return the errors of requests that were cancelled, by their numbers."""
        failed: dict[int, EdgeVLMError] = {}
        for one in self._running:
            try:
                one.request.cancel.check()
            except CancelledError as error:
                raise_if_fatal(error, self._cancel)
                self._fail(one, error, failed)
        return failed

    def _fail(self, one: _Running, error: EdgeVLMError, failed: dict[int, EdgeVLMError]) -> None:
        """End a request with an error. A deadline ends an answer that has begun."""
        if isinstance(error, DeadlineError) and one.answer.token_ids:
            one.answer.finish_reason, one.tokens = "deadline", []
        else:
            failed[one.index] = error

    def _tell(self, one: _Running) -> Iterator[tuple[int, Event]]:
        """Yield the chunks that were not yielded before, also not before the request began once more."""
        first = len(one.answer.token_ids) - sum(len(chunk.token_ids) for chunk in one.untold)
        for at, chunk in enumerate(one.untold, first):
            if at >= self._told.get(one.index, 0):
                self._told[one.index] = at + 1
                yield one.index, chunk
        one.untold.clear()

    def _decode(
        self, batch: Sequence[tuple[_Running, list[int]]]
    ) -> list[tuple[_Running, list[int], int | None]]:
        """Decode a batch.

        Returns:
            For each request without tokens left: those of this batch, and the next one; None if rounding
            could decide which one it is.
        """
        complete = [len(tokens) == len(one.tokens) for one, tokens in batch]
        for one, tokens in batch:
            one.exact &= self._decoder.is_exact(one.branch, len(tokens))
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
                near_tie = 0.0 if one.exact else NEAR_TIE
                accepted, conclusive = verify_draft(next(rows)[None], (), near_tie)
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

    def _add_token(self, one: _Running, token: int) -> None:
        watch = one.request.watch
        watch.lap("decode")
        if not one.answer.token_ids:
            one.answer.first_token_ms = watch.total_ms
        shown = one.answer.append(token)
        if shown is not None:
            one.untold.append(Chunk(shown, (token,)))
        one.tokens = [token] if one.answer.finish_reason is None else []


def raise_if_fatal(error: EdgeVLMError, cancel: CancelSignal) -> None:
    """Raise an error that is not of one request: the model was closed, or `cancel` stops all requests."""
    stopped = isinstance(error, CancelledError) and cancel.cancelled
    if stopped or isinstance(error, ClosedError):
        raise error
