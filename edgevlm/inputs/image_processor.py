"""Images as the engine takes them: split into tiles, each with a hash of its pixels, and packed into spans.

The processor remembers the layout and the hashes of recent images, but not their tiles. So an image that
comes again, as in every turn of a conversation, is not resized again while the caches hold its embeddings.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError
from edgevlm.inputs.packing import SpanPlan, max_tokens_per_tile, plan_spans
from edgevlm.inputs.tiling import (
    ImageBudget,
    Layout,
    Tiles,
    choose_own_size,
    longest_edge,
    slices,
    smart_resize,
    split_image,
)
from edgevlm.inputs.video_times import VideoTimes
from edgevlm.lru_cache import LruCache
from edgevlm.manifest import (
    CanvasTiling,
    FloorResizeTiling,
    ImageSpec,
    LongestEdgeTiling,
    OwnSizeGridTiling,
    OwnSizeTiling,
    SliceTiling,
    SmartResizeTiling,
    VisionSpec,
)

_logger = logging.getLogger("edgevlm")

MAX_REMEMBERED = 256
"""Images whose layout and hashes are remembered, up to a kilobyte each."""


@dataclass(frozen=True)
class Tile:
    """One tile of an image. Tiles with the same pixels are equal."""

    key: bytes
    """Hash of the pixels."""
    split: Callable[[], Tiles] = field(repr=False, compare=False)
    """Returns all tiles of the image; that of another image is another object."""
    index: int = field(compare=False)
    """Position among the tiles of the image."""
    question: str = field(default="", compare=False)
    """As of `ProcessedImage`; the key depends on it."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """RGB uint8 ``[height, width, 3]``, or 6 channels of two frames; computed when first needed."""
        return self.split().pixels[self.index]


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
    """An image or a video ready for the vision graph."""

    keys: tuple[bytes, ...]
    """Hash of the pixels of each tile, in the order of `Tiles`."""
    layout: Layout
    """How the tiles lie in the image."""
    plans: tuple[SpanPlan, ...] = field(repr=False)
    """How the tiles become spans, in the order of the prompt."""
    split: Callable[[], Tiles] = field(repr=False)
    """Computes the tiles."""
    times: VideoTimes | None = None
    """The times of a video, whose tiles are its frames; None for an image."""
    question: str = ""
    """What the vision graph reads beside the tiles, if it reads a question; see `asked`."""

    def asked(self, question: str) -> ProcessedImage:
        """Return the image for a vision graph that reads the question. The keys depend on the question."""
        if question == self.question:
            return self
        keys = tuple(_question_key(key, question) for key in map(hash_pixels, self.pixels))
        return dataclasses.replace(
            self, keys=keys, question=question, split=lambda: Tiles(self.pixels, self.layout)
        )

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles in order; their pixels are computed when first needed."""
        return tuple(
            Tile(key, self._split_once, index, self.question) for index, key in enumerate(self.keys)
        )

    @functools.cached_property
    def spans(self) -> tuple[Span, ...]:
        """The spans in the order of the prompt."""
        tiles = self.tiles
        return tuple(
            Span(_span_key(self.keys, plan), tuple(tiles[index] for index in plan.tiles), plan)
            for plan in self.plans
        )

    @property
    def pixels(self) -> tuple[NDArray[np.uint8], ...]:
        """RGB uint8 ``[height, width, 3]`` of each tile; computed when first needed."""
        return self._split_once().pixels

    @functools.cached_property
    def _split_once(self) -> Callable[[], Tiles]:
        """`split`, which runs once.

        Tiles refer to it, not to their image. Otherwise the image would refer to itself, and its pixels would
        stay in memory until Python looks for cycles.
        """
        return functools.cache(self.split)


