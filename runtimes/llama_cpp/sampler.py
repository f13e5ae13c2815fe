"""Sampling with llama.cpp's sampler chain."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ClosedError, InferenceError
from edgevlm.runtimes.llama_cpp.library import load_llama_cpp
from edgevlm.runtimes.protocols import Sampling

if TYPE_CHECKING:  # imported with the first schema only
    from edgevlm.runtimes.json_schema.constraint import JsonMatcher

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""Layout of llama.cpp's ``llama_token_data``."""


class LlamaCppSampler:
    """llama.cpp's sampler chain on a decoder's logits; implements `Sampler`.

    At temperature 0 the chain is: penalties, greedy. Otherwise: penalties, top-k, top-p, min-p, temperature,
    random draw. Greedy without penalties uses NumPy's argmax, which is faster than llama.cpp's chain.

    Args:
        context: llama.cpp's context.
        vocabulary_size: number of tokens.
        sampling: the settings.
        last_logits: returns the logits that the next token is chosen from, or raises an error.
        matcher: limits the tokens to those that a JSON schema allows; None allows all.
    """

    PENALTY_WINDOW = 64
    """Number of the answer's last tokens that the repetition penalty covers."""

    def __init__(
        self,
        context: Any,
        vocabulary_size: int,
        sampling: Sampling,
        last_logits: Callable[[], NDArray[np.float32]],
        matcher: JsonMatcher | None = None,
    ) -> None:
        self._chain: Any = None
        self._context = context
        self._last_logits = last_logits
        self._matcher = matcher
        self._forced: list[int] = []
        """Tokens that come next, which the matcher has accepted."""
        self._greedy = (
            sampling.temperature == 0 and sampling.repetition_penalty == 1 and matcher is None
        )
        self._llama = llama = load_llama_cpp()
        self._free: Callable[[Any], None] = llama.llama_sampler_free
        self._sample = llama.llama_sampler_sample
        samplers = [
            llama.llama_sampler_init_penalties(
                vocabulary_size, self.PENALTY_WINDOW, sampling.repetition_penalty, 0.0, 0.0
            )
        ]
        if sampling.temperature == 0:
            samplers.append(llama.llama_sampler_init_greedy())
        else:
            samplers += [
                llama.llama_sampler_init_top_k(sampling.top_k),
                llama.llama_sampler_init_top_p(sampling.top_p, 1),
                llama.llama_sampler_init_min_p(sampling.min_p, 1),
                llama.llama_sampler_init_temp(sampling.temperature),
                llama.llama_sampler_init_dist(sampling.seed),
            ]
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in samplers:
            llama.llama_sampler_chain_add(self._chain, sampler)

    def sample(self) -> int:
        """Choose the next token from the logits of the last decoded position, and remember it.

        Raises:
            InputError: the last decoding did not ask for logits, or no token can continue the JSON text.
            ClosedError: the sampler is closed.
            InferenceError: the logits are NaN (damaged weights).
        """
        if not self._chain:
            raise ClosedError("the sampler is closed; create a new one")
        logits = self._last_logits()
        if self._greedy:
            best = int(logits.argmax())  # of a NaN, if there is one
            _check_not_nan(logits[best])
            return best
        _check_not_nan(logits.sum())
        if self._matcher is not None:
            forced = self.forced(1)
            return forced[0] if forced else self._sample_allowed(self._matcher)
        token: int = self._sample(self._chain, self._context, -1)
        return token

    def forced(self, limit: int) -> list[int]:
        """Return the tokens that the JSON schema forces, and remember them; see `Sampler.forced`.

        Raises:
            InputError: the schema became too complex.
            ClosedError: the sampler is closed.
        """
        if not self._chain:
            raise ClosedError("the sampler is closed; create a new one")
        if self._matcher is None:
            return []
        if not self._forced:
            self._forced = self._matcher.accept_forced()
        tokens, self._forced = self._forced[:limit], self._forced[limit:]
        for token in tokens:
            self._llama.llama_sampler_accept(self._chain, token)
        return tokens

    def _sample_allowed(self, matcher: JsonMatcher) -> int:
        allowed = matcher.allowed_tokens()
        llama = self._llama
        candidates = (llama.llama_token_data * len(allowed))()
        fields = np.frombuffer(candidates, _CANDIDATE)
        fields["id"], fields["logit"] = allowed, self._last_logits()[allowed]
        array = llama.llama_token_data_array(candidates, len(allowed), -1, False)
        llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama.llama_sampler_accept(self._chain, token)
        matcher.accept(token)
        return token

    def close(self) -> None:
        """Free the sampler chain. A second call does nothing."""
        if self._chain:
            self._free(self._chain)
        self._chain = None

    def __del__(self) -> None:
        self.close()


def _check_not_nan(value: np.float32) -> None:
    """Check that a number is not NaN.

    Raises:
        InferenceError: the number is NaN.
    """
    if np.isnan(value):
        raise InferenceError(
            "the decoder computes NaN; its weights are damaged, get the bundle again"
        )
