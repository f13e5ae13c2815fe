"""The engine: prepared pictures and messages in, chunks out; the only place that runs both runtimes.

What was prefilled or encoded before and is still known is not computed again; `edgevlm.caches` has both
caches, and says what the *units* of a prompt are.

Requests are served one at a time: a second thread waits until the first one's stream has ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.caches import CacheInfo, KVCache, Unit
from edgevlm.encoder import Embeddings, TileEncoder
from edgevlm.errors import BusyError, ContextError
from edgevlm.generation import AnswerText, Generation
from edgevlm.manifest import Manifest
from edgevlm.prompt import Message, PromptBuilder, TextSegment
from edgevlm.results import Chunk, FinishReason, Stats, Stopwatch
from edgevlm.runtimes import cpu
from edgevlm.runtimes.base import DecoderRuntime, Sampler, VisionRuntime
from edgevlm.speculation import Drafts, chosen
from edgevlm.tiling import CHECKPOINT_BUDGET, ImageBudget, Tiles, prepare


@dataclass(frozen=True)
class Picture:
    """A picture ready for the vision graph."""

    tiles: Tiles
    keys: tuple[bytes, ...]
    """Hash of each tile's pixels."""

    @property
    def grid(self) -> tuple[int, int]:
        return self.tiles.rows, self.tiles.columns


