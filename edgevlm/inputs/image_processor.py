"""Images as the engine takes them: split into tiles, each with a hash of its pixels, and packed into spans.

The processor remembers the layout and the hashes of recent images, but not their tiles. So an image that
comes again, as in every turn of a conversation, is not resized again while the caches hold its embeddings.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgevlm.inputs.packing import SpanPlan, max_tokens_per_tile, plan_spans
from edgevlm.inputs.tiling import ImageBudget, Layout, Tiles, split_image
from edgevlm.lru_cache import LruCache
from edgevlm.manifest import ImageSpec, VisionSpec

MAX_REMEMBERED = 256
"""Images whose layout and hashes are remembered, up to a kilobyte each."""


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


@dataclass(frozen=True)
class Span:
    """Consecutive positions of a prompt with embeddings of one image. Spans of the same pixels are equal."""

    key: bytes
    """Hash of the pixels of the tiles, and of how they are packed."""
    tiles: tuple[Tile, ...] = field(repr=False, compare=False)
    """The tiles that the embeddings come from."""
    plan: SpanPlan = field(repr=False, compare=False)
    """How the embeddings are made of the rows of the tiles."""

    @property
    def length(self) -> int:
        """Number of embeddings, and so of entries in the KV cache."""
        return self.plan.length


@dataclass(frozen=True, eq=False)
class ProcessedImage:
    """An image ready for the vision graph."""

    keys: tuple[bytes, ...]
    """Hash of the pixels of each tile, in the order of `Tiles`."""
    layout: Layout
    """How the tiles lie in the image."""
    plans: tuple[SpanPlan, ...] = field(repr=False)
    """How the tiles become spans, in the order of the prompt."""
    split: Callable[[], Tiles] = field(repr=False)
    """Computes the tiles."""

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles in order; their pixels are computed when first needed."""
        return tuple(Tile(key, self, index) for index, key in enumerate(self.keys))

    @functools.cached_property
    def spans(self) -> tuple[Span, ...]:
        """The spans in the order of the prompt."""
        tiles = self.tiles
        return tuple(
            Span(_span_key(self.keys, plan), tuple(tiles[index] for index in plan.tiles), plan)
            for plan in self.plans
        )

    @functools.cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """RGB uint8 ``[n, height, width, 3]``; computed when first needed."""
        return self.split().pixels


class ImageProcessor:
    """Splits images into tiles as a model was trained to see them. Safe for several threads at once."""

    def __init__(self, image: ImageSpec, vision: VisionSpec) -> None:
        self._image = image
        self._vision = vision
        self._max_tokens_per_tile = max_tokens_per_tile(vision)
        self._remembered: LruCache[object, tuple[tuple[bytes, ...], Layout]] = LruCache(
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
            tiling=self._image.tiling,
            detail=budget.detail,
            max_tiles=budget.max_tiles(self._max_tokens_per_tile),
        )
        if not self._image.splits:  # one tile takes no longer than the hash of an image
            return self._processed(split(image))
        name = _hash(image), image.shape, budget
        with self._lock:
            if name in self._remembered:
                keys, layout = self._remembered[name]
                # The caller may reuse the array before the tiles are needed.
                later = functools.partial(split, image.copy())
                return ProcessedImage(keys, layout, plan_spans(layout, self._vision), later)
        processed = self._processed(split(image))
        with self._lock:
            self._remembered[name] = processed.keys, processed.layout
        return processed

    def _processed(self, tiles: Tiles) -> ProcessedImage:
        keys = tuple(map(_hash, tiles.pixels))
        return ProcessedImage(
            keys, tiles.layout, plan_spans(tiles.layout, self._vision), lambda: tiles
        )


def _span_key(keys: tuple[bytes, ...], plan: SpanPlan) -> bytes:
    if plan.rows is None:
        return keys[plan.tiles[0]]
    digest = hashlib.blake2b(digest_size=16)
    for tile in plan.tiles:
        digest.update(keys[tile])
    for array in (plan.rows, plan.weights):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _hash(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
