"""A prompt into the decoder: what the caches do not hold is encoded, a few tiles at a time, and decoded."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.caches import CacheInfo, KVCache, Unit
from edgevlm.encoder import Embeddings, TileEncoder
from edgevlm.results import Chunk, Phase, Stopwatch
from edgevlm.runtimes.base import DecoderRuntime


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
        tiles: Mapping[bytes, NDArray[np.uint8]],
        watch: Stopwatch,
    ) -> Generator[Chunk, None, TakenIn]:
        """Have the decoder hold a prompt, with logits after its last unit; the chunks are empty.

        Args:
            tiles: pixels of every tile among the units, by key.
        """
        cached = self._kv_cache.empty() if self._bidirectional else self._kv_cache.reuse(units)
        watch.end("prefill")
        rest = units[cached:]
        missing = {unit: tiles[unit] for unit in rest if isinstance(unit, bytes)}
        encoded_tiles = self._encoder.missing(missing)
        start = self._positions(units[:cached])
        if self._encoder.ahead:
            with self._encoder.encoding_ahead(missing, watch) as wait:
                yield from _pauses(self.feed(rest, wait, start), "prefill", watch)
        else:
            encoded: dict[bytes, NDArray[np.float32]] = {}
            yield from _pauses(map(encoded.update, self._encoder.parts(missing)), "encode", watch)
            yield from _pauses(self.feed(rest, encoded.__getitem__, start), "prefill", watch)
        cached_tiles = sum(isinstance(unit, bytes) for unit in units) - encoded_tiles
        self._reused_positions += start
        self._prefilled_positions += self._positions(rest)
        self._encoded_tiles += encoded_tiles
        self._reused_tiles += cached_tiles
        return TakenIn(self._positions(units), start, encoded_tiles, cached_tiles)

    def feed(self, units: Sequence[Unit], embeddings: Embeddings, position: int) -> Iterator[None]:
        """Decode units from `position` on, with logits after the last; pauses after each text and after
        the tiles that follow one another."""
        if self._bidirectional:
            rows = [
                embeddings(unit) if isinstance(unit, bytes) else self._decoder.embed([unit])
                for unit in units
            ]
            prefix = np.concatenate(rows)
            positions = np.arange(position, position + len(prefix), dtype=np.int32)
            self._decoder.decode_embeddings(prefix, positions, logits=True, bidirectional=True)
            self._kv_cache.extend(units)
            yield
            return
        done = 0
        for is_tile, group in itertools.groupby(units, key=lambda unit: isinstance(unit, bytes)):
            run = list(group)
            done += len(run)
            count = self._positions(run)
            positions = np.arange(position, position + count, dtype=np.int32)
            if is_tile:
                rows = [embeddings(unit) for unit in run if isinstance(unit, bytes)]
                self._decoder.decode_embeddings(
                    np.concatenate(rows), positions, logits=done == len(units)
                )
            else:
                tokens = [unit for unit in run if isinstance(unit, int)]
                self._decoder.decode_tokens(tokens, positions, logits=done == len(units))
            self._kv_cache.extend(run)
            position += count
            yield

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


def _pauses(steps: Iterable[None], phase: Phase, watch: Stopwatch) -> Generator[Chunk, None, None]:
    """Steps of a phase, with an empty chunk after each."""
    for _ in steps:
        watch.end(phase)
        yield Chunk("", ())
        watch.end("reader")
