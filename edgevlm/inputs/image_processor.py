"""Images as the engine takes them: split into tiles, each with a hash of its pixels.

The processor remembers the grid and the hashes of recent images, but not their tiles. So an image that comes
again, as in every turn of a conversation, is not resized again while the caches hold its embeddings.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgevlm.inputs.tiling import ImageBudget, Tiles, split_image
from edgevlm.lru_cache import LruCache
from edgevlm.manifest import ImagePreparation

MAX_REMEMBERED = 256
"""Images whose grid and hashes are remembered, up to a kilobyte each."""


@dataclass(frozen=True)
class Tile:
    """One tile of an image. Tiles with the same pixels are equal."""

    key: bytes
    """Hash of the pixels."""
    image: ProcessedImage = field(repr=False, compare=False)
    index: int = field(compare=False)
    """Position among the tiles of the image."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """RGB uint8 ``[height, width, 3]``; computed when first needed."""
        pixels: NDArray[np.uint8] = self.image.pixels[self.index]
        return pixels


@dataclass(frozen=True, eq=False)
class ProcessedImage:
    """An image ready for the vision graph."""

    keys: tuple[bytes, ...]
    """Hash of the pixels of each tile, in the order of `Tiles`."""
    rows: int
    columns: int
    """Rows and columns of the grid; both 0 for an image of one tile."""
    split: Callable[[], Tiles] = field(repr=False)
    """Computes the tiles."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns; (0, 0) for an image of one tile."""
        return self.rows, self.columns

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles in order; their pixels are computed when first needed."""
        return tuple(Tile(key, self, index) for index, key in enumerate(self.keys))

    @functools.cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """RGB uint8 ``[n, height, width, 3]``; computed when first needed."""
        return self.split().pixels


class ImageProcessor:
    """Splits images into tiles as a model was trained to see them. Safe for several threads at once."""

    def __init__(self, preparation: ImagePreparation, tokens_per_tile: int) -> None:
        self._preparation = preparation
        self._tokens_per_tile = tokens_per_tile
        self._remembered: LruCache[object, tuple[tuple[bytes, ...], int, int]] = LruCache(
            MAX_REMEMBERED
        )
        self._lock = threading.Lock()

    def process(self, image: NDArray[np.uint8], budget: ImageBudget) -> ProcessedImage:
        """Split an RGB uint8 image ``[height, width, 3]`` into tiles.

        Raises:
            InputError: the budget is less than one tile.
        """
        split = functools.partial(
            split_image,
            preparation=self._preparation,
            detail=budget.detail,
            max_tiles=budget.max_tiles(self._tokens_per_tile),
        )
        if (
            self._preparation.strategy != "grid"
        ):  # one tile takes no longer than the hash of an image
            return _processed(split(image))
        name = _hash(image), image.shape, budget
        with self._lock:
            if name in self._remembered:
                # The caller may reuse the array before the tiles are needed.
                return ProcessedImage(
                    *self._remembered[name], functools.partial(split, image.copy())
                )
        processed = _processed(split(image))
        with self._lock:
            self._remembered[name] = processed.keys, processed.rows, processed.columns
        return processed


def _processed(tiles: Tiles) -> ProcessedImage:
    return ProcessedImage(tuple(map(_hash, tiles.pixels)), tiles.rows, tiles.columns, lambda: tiles)


def _hash(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
