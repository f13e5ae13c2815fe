"""Embeddings of tiles: from the cache, or from the vision graph.

Where vision graph and decoder run on different devices, the vision graph encodes tiles while the decoder
prefills those before them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.inputs.image_processor import Tile
from edgevlm.lru_cache import LruCache
from edgevlm.runtimes.protocols import VisionRuntime

EmbeddingLookup: TypeAlias = "Callable[[Tile], NDArray[np.float32]]"
"""Returns the rows of a tile, ``[rows, width]``, scaled for the decoder."""

MAX_CACHE_BYTES = 64 * 2**20
"""Embeddings of recent tiles; an image of SmolVLM-256M in 17 tiles has 2.5 MB."""

TILES_PER_CHUNK = 4
"""Tiles that are encoded between two chunks of a stream."""


class VisionEncoder:
    """A vision graph, which it owns, and a cache of embeddings by the key of their tile.

    Args:
        scale: factor by which the decoder expects embeddings to be multiplied.
        ahead: encode in a second thread while the decoder works. This helps if they use different devices.
    """

    def __init__(self, vision: VisionRuntime, scale: float, *, ahead: bool) -> None:
        self._vision = vision
        self._scale = np.float32(scale)
        self.ahead = ahead
        self.cache: LruCache[bytes, NDArray[np.float32]] = LruCache(
            MAX_CACHE_BYTES, lambda embeddings: embeddings.nbytes
        )

    def count_missing(self, tiles: Iterable[Tile]) -> int:
        """Return how many of these tiles are not in the cache."""
        return sum(tile.key not in self.cache for tile in tiles)

    def encode(
        self, tiles: Collection[Tile], *, keep: bool = True, cancel: CancelSignal
    ) -> dict[Tile, NDArray[np.float32]]:
        """Return the scaled rows ``[rows, width]`` of each tile.

        Args:
            keep: put new embeddings into the cache.
            cancel: stops this call, also from another thread; no tile of it is kept then.

        Raises:
            CancelledError: `cancel` stopped it.
        """
        found = {tile: self.cache[tile.key] for tile in tiles if tile.key in self.cache}
        missing = [tile for tile in dict.fromkeys(tiles) if tile not in found]
        # A run of the vision graph takes tiles of one size, and one question.
        runs = itertools.groupby(missing, lambda tile: (tile.question, tile.pixels.shape))
        for (question, _), group in runs:
            tiles_of_run = list(group)
            pixels = np.stack([tile.pixels for tile in tiles_of_run])
            encoded = self._vision.encode(pixels, question=question, cancel=cancel) * self._scale
            found.update(zip(tiles_of_run, encoded, strict=True))
        if keep:
            for tile, embeddings in found.items():
                self.cache[tile.key] = embeddings
        return found

    def encode_chunks(
        self, tiles: Collection[Tile], *, keep: bool = True, cancel: CancelSignal
    ) -> Iterator[dict[Tile, NDArray[np.float32]]]:
        """Encode as `encode` does, a few tiles at a time."""
        for chunk in _chunks(tiles):
            yield self.encode(chunk, keep=keep, cancel=cancel)

    @contextlib.contextmanager
    def encode_ahead(
        self, tiles: Collection[Tile], watch: Stopwatch, *, keep: bool = True, cancel: CancelSignal
    ) -> Iterator[EmbeddingLookup]:
        """Encode tiles in a second thread.

        The lookup waits for a tile that is not encoded yet. This wait counts as "encode", the time between
        two waits as "prefill".
        """
        with ThreadPoolExecutor(1, "edgevlm-vision") as thread:
            pending: dict[Tile, Future[dict[Tile, NDArray[np.float32]]]] = {}
            for chunk in _chunks(tiles):
                encoded = thread.submit(self.encode, chunk, keep=keep, cancel=cancel)
                pending |= dict.fromkeys(chunk, encoded)

            def wait(tile: Tile) -> NDArray[np.float32]:
                watch.lap("prefill")
                embeddings = pending[tile].result()[tile]
                watch.lap("encode")
                return embeddings

            try:
                yield wait
            finally:
                thread.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Free the vision graph and the cache."""
        self.cache.clear()
        self._vision.close()


def _chunks(tiles: Collection[Tile]) -> Iterator[list[Tile]]:
    distinct = list(dict.fromkeys(tiles))
    for first in range(0, len(distinct), TILES_PER_CHUNK):
        yield distinct[first : first + TILES_PER_CHUNK]
