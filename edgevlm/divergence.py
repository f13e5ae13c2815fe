"""How far next-token distributions are from those of a reference: the Kullback-Leibler divergence in nats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Divergence:
    """Next-token distributions beside those of a reference, over the positions of forced answers."""

    kl: NDArray[np.float64]
    """Divergence of each position, ``[positions]``; 0: the same distribution."""
    same_top: NDArray[np.bool_]
    """Whether the most likely token is the reference's, ``[positions]``."""


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the logarithms of the softmax over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


def divergence(reference: NDArray[np.float32], found: NDArray[np.float32]) -> Divergence:
    """Compare logits, both float32 ``[positions, vocabulary]``, position by position.

    The divergence is ``sum(p * (log p - log q))`` over the vocabulary, p of the reference, q of `found`.
    """
    p, q = log_probabilities(reference), log_probabilities(found)
    kl = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return Divergence(kl, reference.argmax(axis=-1) == found.argmax(axis=-1))


def same_start(reference: tuple[int, ...], found: tuple[int, ...]) -> int:
    """Return the number of tokens before the first that differs, or that one answer lacks."""
    pairs = zip(reference, found, strict=False)
    shorter = min(len(reference), len(found))
    return next((i for i, (theirs, ours) in enumerate(pairs) if theirs != ours), shorter)