class ImageProcessor:
    """Splits images into tiles as a model was trained to see them. Safe for several threads at once.

    Args:
        positions: numbering of the positions of the decoder, as of `edgevlm.manifest.DecoderSpec`.
    """

    def __init__(
        self, image: ImageSpec, vision: VisionSpec, positions: Literal["sequential", "grid"]
    ) -> None:
        self._image = image
        self._vision = vision
        self._positions = positions
        self._shrinks = False
        self._remembered: LruCache[object, tuple[tuple[bytes, ...], Layout]] = LruCache(
            MAX_REMEMBERED
        )
        self._lock = threading.Lock()

    def process(self, image: NDArray[np.uint8], budget: ImageBudget) -> ProcessedImage:
        """Split an RGB uint8 image ``[height, width, 3]`` into tiles.

        Raises:
            InputError: the budget is less than one tile.
            ImageError: the model does not take the aspect ratio of the image.
        """
        if isinstance(self._image.tiling, OwnSizeTiling):
            return self._split_by_own_size(image, budget, self._image.tiling)
        split = functools.partial(
            split_image,
            tiling=self._image.tiling,
            detail=budget.detail,
            max_tiles=budget.max_tiles(max_tokens_per_tile(self._vision)),
        )
        if not self._image.splits:  # one tile takes no longer than the hash of an image
            return self._processed(split(image))
        name = hash_pixels(image), budget
        with self._lock:
            if name in self._remembered:
                keys, layout = self._remembered[name]
                # The caller may reuse the array before the tiles are needed.
                later = functools.partial(split, image.copy())
                return self._planned(keys, layout, later)
        processed = self._processed(split(image))
        with self._lock:
            self._remembered[name] = processed.keys, processed.layout
        return processed

    def restore(self, tiles: Sequence[NDArray[np.uint8]], layout: Layout) -> ProcessedImage:
        """Return an image of which tiles and layout were kept.

        Args:
            tiles: RGB uint8 ``[height, width, 3]`` of each tile.

        Raises:
            InputError: number or sizes of the tiles are not those of the layout and of this model.
        """
        sizes = tuple(tile.shape[:2] for tile in tiles)
        fixed = self._image.tile_size
        expected = layout.tile_sizes if fixed is None else (fixed,) * len(tiles)
        if (
            layout.tiles != len(tiles)
            or sizes != expected
            or layout.tile_sizes not in (None, sizes)
        ):
            raise InputError(
                f"tiles of {' and '.join(f'{w} x {h}' for h, w in sorted(set(sizes)))} pixels are not those "
                f"of an image in {layout.rows} rows and {layout.columns} columns in this model"
            )
        if min(layout.height, layout.width) < 1 or min(layout.rows, layout.columns) < 0:
            raise InputError(f"an image of {layout.width} x {layout.height} pixels has no tiles")
        return self._processed(Tiles(tuple(tiles), layout))

    def _split_by_own_size(
        self,
        image: NDArray[np.uint8],
        budget: ImageBudget,
        tiling: SmartResizeTiling
        | FloorResizeTiling
        | OwnSizeGridTiling
        | LongestEdgeTiling
        | SliceTiling
        | CanvasTiling,
    ) -> ProcessedImage:
        """Split an image into tiles of sizes that follow from its own, within the budget."""
        if isinstance(tiling, CanvasTiling):
            # It takes one entry in the prompt, whatever its size is.
            return self._processed(split_image(image, tiling, budget.detail))
        height, width, _ = image.shape
        limit, max_tiles = budget.max_tokens, None
        if limit is None and budget.detail in (None, "auto"):
            limit = self._image.default_max_tokens
            self._tell_if_shrunk(image, tiling, limit)
        if limit is not None:
            if isinstance(tiling, OwnSizeGridTiling):
                max_tiles = max(1, limit // (tiling.tile_side // tiling.factor) ** 2)
            if isinstance(tiling, LongestEdgeTiling):
                tiling = longest_edge.limit_tokens(height, width, tiling, limit)
            elif isinstance(tiling, SliceTiling):
                tiling = slices.limit_tokens(height, width, tiling, limit)
            else:
                tiling = smart_resize.limit_tokens(tiling, limit)
        processed = self._processed(split_image(image, tiling, budget.detail, max_tiles))
        tokens = sum(plan.length for plan in processed.plans)
        if budget.max_tokens is not None and tokens > budget.max_tokens:
            raise InputError(
                f"max_image_tokens is {budget.max_tokens}, but an image of {width} x {height} pixels "
                f"takes at least {tokens} in this model"
            )
        return processed

    def _tell_if_shrunk(
        self,
        image: NDArray[np.uint8],
        tiling: SmartResizeTiling
        | FloorResizeTiling
        | OwnSizeGridTiling
        | LongestEdgeTiling
        | SliceTiling,
        limit: int | None,
    ) -> None:
        """Log a warning at the first image that the default limit makes smaller than the checkpoint would."""
        if limit is None or self._shrinks:
            return
        height, width, _ = image.shape
        tall, wide = choose_own_size(height, width, tiling)
        wanted = tall * wide // tiling.factor**2
        if wanted > limit:
            self._shrinks = True
            _logger.warning(
                "an image of %d x %d pixels is shrunk from %d to about %d embeddings, the default of this "
                "model; max_image_tokens or detail='high' allow more, with a context_length for them",
                width,
                height,
                wanted,
                limit,
            )

    def _processed(self, tiles: Tiles) -> ProcessedImage:
        return self._planned(tuple(map(hash_pixels, tiles.pixels)), tiles.layout, lambda: tiles)

    def _planned(
        self, keys: tuple[bytes, ...], layout: Layout, split: Callable[[], Tiles]
    ) -> ProcessedImage:
        plans = plan_spans(layout, self._vision, self._positions)
        return ProcessedImage(keys, layout, plans, split)


def _question_key(key: bytes, question: str) -> bytes:
    return hashlib.blake2b(key + question.encode(), digest_size=16).digest()


def _span_key(keys: tuple[bytes, ...], plan: SpanPlan) -> bytes:
    if plan.rows is None:
        return keys[plan.tiles[0]]
    digest = hashlib.blake2b(digest_size=16)
    for tile in plan.tiles:
        digest.update(keys[tile])
    for array in (plan.rows, plan.weights, plan.offsets):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def hash_pixels(pixels: NDArray[np.uint8]) -> bytes:
    """Return a hash of the pixels and of the shape, without which blank tiles of one area would be equal."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()