class Engine:
    """Answers requests with one vision graph and one decoder, which it owns."""

    def __init__(
        self,
        manifest: Manifest,
        vision: VisionRuntime,
        decoder: DecoderRuntime,
        load_ms: float = 0.0,
    ) -> None:
        self._load_ms = load_ms
        self._manifest = manifest
        self._decoder = decoder
        self._prompts = PromptBuilder(manifest.prompt, decoder.tokenize)
        self._end_tokens = frozenset(manifest.prompt.end_token_ids)
        self._kv_cache = KVCache(decoder, manifest.vision.tokens_per_tile)
        apart = vision.on_cpu != decoder.on_cpu
        self._encoder = TileEncoder(vision, manifest.decoder.embedding_scale, ahead=apart)
        self._drafts = Drafts()
        self._positions = self._kv_cache.positions
        self._reused_positions = self._prefilled_positions = 0
        self._reused_tiles = self._encoded_tiles = 0
        self._lock = threading.Lock()
        self._owner: int | None = None

    @property
    def context_length(self) -> int:
        """Positions for prompt and answer together."""
        return self._decoder.context_length

    def prepare(
        self, picture: NDArray[np.uint8], budget: ImageBudget = CHECKPOINT_BUDGET
    ) -> Picture:
        """Cut an RGB uint8 picture ``[height, width, 3]`` into tiles.

        Raises:
            InputError: a budget that is less than one tile.
        """
        most = budget.tiles(self._manifest.vision.tokens_per_tile)
        tiles = prepare(picture, self._manifest.image, budget.detail, most)
        return Picture(tiles, tuple(_hash(tile) for tile in tiles.pixels))

    def encode(self, picture: Picture) -> NDArray[np.float32]:
        """Embeddings float32 ``[tiles * tokens_per_tile, width]`` as the decoder gets them."""
        with self._exclusive():
            encoded = self._encoder.encode(_tiles_by_key([picture]))
            return np.concatenate([encoded[key] for key in picture.keys])

    def units(self, messages: Sequence[Message], pictures: Sequence[Picture]) -> list[Unit]:
        """The prompt that `generate` feeds for these messages.

        Raises:
            PromptError: messages that the model's template cannot express.
        """
        units: list[Unit] = []
        for segment in self._prompts.build(messages, [picture.grid for picture in pictures]):
            if isinstance(segment, TextSegment):
                units += segment.token_ids
            else:
                units.append(pictures[segment.picture].keys[segment.tile])
        return units

    def generate(
        self,
        messages: Sequence[Message],
        pictures: Sequence[Picture],
        generation: Generation,
        watch: Stopwatch,
    ) -> Generator[Chunk, None, None]:
        """Stream the answer to `messages`; closing the iterator stops the work.

        The request is checked now, the work begins with the first chunk.

        Args:
            pictures: one for each image part of the messages, in their order.
            watch: started when the request came; stats count from there.

        Raises:
            PromptError: messages that the model's template cannot express.
            ContextError: prompt and ``max_tokens`` do not fit the context together.
            BusyError: this thread has another stream open.
        """
        watch.end("prepare")
        with self._exclusive():  # the tokenizer is the decoder's, which another thread may close
            watch.end("wait")
            units = self.units(messages, pictures)
        prompt_tokens = self._positions(units)
        if prompt_tokens + generation.max_tokens > self.context_length:
            raise ContextError(
                f"the prompt has {prompt_tokens} positions and max_tokens is {generation.max_tokens}, "
                f"together {prompt_tokens + generation.max_tokens}, but the context has "
                f"{self.context_length}; lower max_tokens, shorten the conversation or load the model "
                f"with a larger context_length"
            )
        tiles = _tiles_by_key(pictures)
        watch.end("prepare")
        return self._generate(units, tiles, generation, watch)

    def _generate(
        self,
        units: Sequence[Unit],
        tiles: Mapping[bytes, NDArray[np.uint8]],
        generation: Generation,
        watch: Stopwatch,
    ) -> Generator[Chunk, None, None]:
        watch.end("reader")
        with self._exclusive():
            watch.end("wait")
            causal = self._manifest.decoder.attention == "causal"
            cached = self._kv_cache.reuse(units) if causal else self._kv_cache.empty()
            watch.end("prefill")
            rest = units[cached:]
            missing = {unit: tiles[unit] for unit in rest if isinstance(unit, bytes)}
            encoded_tiles = self._encoder.missing(missing)
            cached_tokens = self._positions(units[:cached])
            with self._encoder.encoded(missing, watch) as embeddings:
                self._prefill(rest, embeddings, cached_tokens)
            watch.end("prefill")
            cached_tiles = sum(isinstance(unit, bytes) for unit in units) - encoded_tiles
            self._reused_positions += cached_tokens
            self._prefilled_positions += self._positions(rest)
            self._encoded_tiles += encoded_tiles
            self._reused_tiles += cached_tiles
            prompt_tokens = self._positions(units)
            self._drafts.begin(units)
            first_token_ms, answer_tokens, text, finish = yield from self._answer(
                prompt_tokens, generation, watch
            )
            self._drafts.end()
            stats = Stats(
                load_ms=self._load_ms,
                wait_ms=watch.ms("wait"),
                prepare_ms=watch.ms("prepare"),
                encode_ms=watch.ms("encode"),
                prefill_ms=watch.ms("prefill"),
                decode_ms=watch.ms("decode"),
                first_token_ms=first_token_ms,
                total_ms=watch.total_ms,
                prompt_tokens=prompt_tokens,
                cached_tokens=cached_tokens,
                encoded_tiles=encoded_tiles,
                cached_tiles=cached_tiles,
                answer_tokens=answer_tokens,
                drafted_tokens=self._drafts.right,
                peak_memory=cpu.peak_memory(),
            )
            yield Chunk(text, (), finish, stats)

    def logits(
        self, messages: Sequence[Message], pictures: Sequence[Picture], answer: Sequence[int]
    ) -> NDArray[np.float32]:
        """Logits under teacher forcing, to compare with a reference.

        Returns:
            float32 ``[len(answer), vocabulary]``; row i is what follows the prompt and ``answer[:i]``.
        """
        tiles = _tiles_by_key(pictures)
        with self._exclusive():
            units = self.units(messages, pictures)
            self._kv_cache.empty()
            self._prefill(units, self._encoder.encode(tiles).__getitem__, 0)
            rows = [self._decoder.logits()]
            for position, token in enumerate(answer[:-1], start=self._positions(units)):
                self._step(token, position)
                rows.append(self._decoder.logits())
            return np.stack(rows)

    def close(self) -> None:
        """Free both runtimes; waits for a stream in another thread."""
        with self._exclusive():
            self._kv_cache.clear()
            self._encoder.close()
            self._decoder.close()

    def cache_info(self) -> CacheInfo:
        """What the caches hold and what they spared; waits for a stream in another thread."""
        with self._exclusive():
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

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the engine; a stream does so between two chunks too, while its consumer runs.

        A thread that holds it already is refused, where a plain lock would wait for ever. Unlike an
        RLock it may be released by another thread, such as the one that closes a stream.
        """
        if self._owner == threading.get_ident():
            raise BusyError(
                "this thread has an unfinished stream of the same model; read it to its end or close() it "
                "before the next request"
            )
        self._lock.acquire()
        self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._owner = None
            self._lock.release()

    def _prefill(self, units: Sequence[Unit], embeddings: Embeddings, position: int) -> None:
        """Feed the rest of a prompt from `position` on, with logits after the last unit."""
        if self._manifest.decoder.attention == "prefix":
            rows = [
                embeddings(unit) if isinstance(unit, bytes) else self._decoder.embed([unit])
                for unit in units
            ]
            prefix = np.concatenate(rows)
            positions = np.arange(position, position + len(prefix), dtype=np.int32)
            self._decoder.decode_embeddings(prefix, positions, logits=True, bidirectional=True)
            self._kv_cache.extend(units)
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

    def _step(self, token: int, position: int) -> None:
        self._decoder.decode_tokens([token], np.array([position], np.int32), logits=True)
        self._kv_cache.extend([token])

    def _answer(
        self, prompt_tokens: int, generation: Generation, watch: Stopwatch
    ) -> Generator[Chunk, None, tuple[float, int, str, FinishReason]]:
        """Sample until the model, a stop string or the limit ends the answer.

        Returns:
            When the first token came, how many came, the text not yet shown, and why it ended.
        """
        text = AnswerText(tuple(generation.stop))
        sampler = self._decoder.sampler(generation.sampling)
        finish: FinishReason | None = None
        first_token_ms = 0.0
        count = 0
        try:
            following = [sampler.sample()]
            while finish is None:
                token = following.pop(0)
                watch.end("decode")
                if count == 0:
                    first_token_ms = watch.total_ms
                self._drafts.push(token)
                if token in self._end_tokens:
                    finish = "stop"
                    break
                count += 1
                shown = text.push(self._decoder.piece(token))
                if text.stopped:
                    finish = "stop"
                elif count == generation.max_tokens:
                    finish = "length"
                watch.end("decode")
                yield Chunk(shown, (token,))
                watch.end("reader")
                if finish is None and not following:
                    room = generation.max_tokens - count
                    draft = self._drafts.draft()[: room - 1] if generation.greedy else ()
                    position = prompt_tokens + count - 1
                    following = self._advance(token, position, draft, sampler)
            rest = text.finish()
        finally:
            sampler.close()
        watch.end("decode")
        return first_token_ms, count, rest, finish

    def _advance(
        self, token: int, position: int, draft: Sequence[int], sampler: Sampler
    ) -> list[int]:
        """Take in a token; returns those that follow it, of which all but the last are taken in too."""
        right: list[int] = []
        if draft:
            batch = [token, *draft]
            positions = np.arange(position, position + len(batch), dtype=np.int32)
            right, decided = chosen(self._decoder.decode_draft(batch, positions), draft)
            self._drafts.judge(len(right) - decided, len(draft))
            *kept, token = [token, *right]
            position += len(kept)
            self._decoder.truncate(position)
            self._kv_cache.extend(kept)
            if decided:
                return right
        self._step(token, position)
        return [*right, sampler.sample()]


def _hash(tile: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(tile).data, digest_size=16).digest()


def _tiles_by_key(pictures: Sequence[Picture]) -> dict[bytes, NDArray[np.uint8]]:
    return {
        key: tile
        for picture in pictures
        for key, tile in zip(picture.keys, picture.tiles.pixels, strict=True)
    }
