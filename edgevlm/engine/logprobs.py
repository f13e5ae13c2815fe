"""How likely tokens are, from the logits that a decoder holds: before temperature, penalties and filters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.results import TokenLogprob
from edgevlm.runtimes.protocols import DecoderRuntime


def next_logprobs(decoder: DecoderRuntime) -> NDArray[np.float64]:
    """Natural logarithms ``[vocabulary]`` of the probabilities of what comes next."""
    logits = decoder.logits().astype(np.float64)
    logits -= logits.max()
    logits -= np.log(np.exp(logits).sum())
    return logits


def token_logprob(decoder: DecoderRuntime, token: int, top: int) -> TokenLogprob:
    """Of a token that was chosen from the last logits, beside so many of the most likely ones."""
    logprobs = next_logprobs(decoder)
    best = np.argpartition(-logprobs, top)[:top]
    ordered = best[np.argsort(-logprobs[best], kind="stable")]

    def of(token: int, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token, decoder.piece(token), float(logprobs[token]), top)

    return of(token, tuple(of(int(other)) for other in ordered))
