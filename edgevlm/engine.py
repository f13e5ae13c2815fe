"""The engine: prepared pictures and messages in, chunks out; the only place that runs both runtimes.

What was prefilled or encoded before and is still known is not computed again; `edgevlm.caches` has both
caches, and says what the *units* of a prompt are.

Requests are served one at a time: a second thread waits until the first one's stream has ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.caches import CacheInfo, KVCache, Unit
from edgevlm.encoder import TileEncoder
from edgevlm.errors import BusyError, ContextError
from edgevlm.generation import AnswerText, Generation
from edgevlm.likelihood import next_logprobs, token_logprob
from edgevlm.manifest import Manifest
from edgevlm.pictures import Picture, PictureCutter, Pixels, pixels_by_key
from edgevlm.prefill import Prefill
from edgevlm.prompt import Message, PromptBuilder, TextSegment
from edgevlm.results import (
    ChoiceScore,
    Chunk,
    FinishReason,
    Prompt,
    PromptText,
    PromptTile,
    Stats,
    Stopwatch,
    TokenLogprob,
)
from edgevlm.runtimes import cpu
from edgevlm.runtimes.base import DecoderRuntime, Sampler, VisionRuntime
from edgevlm.speculation import Drafts, chosen
from edgevlm.tiling import CHECKPOINT_BUDGET, ImageBudget


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
        return self._cutter.cut(picture, budget)

    def encode(self, picture: Picture) -> NDArray[np.float32]:
        """Embeddings float32 ``[tiles * tokens_per_tile, width]`` as the decoder gets them."""
        with self._exclusive():
            encoded = self._encoder.encode(picture.keys, pixels_by_key([picture]))
            return np.concatenate([encoded[key] for key in picture.keys])

    def prompt(self, messages: Sequence[Message], pictures: Sequence[Picture]) -> Prompt:
        """What `generate` feeds for these messages, to be looked at; raises as `units`."""
        special = {token.id: token.text for token in self._manifest.prompt.special_tokens}
        with self._exclusive():
            parts: list[PromptText | PromptTile] = []
            for segment in self._prompts.build(messages, [picture.grid for picture in pictures]):
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

        The request is checked now, the work begins with the first chunk. Chunks without text come while the
        prompt is taken in, so that it can be given up there too.

        Args:
            pictures: one for each image part of the messages, in their order.
            watch: started when the request came; stats count from there.

        Raises:
            PromptError: messages that the model's template cannot express.
            ContextError: prompt and ``max_tokens`` do not fit the context together.
            InputError: a JSON schema that cannot be kept to.
            BusyError: this thread has another stream open.
        """
        watch.end("prepare")
        with self._exclusive():  # the tokenizer is the decoder's, which another thread may close
            watch.end("wait")
            units = self.units(messages, pictures)
            sampler = self._decoder.sampler(generation.sampling, self._end_tokens)
        max_tokens = self._max_tokens(self._positions(units), generation)
        watch.end("prepare")
        return self._generate(
            units, pixels_by_key(pictures), generation, max_tokens, sampler, watch
        )

    def _max_tokens(self, prompt_tokens: int, generation: Generation) -> int:
        """How long the answer may become; raises ContextError if the context has no room for it."""
        room = self.context_length - prompt_tokens
        wanted = generation.max_tokens
        if room < 1:
            raise ContextError(
                f"the prompt has {prompt_tokens} positions, but the context has {self.context_length}, the "
                f"answer included; shorten the conversation or load the model with a larger context_length"
            )
        if wanted is None or (generation.cap_max_tokens and wanted > room):
            return room
        if wanted > room:
            raise ContextError(
                f"the prompt has {prompt_tokens} positions and max_tokens is {wanted}, "
                f"together {prompt_tokens + wanted}, but the context has "
                f"{self.context_length}; lower max_tokens, shorten the conversation or load the model "
                f"with a larger context_length"
            )
        return wanted

    def _generate(
        self,
        units: Sequence[Unit],
        pixels: Pixels,
        generation: Generation,
        max_tokens: int,
        sampler: Sampler,
        watch: Stopwatch,
    ) -> Generator[Chunk, None, None]:
        watch.end("reader")
        with self._exclusive(), contextlib.closing(sampler):
            watch.end("wait")
            taken = yield from self._prefill.take_in(units, pixels, watch)
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
                peak_memory=cpu.peak_memory(),
            )
            yield Chunk(text, (), finish_reason=finish, stats=stats)

    def logits(
        self, messages: Sequence[Message], pictures: Sequence[Picture], answer: Sequence[int]
    ) -> NDArray[np.float32]:
        """Logits under teacher forcing, to compare with a reference.

        Returns:
            float32 ``[len(answer), vocabulary]``; row i is what follows the prompt and ``answer[:i]``.
        """
        keys = [key for picture in pictures for key in picture.keys]
        with self._exclusive():
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
        self, messages: Sequence[Message], pictures: Sequence[Picture], choices: Sequence[str]
    ) -> list[ChoiceScore]:
        """How likely each of `choices` is as the whole answer; see `VLM.score`.

        The prompt is prefilled once, and what the caches hold of it not at all.

        Raises:
            PromptError: messages that the model's template cannot express.
            ContextError: prompt and the longest choice do not fit the context together.
        """
        with self._exclusive():
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
            for _ in self._prefill.take_in(units, pixels_by_key(pictures), Stopwatch()):
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
        """Free both runtimes; waits for a stream in another thread."""
        with self._exclusive():
            self._kv_cache.clear()
            self._encoder.close()
            self._decoder.close()

    def cache_info(self) -> CacheInfo:
        """What the caches hold and what they spared; waits for a stream in another thread."""
        with self._exclusive():
            return self._prefill.cache_info()

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
        text = AnswerText(tuple(generation.stop))
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
