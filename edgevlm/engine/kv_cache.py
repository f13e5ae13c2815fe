"""What is kept between requests: embeddings of recent tiles, and the decoder's KV cache.

The KV cache holds one conversation. When another begins whose prompt shares little with it, what would
be costly to compute again is copied out first and copied back when that conversation goes on, which takes
milliseconds where a prefill takes seconds. So many conversations can take turns, and a single one pays
nothing. Only what is expected to go on is copied: the turns of a `Chat`, and prompts that hold an earlier
answer. A single question is not, so a camera that shows a new frame each time pays for no copy
(`benchmarks/camera.py`). Both caches are bounded by bytes; what was used longest ago goes first.

A prompt is a list of *units*: a token id (one position) or a tile's key, the hash of its pixels (one
position for each of its embeddings). A key stands for the pixels themselves, so no picture is ever taken
for another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtimes.protocols import DecoderRuntime

Unit: TypeAlias = "int | bytes"

CONVERSATION_BYTES = 128 * 2**20
"""Conversations that are kept beside the one in the KV cache; 17 tiles of SmolVLM-256M take 25 MB."""

COSTLY_POSITIONS = 32
"""A conversation is copied out or back if it spares the decoder at least so many positions."""


class KVCache:
    """Knows what the decoder's KV cache holds, and holds what was copied out of it."""

    def __init__(
        self,
        decoder: DecoderRuntime,
        tokens_per_tile: int,
        most_bytes: int = CONVERSATION_BYTES,
    ) -> None:
        self._decoder = decoder
        self._tokens_per_tile = tokens_per_tile
        self._most_bytes = most_bytes
        self._held: list[Unit] = []
        self._continues = False
        self._copies: OrderedDict[tuple[Unit, ...], NDArray[np.uint8]] = OrderedDict()

    def positions(self, units: Iterable[Unit]) -> int:
        """Positions that units take in a prompt."""
        return sum(self._tokens_per_tile if isinstance(unit, bytes) else 1 for unit in units)

    @property
    def held_positions(self) -> int:
        """Positions in the decoder's KV cache."""
        return self.positions(self._held)

    @property
    def copies(self) -> int:
        """Conversations beside the one in the decoder's KV cache."""
        return len(self._copies)

    @property
    def copied_bytes(self) -> int:
        """What they take."""
        return sum(copy.nbytes for copy in self._copies.values())

    def reuse(self, units: Sequence[Unit], *, continues: bool) -> int:
        """Have the decoder hold what is known of this prompt; returns how many units that is.

        At least one unit is left to decode, since the logits after the prompt are needed.

        Args:
            continues: a later prompt is expected to begin with this one, so that it is copied out before
                another one takes its place.
        """
        wanted = units[:-1]
        shared = _shared(self._held, wanted)
        best = max(self._copies, key=lambda copy: _shared(copy, wanted), default=())
        known = _shared(best, wanted)
        restores = self.positions(wanted[shared:known]) >= COSTLY_POSITIONS
        copy = self._copies.pop(best) if restores else None
        lost = self.positions(self._held[shared:])
        costly = lost >= COSTLY_POSITIONS and (restores or 4 * lost >= self.held_positions)
        if costly and self._continues:  # else it is another question about the same pictures
            self._copy()
        self._continues = continues
        if copy is not None:
            self._held.clear()
            self._decoder.restore(copy, self.positions(best))
            self._held, shared = list(best), known
        self.truncate(shared)
        return shared

    def extend(self, units: Iterable[Unit]) -> None:
        """The decoder has taken these in."""
        self._held += units

    def truncate(self, units: int) -> None:
        """Have the decoder forget all but the first so many units."""
        del self._held[units:]
        self._decoder.truncate(self.held_positions)

    def empty(self) -> int:
        """Have the decoder forget its conversation; the copies stay. Returns 0, as nothing is shared."""
        self._held.clear()
        self._decoder.truncate(0)
        return 0

    def clear(self) -> None:
        """Forget everything, without a word to the decoder."""
        self._held.clear()
        self._copies.clear()

    def _copy(self) -> None:
        """Keep what the decoder holds, if there is room for it."""
        copy = self._decoder.save()
        if copy.nbytes > self._most_bytes:
            return
        self._copies[tuple(self._held)] = copy
        self._copies.move_to_end(tuple(self._held))
        while self.copied_bytes > self._most_bytes:
            self._copies.popitem(last=False)


def _shared(held: Sequence[Unit], wanted: Sequence[Unit]) -> int:
    """Length of the longest common beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(held, wanted, strict=False)) if a != b),
        min(len(held), len(wanted)),
    )
