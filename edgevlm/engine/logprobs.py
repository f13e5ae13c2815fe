"""Log-probabilities from the decoder's logits, before temperature, penalties and filters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.results import TokenLogprob
from edgevlm.runtimes.protocols import DecoderRuntime


def next_logprobs(decoder: DecoderRuntime) -> NDArray[np.float64]:
    """Return the natural log-probability ``[vocabulary]`` of each next token."""
    logits = decoder.logits().astype(np.float64)
    logits -= logits.max()
    logits -= np.log(np.exp(logits).sum())
    return logits


def token_logprob(decoder: DecoderRuntime, token: int, top: int) -> TokenLogprob:
    """Return the log-probability of `token` and of the `top` most likely tokens."""
    logprobs = next_logprobs(decoder)
    best = np.argpartition(-logprobs, top)[:top]
    ordered = best[np.argsort(-logprobs[best], kind="stable")]

    def of(token: int, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token, decoder.piece(token), float(logprobs[token]), top)

    return of(token, tuple(of(int(other)) for other in ordered))
