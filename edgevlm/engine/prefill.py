"""Prefill: encode the tiles of a prompt that no cache holds, and decode the prompt in chunks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.kv_cache import (
    KVCache,
    Window,
    count_positions,
    number_positions,
    place_after,
)
from edgevlm.engine.stopwatch import Phase, Stopwatch
from edgevlm.engine.vision_encoder import TILES_PER_CHUNK, EmbeddingLookup, VisionEncoder
from edgevlm.errors import CancelledError
from edgevlm.inputs.image_processor import Span, Tile
from edgevlm.inputs.prompt import PromptItem
from edgevlm.inputs.tiling import Tiles
from edgevlm.manifest import DecoderSpec
from edgevlm.results import CacheInfo, Chunk
from edgevlm.runtimes.protocols import CrossStates, DecoderRuntime, Place

MAX_INLINE_TEXT_TOKENS = 64
"""Longest text between two spans that is decoded with them, as embeddings. A batch of llama.cpp holds tokens
or embeddings, and one of few entries costs as much as one of many."""

MAX_ENTRIES_PER_CALL = 512
"""Entries of a longer text or span that are decoded between two chunks of a stream. llama.cpp's batches are
no longer than this, so the calls cost nothing."""


@dataclass(frozen=True)
class PrefillStats:
    """The cost of one prefill."""

    place: Place
    """The place after the prompt."""
    cached_positions: int
    """Entries of the prompt that the KV cache held."""
    encoded_tiles: int
    cached_tiles: int


class Prefill:
    """Prefills prompts and counts what the caches saved.

    Args:
        spec: which entries of a prompt attend to each other, and whether text can be decoded as embeddings.
        image_token: the token in the place of an image; needed for cross-attention only.
    """

    def __init__(
        self,
        decoder: DecoderRuntime,
        encoder: VisionEncoder,
        kv_cache: KVCache,
        spec: DecoderSpec,
        image_token: int | None = None,
    ) -> None:
        self._decoder = decoder
        self._encoder = encoder
        self._kv_cache = kv_cache
        self._attention = spec.attention
        self._image_token = image_token
        self._text_scale = (
            None if spec.text_embedding_scale is None else np.float32(spec.text_embedding_scale)
        )
        self._reused_positions = self._prefilled_positions = 0
        self._reused_tiles = self._encoded_tiles = 0

    def head(self, items: Sequence[PromptItem]) -> int:
        """Return how many items of a prompt `run` must decode if a branch decodes the tokens after them.

        These are all up to the last span. The whole prompt if there is no span, if the text after it is no
        exact batch of a branch, or if all entries attend to each other.
        """
        spans = [index for index, item in enumerate(items) if isinstance(item, Span)]
        long = bool(spans) and len(items) - spans[-1] > self._decoder.exact_batch_length
        if self._attention == "prefix" or not spans or long:
            return len(items)
        return spans[-1] + 1

    def reuse(self, items: Sequence[PromptItem]) -> PrefillStats:
        """Return the cost of items that `run` has prefilled, for another request that begins with them."""
        place, tiles = place_after(items), sum(1 for _ in tiles_of(items))
        self._reused_positions += place.entries
        self._reused_tiles += tiles
        return PrefillStats(place, place.entries, 0, tiles)

    def run(
        self,
        items: Sequence[PromptItem],
        watch: Stopwatch,
        *,
        expect_continuation: bool,
        cache_images: bool,
        cancel: CancelSignal,
        logits: bool = True,
        window: Window | None = None,
    ) -> Generator[Chunk, None, PrefillStats]:
        """Make the decoder hold a prompt, with logits after its last item.

        Args:
            expect_continuation: as in `KVCache.reuse_prefix`.
            cache_images: keep new embeddings for later requests.
            cancel: stops the work, also from another thread.
            logits: False: no logits are needed, so the decoder may hold all of it already.
            window: as in `KVCache.reuse_prefix`.

        Yields:
            Chunks without text, so that a reader sees progress and can close the stream.

        Raises:
            CancelledError: `cancel` stopped the work.
        """
        cached = 0
        if self._attention == "prefix":
            self._kv_cache.reset()
        else:
            cached = self._kv_cache.reuse_prefix(
                items, expect_continuation=expect_continuation, logits=logits, window=window
            )
        watch.lap("prefill")
        rest = items[cached:]
        tiles = dict.fromkeys(tiles_of(rest))
        encoded_tiles = self._encoder.count_missing(tiles)
        start = place_after(items[:cached])
        if self._encoder.ahead:
            with self._encoder.encode_ahead(tiles, watch, keep=cache_images, cancel=cancel) as wait:
                decoding = self.decode(rest, wait, start, checkpoint=cache_images, cancel=cancel)
                yield from _yield_after_each(decoding, "prefill", watch)
        else:
            encoded: dict[Tile, NDArray[np.float32]] = {}
            chunks = self._encoder.encode_chunks(tiles, keep=cache_images, cancel=cancel)
            yield from _yield_after_each(map(encoded.update, chunks), "encode", watch)
            decoding = self.decode(
                rest, encoded.__getitem__, start, checkpoint=cache_images, cancel=cancel
            )
            yield from _yield_after_each(decoding, "prefill", watch)
        cached_tiles = sum(1 for _ in tiles_of(items)) - encoded_tiles
        self._reused_positions += start.entries
        self._prefilled_positions += count_positions(rest)
        self._encoded_tiles += encoded_tiles
        self._reused_tiles += cached_tiles
        return PrefillStats(place_after(items), start.entries, encoded_tiles, cached_tiles)

    def decode(
        self,
        items: Sequence[PromptItem],
        rows: EmbeddingLookup,
        place: Place,
        *,
        checkpoint: bool = False,
        cancel: CancelSignal,
    ) -> Iterator[None]:
        """Decode items from `place` on, with logits after the last; yield after each call of the decoder.

        Args:
            checkpoint: call `KVCache.checkpoint` after the last span.
            cancel: as of `run`.
        """
        if self._attention == "cross" and place.entries == 0:
            self._decoder.set_images(cross_states(items, rows), cancel=cancel)
            yield
        done = 0
        last_span = max((i for i, item in enumerate(items) if isinstance(item, Span)), default=-1)
        for chunk in self._chunks(items):
            done += len(chunk)
            last = done == len(items)
            tokens = self._tokens(chunk)
            text = len(tokens) == len(chunk) and self._attention != "prefix"
            entries = tokens if text else self._embed(chunk, rows)
            numbers = number_positions(chunk, place.position)
            bidirectional = not text and self._attention in ("prefix", "images")
            size = len(entries) if bidirectional else MAX_ENTRIES_PER_CALL
            for first in range(0, len(entries), size):
                part = entries[first : first + size]
                positions = numbers[..., first : first + size]
                logits = last and first + size >= len(entries)
                if isinstance(part, list):
                    self._decoder.decode_tokens(part, positions, logits=logits, cancel=cancel)
                else:
                    self._decoder.decode_embeddings(
                        part, positions, logits=logits, bidirectional=bidirectional, cancel=cancel
                    )
                if first + size < len(entries):
                    yield
            self._kv_cache.extend(chunk)
            if checkpoint and done == last_span + 1:
                self._kv_cache.checkpoint()
            place = place_after(chunk, place)
            yield

    def _chunks(self, items: Sequence[PromptItem]) -> Iterable[Sequence[PromptItem]]:
        """Split a prompt into parts with entries of one kind, tokens or embeddings."""
        if self._attention in ("prefix", "cross"):
            return [items]
        if self._attention == "images" or self._text_scale is None:
            return chunk_prompt(items, max_inline_text=0, max_tiles=None)
        return chunk_prompt(items)

    def _tokens(self, items: Sequence[PromptItem]) -> list[int]:
        """Return the tokens among items; with cross-attention a span is one, too."""
        if self._attention == "cross":
            assert self._image_token is not None
            return [item if isinstance(item, int) else self._image_token for item in items]
        return [item for item in items if isinstance(item, int)]

    def _embed(self, items: Sequence[PromptItem], rows: EmbeddingLookup) -> NDArray[np.float32]:
        """Return embeddings of spans and tokens, ``[entries, width]``."""
        return np.concatenate(
            [
                item.plan.pack([rows(tile) for tile in item.tiles])
                if isinstance(item, Span)
                else self._embed_token(item)
                for item in items
            ]
        )

    def _embed_token(self, token: int) -> NDArray[np.float32]:
        embeddings = self._decoder.embed([token])
        return embeddings if self._text_scale in (None, 1) else embeddings * self._text_scale

    def cache_info(self) -> CacheInfo:
        """Return what the caches hold and what they saved."""
        self._kv_cache.settle()
        return CacheInfo(
            positions=self._kv_cache.held_positions,
            conversations=self._kv_cache.saved,
            conversation_bytes=self._kv_cache.saved_bytes,
            tiles=len(self._encoder.cache),
            tile_bytes=self._encoder.cache.size,
            reused_positions=self._reused_positions,
            prefilled_positions=self._prefilled_positions,
            reused_tiles=self._reused_tiles,
            encoded_tiles=self._encoded_tiles,
        )


def cross_states(items: Sequence[PromptItem], rows: EmbeddingLookup) -> list[CrossStates]:
    """Return what cross-attention looks at, of each image of a prompt."""
    places = itertools.accumulate((count_positions([item]) for item in items), initial=0)
    return [
        CrossStates(entry, rows(item.tiles[0]), item.plan.states)
        for item, entry in zip(items, places, strict=False)
        if isinstance(item, Span) and item.plan.states is not None
    ]


def tiles_of(items: Iterable[PromptItem]) -> Iterator[Tile]:
    """Iterate over the tiles of all images.

    A tile whose lines are spans comes once.
    """
    seen: set[tuple[Callable[[], Tiles], int]] = set()
    for item in items:
        for tile in item.tiles if isinstance(item, Span) else ():
            if (tile.split, tile.index) not in seen:
                seen.add((tile.split, tile.index))
                yield tile


def chunk_prompt(
    items: Sequence[PromptItem],
    max_inline_text: int = MAX_INLINE_TEXT_TOKENS,
    max_tiles: int | None = TILES_PER_CHUNK,
) -> Iterator[list[PromptItem]]:
    """Split a prompt into chunks, each a text or a few spans with the short texts between them.

    Args:
        max_inline_text: tokens of the longest text that stays between two spans.
        max_tiles: tiles of the spans of one chunk; a span with more tiles is a chunk of its own. None: each
            span is.
    """
    runs = [list(run) for _, run in itertools.groupby(items, key=_is_span)]
    chunk: list[PromptItem] = []
    tiles: set[Tile] = set()
    for index, run in enumerate(runs):
        between = 0 < index < len(runs) - 1 and len(run) <= max_inline_text
        if not (_is_span(run[0]) or between):
            if chunk:
                yield chunk
            for first in range(0, len(run), MAX_ENTRIES_PER_CALL):
                yield run[first : first + MAX_ENTRIES_PER_CALL]
            chunk, tiles = [], set()
            continue
        for item in run:
            if isinstance(item, Span):
                if tiles and (max_tiles is None or len(tiles.union(item.tiles)) > max_tiles):
                    yield chunk
                    chunk, tiles = [], set()
                tiles.update(item.tiles)
            chunk.append(item)
    if chunk:
        yield chunk


def _is_span(item: PromptItem) -> bool:
    return isinstance(item, Span)


def _yield_after_each(
    steps: Iterable[None], phase: Phase, watch: Stopwatch
) -> Generator[Chunk, None, None]:
    """Run steps of a phase and yield an empty chunk after each."""
    try:
        for _ in steps:
            watch.lap(phase)
            yield Chunk("", ())
            watch.lap("consumer")
    except CancelledError:
        watch.lap(phase)
        raise
