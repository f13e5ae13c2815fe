"""Whether llama.cpp computes a token in a batch to the last bit as alone.

Its matrix kernels depend on the size of a batch. For some types of weights the kernels of one row and of
several add up in the same order (q8_0 and q4_0 on x86), for others they do not. So this is measured, once for
each decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 63
"""Most tokens of a batch that flash attention computes one by one; it computes 64 in tiles."""

MAX_UNSPLIT_ENTRIES = 256
"""Most entries of a sequence over which flash attention of a single token is not split between threads.
llama.cpp splits from 512 cells on, and counts them in steps of 256."""

_SIZES = (2, 3, 4, 5, 8, 13, 32, MAX_ROWS)
"""Sizes of batches that are tried."""

DecodeRows: TypeAlias = (
    "Callable[[Sequence[int], Sequence[int], Sequence[int], int], NDArray[np.float32]]"
)
"""Decodes tokens of two sequences: for each token its sequence, 0 or 1, its id and its position. Returns the
logits float32 ``[vocabulary]`` after the token whose index is the last argument. Sequences keep only what
comes before the positions of the call."""


def rounds_alike(decode: DecodeRows, vocabulary_size: int) -> bool:
    """Return True if a token has the same logits alone and in batches of several sizes."""
    tokens = [(7919 * index + 101) % vocabulary_size for index in range(MAX_ROWS + 1)]
    decode([0], tokens[:1], [0], 0)
    alone = decode([0], tokens[1:2], [1], 0).copy()
    for number, size in enumerate(_SIZES):
        others = list(range(size - 1))
        at = 0 if number % 2 else size - 1
        sequences, ids, positions = [1] * (size - 1), tokens[2 : size + 1], others
        sequences.insert(at, 0)
        ids.insert(at, tokens[1])
        positions.insert(at, 1)
        if not np.array_equal(decode(sequences, ids, positions, at), alone):
            return False
    return True
