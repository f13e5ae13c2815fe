"""Embeddings of tiles: those that are kept, and those that the vision graph has to compute.

Where vision graph and decoder run on different devices, tiles are encoded while the decoder takes in
those before them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.embedding_cache import EmbeddingCache
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.inputs.image_processor import Pixels
from edgevlm.runtimes.protocols import VisionRuntime

Embeddings: TypeAlias = "Callable[[bytes], NDArray[np.float32]]"
"""A tile's embeddings ``[tokens_per_tile, width]``, scaled for the decoder, by its key."""

PART = 4
"""Tiles that go through the vision graph at once: between two parts a request can be given up, and what
encodes ahead hands over."""


class TileEncoder:
    """A vision graph, which it owns, and the embeddings that it keeps.

    Args:
        scale: what the decoder expects embeddings to be multiplied with.
        ahead: encode in a thread of its own while the decoder works, which helps if that is elsewhere.
    """

    def __init__(self, vision: VisionRuntime, scale: float, *, ahead: bool) -> None:
        self._vision = vision
        self._scale = np.float32(scale)
        self.ahead = ahead
        self.cache = EmbeddingCache()

    def missing(self, keys: Iterable[bytes]) -> int:
        """How many of these tiles would have to be encoded."""
        return sum(key not in self.cache for key in keys)

    def encode(
        self, keys: Collection[bytes], pixels: Pixels, *, keep: bool = True
    ) -> dict[bytes, NDArray[np.float32]]:
        """Scaled embeddings ``[tokens_per_tile, width]`` of each tile, computed once while they are kept.

        Args:
            keep: those that are computed now, for later requests.
        """
        missing = [key for key in dict.fromkeys(keys) if key not in self.cache]
        found = {key: self.cache[key] for key in keys if key in self.cache}
        if missing:
            encoded = self._vision.encode(np.stack([pixels(key) for key in missing])) * self._scale
            found.update(zip(missing, encoded, strict=True))
        if keep:
            self.cache.update(found)
        return found

    def parts(
        self, keys: Collection[bytes], pixels: Pixels, *, keep: bool = True
    ) -> Iterator[dict[bytes, NDArray[np.float32]]]:
        """As `encode`, a few tiles at a time."""
        for part in _parts(keys):
            yield self.encode(part, pixels, keep=keep)

    @contextlib.contextmanager
    def encoding_ahead(
        self, keys: Collection[bytes], pixels: Pixels, watch: Stopwatch, *, keep: bool = True
    ) -> Iterator[Embeddings]:
        """For a prefill, which the time belongs to that no embeddings were waited for."""
        with ThreadPoolExecutor(1, "edgevlm-vision") as thread:
            pending: dict[bytes, Future[dict[bytes, NDArray[np.float32]]]] = {}
            for part in _parts(keys):
                encoded = thread.submit(self.encode, part, pixels, keep=keep)
                pending |= dict.fromkeys(part, encoded)

            def wait(key: bytes) -> NDArray[np.float32]:
                watch.end("prefill")
                rows = pending[key].result()[key]
                watch.end("encode")
                return rows

            try:
                yield wait
            finally:
                thread.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Free the graph and what is kept."""
        self.cache.clear()
        self._vision.close()


def _parts(keys: Collection[bytes]) -> Iterator[list[bytes]]:
    distinct = list(dict.fromkeys(keys))
    for first in range(0, len(distinct), PART):
        yield distinct[first : first + PART]
