"""Prefill: encode the tiles of a prompt that no cache holds, and decode the prompt in chunks."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.kv_cache import KVCache
from edgevlm.engine.stopwatch import Phase, Stopwatch
from edgevlm.engine.vision_encoder import TILES_PER_CHUNK, EmbeddingLookup, VisionEncoder
from edgevlm.inputs.image_processor import Tile
from edgevlm.inputs.prompt import PromptItem
from edgevlm.results import CacheInfo, Chunk
from edgevlm.runtimes.protocols import DecoderRuntime

MAX_INLINE_TEXT_TOKENS = 64
"""Longest text between two tiles that is decoded with them, as embeddings. A batch of llama.cpp holds tokens
or embeddings, and one of few entries costs as much as one of many."""

MAX_TEXT_TOKENS_PER_CHUNK = 512
"""Tokens of a longer text in one chunk. A request can be cancelled between two chunks. llama.cpp's batches
are no longer than this, so chunks cost nothing."""


@dataclass(frozen=True)
class PrefillStats:
    """The cost of one prefill."""

    positions: int
    """Positions of the prompt, images included."""
    cached_positions: int
    """Those that the KV cache held."""
    encoded_tiles: int
    cached_tiles: int


class Prefill:
    """Prefills prompts and counts what the caches saved.

    Args:
        bidirectional: each position of a prompt attends to every other, so it is decoded in one piece.
    """

    def __init__(
        self,
        decoder: DecoderRuntime,
        encoder: VisionEncoder,
        kv_cache: KVCache,
        *,
        bidirectional: bool,
    ) -> None:
        self._decoder = decoder
        self._encoder = encoder
        self._kv_cache = kv_cache
        self._bidirectional = bidirectional
        self._positions = kv_cache.positions
        self._reused_positions = self._prefilled_positions = 0
        self._reused_tiles = self._encoded_tiles = 0

    def run(
        self,
        items: Sequence[PromptItem],
        watch: Stopwatch,
        *,
        expect_continuation: bool,
        cache_images: bool,
    ) -> Generator[Chunk, None, PrefillStats]:
        """Make the decoder hold a prompt, with logits after its last item.

        Args:
            expect_continuation: as in `KVCache.reuse_prefix`.
            cache_images: keep new embeddings for later requests.

        Yields:
            Chunks without text, so that the request can be cancelled between two of them.
        """
        cached = 0
        if self._bidirectional:
            self._kv_cache.reset()
        else:
            cached = self._kv_cache.reuse_prefix(items, expect_continuation=expect_continuation)
        watch.lap("prefill")
        rest = items[cached:]
        tiles = dict.fromkeys(item for item in rest if isinstance(item, Tile))
        encoded_tiles = self._encoder.count_missing(tiles)
        start = self._positions(items[:cached])
        if self._encoder.ahead:
            with self._encoder.encode_ahead(tiles, watch, keep=cache_images) as wait:
                yield from _yield_after_each(
                    self.decode_chunks(rest, wait, start), "prefill", watch
                )
        else:
            encoded: dict[Tile, NDArray[np.float32]] = {}
            steps = map(encoded.update, self._encoder.encode_chunks(tiles, keep=cache_images))
            yield from _yield_after_each(steps, "encode", watch)
            chunks = self.decode_chunks(rest, encoded.__getitem__, start)
            yield from _yield_after_each(chunks, "prefill", watch)
        cached_tiles = sum(isinstance(item, Tile) for item in items) - encoded_tiles
        self._reused_positions += start
        self._prefilled_positions += self._positions(rest)
        self._encoded_tiles += encoded_tiles
        self._reused_tiles += cached_tiles
        return PrefillStats(self._positions(items), start, encoded_tiles, cached_tiles)

    def decode_chunks(
        self, items: Sequence[PromptItem], embeddings: EmbeddingLookup, position: int
    ) -> Iterator[None]:
        """Decode items from `position` on, with logits after the last; yield after each chunk."""
        done = 0
        for chunk in [items] if self._bidirectional else chunk_prompt(items):
            done += len(chunk)
            count = self._positions(chunk)
            positions = np.arange(position, position + count, dtype=np.int32)
            tokens = [item for item in chunk if isinstance(item, int)]
            if len(tokens) == len(chunk) and not self._bidirectional:
                self._decoder.decode_tokens(tokens, positions, logits=done == len(items))
            else:
                self._decoder.decode_embeddings(
                    self._embed(chunk, embeddings),
                    positions,
                    logits=done == len(items),
                    bidirectional=self._bidirectional,
                )
            self._kv_cache.extend(chunk)
            position += count
            yield

    def _embed(
        self, items: Sequence[PromptItem], embeddings: EmbeddingLookup
    ) -> NDArray[np.float32]:
        """Return embeddings of tiles and tokens, ``[positions, width]``."""
        return np.concatenate(
            [
                embeddings(item) if isinstance(item, Tile) else self._decoder.embed([item])
                for item in items
            ]
        )

    def cache_info(self) -> CacheInfo:
        """Return what the caches hold and what they saved."""
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


def chunk_prompt(items: Sequence[PromptItem]) -> Iterator[list[PromptItem]]:
    """Split a prompt into what the decoder decodes at once.

    A chunk has up to `MAX_TEXT_TOKENS_PER_CHUNK` tokens of a text, or up to `TILES_PER_CHUNK` tiles with the
    short texts between them.
    """
    runs = [list(run) for _, run in itertools.groupby(items, key=_is_tile)]
    chunk: list[PromptItem] = []
    for index, run in enumerate(runs):
        between = 0 < index < len(runs) - 1 and len(run) <= MAX_INLINE_TEXT_TOKENS
        if not (_is_tile(run[0]) or between):
            if chunk:
                yield chunk
            for first in range(0, len(run), MAX_TEXT_TOKENS_PER_CHUNK):
                yield run[first : first + MAX_TEXT_TOKENS_PER_CHUNK]
            chunk = []
            continue
        for item in run:
            if _is_tile(item) and sum(map(_is_tile, chunk)) == TILES_PER_CHUNK:
                yield chunk
                chunk = []
            chunk.append(item)
    if chunk:
        yield chunk


def _is_tile(item: PromptItem) -> bool:
    return isinstance(item, Tile)


def _yield_after_each(
    steps: Iterable[None], phase: Phase, watch: Stopwatch
) -> Generator[Chunk, None, None]:
    """Run steps of a phase and yield an empty chunk after each."""
    for _ in steps:
        watch.lap(phase)
        yield Chunk("", ())
        watch.lap("consumer")
