"""Log-probabilities of several continuations of what the decoder holds: branches, decoded together."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.logprobs import log_softmax
from edgevlm.runtimes.protocols import DecoderRuntime


@contextlib.contextmanager
def open_branches(decoder: DecoderRuntime, count: int) -> Iterator[list[int]]:
    """Open branches of what the decoder holds, and drop them at the end."""
    branches: list[int] = []
    try:
        for _ in range(count):
            branches.append(decoder.branch())
        yield branches
    finally:
        for branch in branches:
            decoder.drop(branch)


def score_continuations(
    decoder: DecoderRuntime,
    continuations: Sequence[Sequence[int]],
    end_tokens: Collection[int],
    room: int,
    cancel: CancelSignal,
) -> list[float]:
    """Return log P(tokens, then an end token) of each continuation of what the decoder holds.

    The decoder must have logits of its last entry. It holds the same afterwards.

    Args:
        continuations: token ids of each; those of the longest fit into `room`.
        end_tokens: tokens that end an answer.
        room: free entries of the decoder.
        cancel: stops the work.

    Raises:
        CancelledError: `cancel` stopped it.
    """
    ends = sorted(end_tokens)
    following = [[*([token] for token in tokens), ends] for tokens in continuations]
    first = log_softmax(decoder.logits())
    totals = [float(np.logaddexp.reduce(first[expected[0]])) for expected in following]
    for group in _groups([len(tokens) for tokens in continuations], decoder.max_branches, room):
        with open_branches(decoder, len(group)) as branches:
            entries = [
                (branch, index, at)
                for branch, index in zip(branches, group, strict=True)
                for at in range(len(continuations[index]))
            ]
            for start in range(0, len(entries), decoder.max_logits):
                batch = entries[start : start + decoder.max_logits]
                rows = decoder.decode_branches(
                    [branch for branch, _, _ in batch],
                    [continuations[index][at] for _, index, at in batch],
                    cancel=cancel,
                )
                for row, (_, index, at) in zip(rows, batch, strict=True):
                    expected = following[index][at + 1]
                    totals[index] += float(np.logaddexp.reduce(log_softmax(row)[expected]))
    return totals


def _groups(lengths: Sequence[int], size: int, room: int) -> Iterator[list[int]]:
    """Split indices into groups of at most `size`, whose lengths together are at most `room`."""
    group: list[int] = []
    taken = 0
    for index, length in enumerate(lengths):
        if group and (len(group) == size or taken + length > room):
            yield group
            group, taken = [], 0
        group.append(index)
        taken += length
    if group:
        yield group
