"""Choosing tokens by llama.cpp's own sampler chain, in C."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ClosedError, InferenceError
from edgevlm.runtimes.llama_cpp.library import library
from edgevlm.runtimes.protocols import Sampling

if TYPE_CHECKING:  # loaded with the first schema
    from edgevlm.runtimes.json_schema.constraint import JsonMatcher

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama.cpp's `llama_token_data`."""


class LlamaCppSampler:
    """llama.cpp's sampler chain over a decoder's logits; implements `Sampler`.

    Temperature 0: penalties, then the most likely token, which without penalties NumPy finds sooner than
    llama.cpp copies its candidates. Else penalties, top-k, top-p, min-p, temperature
    and a random draw, in this order.
    """

    PENALTY_WINDOW = 64
    """Last tokens of the answer that the repetition penalty looks at."""

    def __init__(
        self,
        context: Any,
        vocabulary_size: int,
        sampling: Sampling,
        last_logits: Callable[[], NDArray[np.float32]],
        matcher: JsonMatcher | None = None,
    ) -> None:
        """
        Args:
            context: llama.cpp's.
            last_logits: the logits that the next token is chosen from; raises if there are none.
            matcher: says which tokens count; None for all.
        """
        self._chain: Any = None
        self._context = context
        self._last_logits = last_logits
        self._matcher = matcher
        self._most_likely = (
            sampling.temperature == 0 and sampling.repetition_penalty == 1 and matcher is None
        )
        self._llama = llama = library()
        self._free: Callable[[Any], None] = llama.llama_sampler_free
        self._sample = llama.llama_sampler_sample
        links = [
            llama.llama_sampler_init_penalties(
                vocabulary_size, self.PENALTY_WINDOW, sampling.repetition_penalty, 0.0, 0.0
            )
        ]
        if sampling.temperature == 0:
            links.append(llama.llama_sampler_init_greedy())
        else:
            links += [
                llama.llama_sampler_init_top_k(sampling.top_k),
                llama.llama_sampler_init_top_p(sampling.top_p, 1),
                llama.llama_sampler_init_min_p(sampling.min_p, 1),
                llama.llama_sampler_init_temp(sampling.temperature),
                llama.llama_sampler_init_dist(sampling.seed),
            ]
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for link in links:
            llama.llama_sampler_chain_add(self._chain, link)

    def sample(self) -> int:
        """The next token, from the logits of the position decoded last; the sampler remembers it.

        Raises:
            InputError: the last decoding did not ask for logits.
            ClosedError: the sampler was closed.
            InferenceError: the logits are NaN (damaged weights).
        """
        if not self._chain:
            raise ClosedError("the sampler is closed; create a new one")
        logits = self._last_logits()
        if self._most_likely:
            best = int(logits.argmax())  # the first NaN, if there is one
            _check_number(logits[best])
            return best
        _check_number(logits.sum())
        if self._matcher is not None:
            return self._sample_allowed(self._matcher)
        token: int = self._sample(self._chain, self._context, -1)
        return token

    def _sample_allowed(self, matcher: JsonMatcher) -> int:
        allowed = matcher.allowed()
        llama = self._llama
        candidates = (llama.llama_token_data * len(allowed))()
        fields = np.frombuffer(candidates, _CANDIDATE)
        fields["id"], fields["logit"] = allowed, self._last_logits()[allowed]
        array = llama.llama_token_data_array(candidates, len(allowed), -1, False)
        llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama.llama_sampler_accept(self._chain, token)
        matcher.push(token)
        return token

    def close(self) -> None:
        """Free the chain. May be called again."""
        if self._chain:
            self._free(self._chain)
        self._chain = None

    def __del__(self) -> None:
        self.close()


def _check_number(value: np.float32) -> None:
    """Raises LoadError for NaN."""
    if np.isnan(value):
        raise InferenceError(
            "the decoder computes NaN; its weights are damaged, get the bundle again"
        )
