"""A prompt into the decoder: what the caches do not hold is encoded, a few tiles at a time, and decoded."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.kv_cache import KVCache, Unit
from edgevlm.engine.stopwatch import Phase, Stopwatch
from edgevlm.engine.vision_encoder import PART, Embeddings, TileEncoder
from edgevlm.inputs.image_processor import Pixels
from edgevlm.results import CacheInfo, Chunk
from edgevlm.runtimes.protocols import DecoderRuntime

SHORT_TEXT = 64
"""Tokens, at most, between two tiles that go in with them, as embeddings: a batch of llama.cpp holds tokens
or embeddings, and one of few entries costs as much as one of many."""

LONG_TEXT = 512
"""Tokens, at most, of a text that go in at once: between two pieces a request can be given up. llama.cpp's
batches are no longer, so it costs nothing."""


@dataclass(frozen=True)
class TakenIn:
    """What a prompt cost."""

    positions: int
    """Of the prompt, pictures included."""
    cached_positions: int
    """Of these, positions that the KV cache held."""
    encoded_tiles: int
    cached_tiles: int


class Prefill:
    """Takes prompts in, and counts what the caches spared.

    Args:
        bidirectional: each position of a prompt sees every other, so that it has to be taken in whole.
    """

    def __init__(
        self,
        decoder: DecoderRuntime,
        encoder: TileEncoder,
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

    def take_in(
        self,
        units: Sequence[Unit],
        pixels: Pixels,
        watch: Stopwatch,
        *,
        continues: bool,
        keep: bool,
    ) -> Generator[Chunk, None, TakenIn]:
        """Have the decoder hold a prompt, with logits after its last unit; the chunks are empty.

        Args:
            pixels: knows every tile among the units.
            continues: as in `KVCache.reuse`.
            keep: as in `TileEncoder.encode`.
        """
        if self._bidirectional:
            cached = self._kv_cache.empty()
        else:
            cached = self._kv_cache.reuse(units, continues=continues)
        watch.end("prefill")
        rest = units[cached:]
        missing = dict.fromkeys(unit for unit in rest if isinstance(unit, bytes))
        encoded_tiles = self._encoder.missing(missing)
        start = self._positions(units[:cached])
        if self._encoder.ahead:
            with self._encoder.encoding_ahead(missing, pixels, watch, keep=keep) as wait:
                yield from _pauses(self.feed(rest, wait, start), "prefill", watch)
        else:
            encoded: dict[bytes, NDArray[np.float32]] = {}
            parts = self._encoder.parts(missing, pixels, keep=keep)
            yield from _pauses(map(encoded.update, parts), "encode", watch)
            yield from _pauses(self.feed(rest, encoded.__getitem__, start), "prefill", watch)
        cached_tiles = sum(isinstance(unit, bytes) for unit in units) - encoded_tiles
        self._reused_positions += start
        self._prefilled_positions += self._positions(rest)
        self._encoded_tiles += encoded_tiles
        self._reused_tiles += cached_tiles
        return TakenIn(self._positions(units), start, encoded_tiles, cached_tiles)

    def feed(self, units: Sequence[Unit], embeddings: Embeddings, position: int) -> Iterator[None]:
        """Decode units from `position` on, with logits after the last; pauses after each piece."""
        done = 0
        for piece in [units] if self._bidirectional else pieces(units):
            done += len(piece)
            count = self._positions(piece)
            positions = np.arange(position, position + count, dtype=np.int32)
            tokens = [unit for unit in piece if isinstance(unit, int)]
            if len(tokens) == len(piece) and not self._bidirectional:
                self._decoder.decode_tokens(tokens, positions, logits=done == len(units))
            else:
                self._decoder.decode_embeddings(
                    self._rows(piece, embeddings),
                    positions,
                    logits=done == len(units),
                    bidirectional=self._bidirectional,
                )
            self._kv_cache.extend(piece)
            position += count
            yield

    def _rows(self, units: Sequence[Unit], embeddings: Embeddings) -> NDArray[np.float32]:
        """Embeddings of tiles and texts ``[positions, width]``."""
        return np.concatenate(
            [
                embeddings(unit) if isinstance(unit, bytes) else self._decoder.embed([unit])
                for unit in units
            ]
        )

    def cache_info(self) -> CacheInfo:
        """What the caches hold and what they spared."""
        return CacheInfo(
            positions=self._kv_cache.held_positions,
            conversations=self._kv_cache.copies,
            conversation_bytes=self._kv_cache.copied_bytes,
            tiles=len(self._encoder.cache),
            tile_bytes=self._encoder.cache.bytes,
            reused_positions=self._reused_positions,
            prefilled_positions=self._prefilled_positions,
            reused_tiles=self._reused_tiles,
            encoded_tiles=self._encoded_tiles,
        )


def pieces(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """What goes into the decoder at once: up to `LONG_TEXT` tokens of a text, or up to `PART` tiles with the
    short texts between them."""
    runs = [list(run) for _, run in itertools.groupby(units, key=_is_tile)]
    piece: list[Unit] = []
    for index, run in enumerate(runs):
        between = 0 < index < len(runs) - 1 and len(run) <= SHORT_TEXT
        if not (_is_tile(run[0]) or between):
            if piece:
                yield piece
            for first in range(0, len(run), LONG_TEXT):
                yield run[first : first + LONG_TEXT]
            piece = []
            continue
        for unit in run:
            if _is_tile(unit) and sum(map(_is_tile, piece)) == PART:
                yield piece
                piece = []
            piece.append(unit)
    if piece:
        yield piece


def _is_tile(unit: Unit) -> bool:
    return isinstance(unit, bytes)


def _pauses(steps: Iterable[None], phase: Phase, watch: Stopwatch) -> Generator[Chunk, None, None]:
    """Steps of a phase, with an empty chunk after each."""
    for _ in steps:
        watch.end(phase)
        yield Chunk("", ())
        watch.end("reader")
