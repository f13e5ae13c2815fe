"""Sampling with NumPy: the choices of llama.cpp's sampler chain, for any decoder."""

from __future__ import annotations

import collections
import heapq
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ClosedError, InferenceError
from edgevlm.runtimes.protocols import Sampling

if TYPE_CHECKING:  # imported with the first schema only
    from edgevlm.runtimes.json_schema.constraint import JsonMatcher

MAX_HEAP = 128
"""Up to so many candidates come from a heap, as llama.cpp's do; more are cheaper to sort."""
FIRST_SORTED = 256
"""Candidates that top-p sorts first, where there is no top-k."""


class NumpySampler:
    """A sampler of one answer on a decoder's logits; implements `Sampler`.

    It chooses the tokens that llama.cpp's sampler chain chooses for the same logits, settings and seed: with
    float32 where llama.cpp has it, sums in the same order, and the same random numbers. At temperature 0 the
    chain is: penalties, greedy. Otherwise: penalties, top-k, top-p, min-p, temperature, random draw.

    Equal logits keep the order that llama.cpp gives them on Linux, with one exception: where more than
    `MAX_HEAP` candidates are sorted, it depends on the C++ library there, and here lower ids come first.

    Args:
        vocabulary_size: number of tokens; logits after them are padding.
        sampling: the settings.
        logits: returns the logits that the next token is chosen from, float32 ``[n]``, or raises an error.
        matcher: limits the tokens to those that a JSON schema allows; None allows all.
    """

    PENALTY_WINDOW = 64
    """Number of the answer's last tokens that the repetition penalty covers."""

    def __init__(
        self,
        vocabulary_size: int,
        sampling: Sampling,
        logits: Callable[[], NDArray[np.float32]],
        matcher: JsonMatcher | None = None,
    ) -> None:
        self._vocabulary_size = vocabulary_size
        self._logits = logits
        self._matcher = matcher
        self._forced: list[int] = []
        """Tokens that come next, which the matcher has accepted."""
        self._closed = False
        self._last: collections.deque[int] = collections.deque(maxlen=self.PENALTY_WINDOW)
        self._penalty = np.float32(sampling.repetition_penalty)
        self._top_k = sampling.top_k
        self._top_p = np.float32(sampling.top_p)
        min_p = float(np.float32(sampling.min_p))
        self._log_min_p = np.float32(math.log(min_p)) if min_p > 0 else None
        self._temperature = np.float32(sampling.temperature)
        self._greedy = sampling.temperature == 0
        if not self._greedy:
            self._random = np.random.RandomState(sampling.seed)  # seeds as std::mt19937 does

    def sample(self) -> int:
        """Choose the next token from the logits of the last decoded position, and remember it.

        Raises:
            InputError: the last decoding did not ask for logits, or no token can continue the JSON text.
            ClosedError: the sampler is closed.
            InferenceError: the logits are NaN (damaged weights).
        """
        self._check_open()
        logits = self._logits()[: self._vocabulary_size]
        if not self._greedy or self._matcher is not None:
            _check_not_nan(logits.sum())
        if self._matcher is not None and (forced := self.forced(1)):
            return forced[0]
        if self._penalty != 1 and self._last:
            logits = self._penalized(logits)
        allowed = None if self._matcher is None else self._matcher.allowed_tokens()
        if allowed is not None:
            logits = logits[allowed]
        if self._greedy:
            chosen = int(logits.argmax())  # of a NaN, if there is one
            _check_not_nan(logits[chosen])
        else:
            chosen = self._draw(logits)
        token = chosen if allowed is None else int(allowed[chosen])
        self._last.append(token)
        if self._matcher is not None:
            self._matcher.accept(token)
        return token

    def forced(self, limit: int) -> list[int]:
        """Return the tokens that the JSON schema forces, and remember them; see `Sampler.forced`.

        Raises:
            InputError: the schema became too complex.
            ClosedError: the sampler is closed.
        """
        self._check_open()
        if self._matcher is None:
            return []
        if not self._forced:
            self._forced = self._matcher.accept_forced()
        tokens, self._forced = self._forced[:limit], self._forced[limit:]
        self._last.extend(tokens)
        return tokens

    def _penalized(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits with the repetition penalty."""
        penalized = logits.copy()
        seen = list(set(self._last))
        found = logits[seen]
        penalized[seen] = np.where(found <= 0, found * self._penalty, found / self._penalty)
        return penalized

    def _draw(self, logits: NDArray[np.float32]) -> int:
        """Return the index of a random logit by the settings."""
        draw = self._uniform()
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            kept = self._candidates(logits)
            found = logits if kept is None else logits[kept]
            scaled = found / self._temperature
            highest = scaled.max()
            if not np.isfinite(highest):  # the temperature is next to 0
                index = int(found.argmax())
            else:
                sums = np.cumsum(_exp(scaled - highest), dtype=np.float64)
                index = int(np.searchsorted(sums, sums[-1] * draw))
        return index if kept is None else int(kept[index])

    def _candidates(self, logits: NDArray[np.float32]) -> NDArray[np.intp] | None:
        """Return the indices that top-k, top-p and min-p keep; None: all, in their order."""
        kept = largest(logits, min(self._top_k, len(logits))) if self._top_k else None
        if self._top_p < 1:
            kept = self._most_likely(logits, kept)
        if self._log_min_p is None:
            return kept
        found = logits if kept is None else logits[kept]
        likely = np.flatnonzero(found >= found.max() + self._log_min_p)
        return likely if kept is None else kept[likely]

    def _most_likely(
        self, logits: NDArray[np.float32], kept: NDArray[np.intp] | None
    ) -> NDArray[np.intp]:
        """Return the most likely ones of the indices that are kept, as far as top-p needs them."""
        if kept is not None:
            likely = _exp(logits[kept] - logits[kept[0]])
            return kept[: self._needed(likely / np.cumsum(likely)[-1])]
        likely = _exp(logits - logits.max())
        likely /= np.cumsum(likely)[-1]
        count = FIRST_SORTED if len(logits) > 4 * FIRST_SORTED else len(logits)
        while True:
            order = largest(logits, count)
            needed = self._needed(likely[order])
            if needed < count or count == len(logits):
                return order[:needed]
            count = min(16 * count, len(logits))

    def _needed(self, likely: NDArray[np.float32]) -> int:
        """Return how many of the probabilities sum to top-p; all if they do not reach it."""
        return int(np.searchsorted(np.cumsum(likely), self._top_p)) + 1

    def _uniform(self) -> float:
        """Return a random number from 0 to 1, as C++'s ``uniform_real_distribution<double>`` makes it."""
        drawn = int.from_bytes(self._random.bytes(8), "little") / 2**64
        return min(drawn, math.nextafter(1, 0))

    def close(self) -> None:
        """Free the sampler. A second call does nothing."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the sampler is closed; create a new one")


class _Candidate(float):
    """A logit and its index. `heapq` compares the logits alone, as llama.cpp does."""

    __slots__ = ("index",)

    index: int


def _candidate(logit: float, index: int) -> _Candidate:
    made = _Candidate(logit)
    made.index = index
    return made


def largest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the indices of the `count` largest logits, the largest first.

    Up to `MAX_HEAP` of them have the order of C++'s ``partial_sort`` on Linux, which `heapq` equals step by
    step; of more, equal logits have their own order.
    """
    if count > MAX_HEAP:
        found = np.arange(len(logits))
        if count < len(logits):
            least = np.partition(logits, len(logits) - count)[len(logits) - count]
            found = np.flatnonzero(logits >= least)
        return found[np.argsort(-logits[found], kind="stable")][:count]
    heap = list(map(_candidate, logits[:count].tolist(), range(count)))
    heapq.heapify(heap)
    start = count
    while start < len(logits):
        found = start + np.flatnonzero(logits[start : 2 * start] > heap[0])
        for logit, index in zip(logits[found].tolist(), found.tolist(), strict=True):
            if logit > heap[0]:
                heapq.heapreplace(heap, _candidate(logit, index))
        start *= 2
    return np.array([heapq.heappop(heap).index for _ in range(count)][::-1])


def _exp(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the exponentials, rounded correctly as those of C are; NumPy's own of float32 are not."""
    return np.exp(values.astype(np.float64)).astype(np.float32)


def _check_not_nan(value: np.float32) -> None:
    """Check that a number is not NaN.

    Raises:
        InferenceError: the number is NaN.
    """
    if np.isnan(value):
        raise InferenceError(
            "the decoder computes NaN; its weights are damaged, get the bundle again"
        )
