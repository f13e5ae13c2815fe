"""The engine: prepared pictures and messages in, chunks out; the only place that runs both runtimes.

What was prefilled or encoded before and is still known is not computed again; `edgevlm.engine.kv_cache`
says what the *units* of a prompt are.

Requests are served one at a time: see `edgevlm.engine.model_lock`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.detokenizer import AnswerText
from edgevlm.engine.kv_cache import KVCache, Unit
from edgevlm.engine.logprobs import next_logprobs, token_logprob
from edgevlm.engine.model_lock import WAIT_SECONDS, ChunkStream, ModelLock
from edgevlm.engine.prefill import Prefill
from edgevlm.engine.prompt_lookup import Drafts, chosen
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.engine.vision_encoder import TileEncoder
from edgevlm.errors import ContextError
from edgevlm.inputs.image_processor import Picture, PictureCutter, Pixels, pixels_by_key
from edgevlm.inputs.prompt import SHORTEN, Message, PromptBuilder, Segment, TextSegment
from edgevlm.inputs.tiling import CHECKPOINT_BUDGET, ImageBudget
from edgevlm.manifest import Manifest
from edgevlm.options import Generation
from edgevlm.results import (
    CacheInfo,
    ChoiceScore,
    Chunk,
    FinishReason,
    Prompt,
    PromptText,
    PromptTile,
    Stats,
    TokenLogprob,
)
from edgevlm.runtimes import system
from edgevlm.runtimes.protocols import DecoderRuntime, Sampler, VisionRuntime

Chunks: TypeAlias = "Generator[Chunk, None, None]"


class Engine:
    """Answers requests with one vision graph and one decoder, which it owns.

    Args:
        load_ms: how long loading took, for `Stats`.
        wait_timeout: as in `ModelLock`.
    """

    def __init__(
        self,
        manifest: Manifest,
        vision: VisionRuntime,
        decoder: DecoderRuntime,
        load_ms: float = 0.0,
        wait_timeout: float | None = WAIT_SECONDS,
    ) -> None:
        self._load_ms = load_ms
        self._manifest = manifest
        self._decoder = decoder
        self._prompts = PromptBuilder(manifest.prompt, decoder.tokenize)
        self._end_tokens = frozenset(manifest.prompt.end_token_ids)
        self._cutter = PictureCutter(manifest.image, manifest.vision.tokens_per_tile)
        self._kv_cache = KVCache(decoder, manifest.vision.tokens_per_tile)
        apart = vision.on_cpu != decoder.on_cpu
        self._encoder = TileEncoder(vision, manifest.decoder.embedding_scale, ahead=apart)
        self._prefill = Prefill(
            decoder,
            self._encoder,
            self._kv_cache,
            bidirectional=manifest.decoder.attention == "prefix",
        )
        self._drafts = Drafts()
        self._positions = self._kv_cache.positions
        self._lock = ModelLock(self._free, wait_timeout)
        self._check_schema: Callable[[Mapping[str, Any]], object] | None = None

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
        return self._cutter.cut(picture, budget)

    def encode(self, picture: Picture) -> NDArray[np.float32]:
        """Embeddings float32 ``[tiles * tokens_per_tile, width]`` as the decoder gets them."""
        with self._lock.hold():
            encoded = self._encoder.encode(picture.keys, pixels_by_key([picture]))
            return np.concatenate([encoded[key] for key in picture.keys])

    def prompt(self, messages: Sequence[Message], pictures: Sequence[Picture]) -> Prompt:
        """What `generate` feeds for these messages, to be looked at; raises as `units`."""
        special = {token.id: token.text for token in self._manifest.prompt.special_tokens}
        with self._lock.hold():
            parts: list[PromptText | PromptTile] = []
            for segment in self._segments(messages, pictures):
                if isinstance(segment, TextSegment):
                    spelled = b"".join(
                        special[token].encode() if token in special else self._decoder.piece(token)
                        for token in segment.token_ids
                    )
                    text = spelled.decode("utf-8", errors="replace")
                    parts.append(PromptText(text, segment.token_ids))
                    continue
                picture = pictures[segment.picture]
                in_grid = segment.tile < picture.rows * picture.columns
                row, column = divmod(segment.tile, picture.columns) if in_grid else (-1, -1)
                parts.append(
                    PromptTile(
                        picture=segment.picture,
                        tile=segment.tile,
                        row=row + 1,
                        column=column + 1,
                        pixels=picture.pixels[segment.tile],
                        tokens=self._manifest.vision.tokens_per_tile,
                    )
                )
            return Prompt(tuple(parts))

    def units(self, messages: Sequence[Message], pictures: Sequence[Picture]) -> list[Unit]:
        """The prompt that `generate` feeds for these messages.

        Raises:
            PromptError: messages that the model's template cannot express.
            ContextError: texts that are longer than the context.
        """
        units: list[Unit] = []
        for segment in self._segments(messages, pictures):
            if isinstance(segment, TextSegment):
                units += segment.token_ids
            else:
                units.append(pictures[segment.picture].keys[segment.tile])
        return units

    def _segments(self, messages: Sequence[Message], pictures: Sequence[Picture]) -> list[Segment]:
        grids = [picture.grid for picture in pictures]
        return self._prompts.build(messages, grids, max_positions=self.context_length)

    def generate(
        self,
        messages: Sequence[Message],
        pictures: Sequence[Picture],
        generation: Generation,
        watch: Stopwatch,
        *,
        continues: bool | None = None,
        through: Callable[[Chunks], Chunks] = lambda chunks: chunks,
    ) -> ChunkStream:
        """Stream the answer to `messages`; closing the stream stops the work.

        The request is checked now, the work begins with the first chunk. Chunks without text come while the
        prompt is taken in, so that it can be given up there too.

        Args:
            pictures: one for each image part of the messages, in their order.
            watch: started when the request came; stats count from there.
            continues: a later prompt is expected to begin with this one and its answer, so that it is worth
                keeping in the KV cache; None if the messages hold an earlier answer.
            through: wraps the chunks; runs while the stream holds the model.

        Raises:
            PromptError: messages that the model's template cannot express.
            ContextError: prompt and ``max_tokens`` do not fit the context together.
            InputError: a JSON schema that is not supported.
            BusyError, RuntimeLoadError: as `ModelLock.hold`.
        """
        watch.end("prepare")
        with self._lock.hold():  # the tokenizer is the decoder's, which another thread may close
            watch.end("wait")
            units = self.units(messages, pictures)
            sampler = self._decoder.sampler(generation.sampling, self._end_tokens)
        prompt_tokens = self._positions(units)
        max_tokens = self._max_tokens(generation, prompt_tokens)
        watch.end("prepare")
        if continues is None:
            continues = any(message["role"] == "assistant" for message in messages)
        pixels = pixels_by_key(pictures)
        chunks = self._generate(units, pixels, generation, max_tokens, continues, sampler, watch)
        return ChunkStream(through(chunks), self._lock, watch)

    def _max_tokens(self, generation: Generation, prompt_tokens: int) -> int:
        """Length of the longest answer.

        Raises:
            ContextError: it does not fit the context after the prompt.
        """
        left = self.context_length - prompt_tokens
        if left < 1:
            raise ContextError(
                f"the prompt has {prompt_tokens} positions, which leaves no room for an answer in a context "
                f"of {self.context_length}; {SHORTEN}"
            )
        wanted = left if generation.max_tokens is None else generation.max_tokens
        if wanted > left and not generation.cap_max_tokens:
            raise ContextError(
                f"the prompt has {prompt_tokens} positions and max_tokens is {wanted}, together "
                f"{prompt_tokens + wanted}, but the context has {self.context_length}; lower max_tokens, "
                f"{SHORTEN}"
            )
        return min(wanted, left)

    def _generate(
        self,
        units: Sequence[Unit],
        pixels: Pixels,
        generation: Generation,
        max_tokens: int,
        continues: bool,
        sampler: Sampler,
        watch: Stopwatch,
    ) -> Chunks:
        watch.end("wait")
        with contextlib.closing(sampler):
            taken = yield from self._prefill.take_in(
                units, pixels, watch, continues=continues, keep=generation.cache_images
            )
            self._drafts.begin(units)
            first_token_ms, answer_tokens, text, finish = yield from self._answer(
                taken.positions, generation, max_tokens, sampler, watch
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
                prompt_tokens=taken.positions,
                cached_tokens=taken.cached_positions,
                encoded_tiles=taken.encoded_tiles,
                cached_tiles=taken.cached_tiles,
                answer_tokens=answer_tokens,
                drafted_tokens=self._drafts.right,
                peak_memory=system.peak_memory(),
            )
            yield Chunk(text, (), finish_reason=finish, stats=stats)

    def check_json_schema(self, schema: Mapping[str, Any]) -> None:
        """Refuse a JSON schema that `generate` would refuse; waits for other requests the first time only.

        Raises:
            InputError: a JSON schema that is not supported.
            MissingDependencyError: what a JSON schema needs is not installed.
        """
        if self._check_schema is None:
            with self._lock.hold():
                self._check_schema = self._decoder.schema_checker(self._end_tokens)
        self._check_schema(schema)

    def prompt_tokens(self, messages: Sequence[Message], pictures: Sequence[Picture]) -> int:
        """Count the positions that `generate` would feed for these messages; raises as `units`."""
        with self._lock.hold():
            return self._positions(self.units(messages, pictures))

    def logits(
        self, messages: Sequence[Message], pictures: Sequence[Picture], answer: Sequence[int]
    ) -> NDArray[np.float32]:
        """Logits under teacher forcing, to compare with a reference.

        Returns:
            float32 ``[len(answer), vocabulary]``; row i is what follows the prompt and ``answer[:i]``.
        """
        keys = [key for picture in pictures for key in picture.keys]
        with self._lock.hold():
            units = self.units(messages, pictures)
            self._kv_cache.empty()
            encoded = self._encoder.encode(keys, pixels_by_key(pictures))
            for _ in self._prefill.feed(units, encoded.__getitem__, 0):
                pass
            rows = [self._decoder.logits()]
            for position, token in enumerate(answer[:-1], start=self._positions(units)):
                self._step(token, position)
                rows.append(self._decoder.logits())
            return np.stack(rows)

    def score(
        self,
        messages: Sequence[Message],
        pictures: Sequence[Picture],
        choices: Sequence[str],
        *,
        cache_images: bool = True,
    ) -> list[ChoiceScore]:
        """How likely each of `choices` is as the whole answer; see `VLM.score`.

        The prompt is prefilled once, and what the caches hold of it not at all.

        Raises:
            PromptError: messages that the model's template cannot express.
            ContextError: prompt and the longest choice do not fit the context together.
        """
        with self._lock.hold():
            units = self.units(messages, pictures)
            spellings = [
                {tuple(self._decoder.tokenize(start + text)) for start in ("", " ")}
                for text in choices
            ]
            prompt_tokens = self._positions(units)
            longest = max(len(tokens) for both in spellings for tokens in both)
            if prompt_tokens + longest > self.context_length:
                raise ContextError(
                    f"the prompt has {prompt_tokens} positions and the longest choice {longest}, but the "
                    f"context has {self.context_length}; shorten them or load the model with a larger "
                    f"context_length"
                )
            for _ in self._prefill.take_in(
                units, pixels_by_key(pictures), Stopwatch(), continues=False, keep=cache_images
            ):
                pass
            first = next_logprobs(self._decoder)
            scores = []
            for both in spellings:
                likely = [
                    self._answer_logprob(tokens, first, len(units), prompt_tokens)
                    for tokens in sorted(both)
                ]
                scores.append(float(np.logaddexp.reduce(likely)))
        total = np.logaddexp.reduce(scores)
        return [
            ChoiceScore(text, score, float(np.exp(score - total)))
            for text, score in zip(choices, scores, strict=True)
        ]

    def _answer_logprob(
        self, tokens: Sequence[int], first: NDArray[np.float64], units: int, position: int
    ) -> float:
        """That the model answers with these tokens and then ends, after a prompt that it holds.

        Args:
            first: log-probabilities of the answer's first token.
            units, position: length of the prompt in both measures.
        """
        likely, following = 0.0, first
        for at, token in enumerate(tokens, start=position):
            likely += float(following[token])
            self._step(token, at)
            following = next_logprobs(self._decoder)
        self._kv_cache.truncate(units)
        return likely + float(np.logaddexp.reduce(following[sorted(self._end_tokens)]))

    def close(self) -> None:
        """End the stream that is open and free both runtimes; may be called again."""
        self._lock.close()

    def _free(self) -> None:
        self._kv_cache.clear()
        self._encoder.close()
        self._decoder.close()

    def cache_info(self) -> CacheInfo:
        """What the caches hold and what they spared; waits for other requests."""
        with self._lock.hold():
            return self._prefill.cache_info()

    def _step(self, token: int, position: int) -> None:
        self._decoder.decode_tokens([token], np.array([position], np.int32), logits=True)
        self._kv_cache.extend([token])

    def _answer(
        self,
        prompt_tokens: int,
        generation: Generation,
        max_tokens: int,
        sampler: Sampler,
        watch: Stopwatch,
    ) -> Generator[Chunk, None, tuple[float, int, str, FinishReason]]:
        """Sample until the model, a stop string or the limit ends the answer.

        Returns:
            When the first token came, how many came, the text not yet shown, and why it ended.
        """
        text = AnswerText(tuple(generation.stop or ()))
        finish: FinishReason | None = None
        first_token_ms = 0.0
        count = 0
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
            elif count == max_tokens:
                finish = "length"
            watch.end("decode")
            yield Chunk(shown, (token,), self._likelihood(token, generation.top_logprobs))
            watch.end("reader")
            if finish is None and not following:
                room = max_tokens - count
                draft = self._drafts.draft()[: room - 1] if generation.draftable else ()
                position = prompt_tokens + count - 1
                following = self._advance(token, position, draft, sampler)
        rest = text.finish()
        watch.end("decode")
        return first_token_ms, count, rest, finish

    def _likelihood(self, token: int, top: int | None) -> tuple[TokenLogprob, ...]:
        return () if top is None else (token_logprob(self._decoder, token, top),)

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
