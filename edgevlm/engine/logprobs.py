"""Log-probabilities from the decoder's logits, before temperature, penalties and filters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.results import TokenLogprob
from edgevlm.runtimes.protocols import DecoderRuntime


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the natural log-probability ``[vocabulary]`` of each next token."""
    logprobs = logits.astype(np.float64)
    logprobs -= logprobs.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    return logprobs


def token_logprob(decoder: DecoderRuntime, token: int, top: int) -> TokenLogprob:
    """Return the log-probability of `token` and of the `top` most likely tokens."""
    logprobs = log_softmax(decoder.logits())
    best = np.argpartition(-logprobs, top)[:top]
    ordered = best[np.argsort(-logprobs[best], kind="stable")]

    def of(token: int, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token, decoder.piece(token), float(logprobs[token]), top)

    return of(token, tuple(of(int(other)) for other in ordered))
