"""Embeddings of recent tiles, kept between requests and bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

EMBEDDING_BYTES = 64 * 2**20
"""Embeddings of recent tiles that are kept; a picture of SmolVLM-256M in 17 tiles has 2.5 MB."""


class EmbeddingCache:
    """Embeddings of tiles by the hash of their pixels."""

    def __init__(self, most_bytes: int = EMBEDDING_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def __getitem__(self, key: bytes) -> NDArray[np.float32]:
        """Embeddings ``[tokens_per_tile, width]``, which count as used just now."""
        self._kept.move_to_end(key)
        return self._kept[key]

    def update(self, embeddings: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Keep these, as long as there is room for them."""
        for key, rows in embeddings.items():
            self._forget(key)
            self._kept[key] = rows
            self.bytes += rows.nbytes
        while self.bytes > self._most_bytes:
            self._forget(next(iter(self._kept)))

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0

    def _forget(self, key: bytes) -> None:
        rows = self._kept.pop(key, None)
        self.bytes -= 0 if rows is None else rows.nbytes
