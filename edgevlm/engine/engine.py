"""The engine: processed images and messages in, chunks out. Only this module runs both runtimes.

It encodes and prefills only what the caches do not hold. It serves one request at a time: see
`edgevlm.engine.model_lock`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.engine import deadline
from edgevlm.engine.answer_decoder import AnswerDecoder
from edgevlm.engine.answer_report import AnswerReport
from edgevlm.engine.costs import CostPhase, Costs
from edgevlm.engine.kv_cache import CacheCopy, CacheKey, KVCache, Window, count_positions
from edgevlm.engine.model_lock import WAIT_SECONDS, ChunkStream, ModelLock
from edgevlm.engine.parallel import (
    Finished,
    Item,
    ParallelAnswers,
    Uncertain,
    Waiting,
    raise_if_fatal,
)
from edgevlm.engine.prefill import Prefill, PrefillStats
from edgevlm.engine.prompt_tokenizer import PromptTokenizer
from edgevlm.engine.request import PreparedRequest, Request
from edgevlm.engine.scoring import score_continuations
from edgevlm.engine.spelling import Spelling
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.engine.teacher_forcing import TeacherForcing
from edgevlm.engine.vision_encoder import VisionEncoder
from edgevlm.errors import (
    ContextError,
    DeadlineError,
    EdgeVLMError,
    InputError,
    PromptError,
)
from edgevlm.inputs.image_processor import ImageProcessor, ProcessedImage, Span
from edgevlm.inputs.message_checks import NO_TOOLS
from edgevlm.inputs.prompt import (
    Message,
    PromptItem,
)
from edgevlm.inputs.tiling import CHECKPOINT_BUDGET, ImageBudget, Layout
from edgevlm.inputs.video_processor import VideoProcessor
from edgevlm.inputs.videos import VideoSource
from edgevlm.manifest import Manifest
from edgevlm.options import Generation, GenerationOptions
from edgevlm.results import (
    Answer,
    CacheInfo,
    ChoiceScore,
    Chunk,
    Prompt,
    collect,
)
from edgevlm.runtimes import system
from edgevlm.runtimes.protocols import (
    CallGrammar,
    DecoderRuntime,
    Sampler,
    VisionRuntime,
)
from edgevlm.tool_calls import call_grammar

Chunks: TypeAlias = "Generator[Chunk, None, None]"

PrepareRequest: TypeAlias = "Callable[[], tuple[Sequence[Message], Sequence[ProcessedImage]]]"
"""Reads and splits the images of a request, and returns its messages and images."""

MIN_MEASURED_POSITIONS, MIN_MEASURED_TOKENS = 32, 4
"""Shorter prefills and answers say little about the cost of one position and one token."""


class Engine:
    """Answers requests with one vision graph and one decoder, which it owns.

    Args:
        load_ms: time that loading took, for `Stats`.
        wait_timeout: as in `ModelLock`.
        costs: measured costs of this model; None: those of this engine alone.
    """

    def __init__(
        self,
        manifest: Manifest,
        vision: VisionRuntime,
        decoder: DecoderRuntime,
        load_ms: float = 0.0,
        wait_timeout: float | None = WAIT_SECONDS,
        costs: Costs | None = None,
    ) -> None:
        self._manifest = manifest
        self._decoder = decoder
        spelling = Spelling(manifest.prompt.special_tokens, decoder.piece)
        self._prompts = PromptTokenizer(manifest, decoder, spelling)
        self._report = AnswerReport(manifest, spelling, load_ms)
        self._end_tokens = frozenset(manifest.prompt.end_token_ids)
        self._image_processor = ImageProcessor(
            manifest.image, manifest.vision, manifest.decoder.positions
        )
        self._video_processor = VideoProcessor(manifest.video, manifest.vision)
        self._kv_cache = KVCache(decoder)
        ahead = vision.on_cpu != decoder.on_cpu
        self._encoder = VisionEncoder(vision, manifest.decoder.embedding_scale, ahead=ahead)
        image_token = (
            token.id
            for token in manifest.prompt.special_tokens
            if token.text == manifest.prompt.image_token
        )
        self._prefill = Prefill(
            decoder, self._encoder, self._kv_cache, manifest.decoder, next(image_token, None)
        )
        self._answers = AnswerDecoder(decoder, self._kv_cache, self._end_tokens)
        self._forcing = TeacherForcing(
            decoder, self._encoder, self._prefill, self._kv_cache, self._end_tokens
        )
        self._costs = costs or Costs()
        self._lock = ModelLock(self._free, wait_timeout)
        self._check_schema: Callable[[Mapping[str, Any]], object] | None = None

    @property
    def context_length(self) -> int:
        """Positions for prompt and answer together."""
        return self._decoder.context_length

    def process_image(
        self, image: NDArray[np.uint8], budget: ImageBudget = CHECKPOINT_BUDGET
    ) -> ProcessedImage:
        """Split an RGB uint8 image ``[height, width, 3]`` into tiles.

        Raises:
            InputError: the budget is less than one tile.
        """
        return self._image_processor.process(image, budget)

    def restore_image(self, tiles: Sequence[NDArray[np.uint8]], layout: Layout) -> ProcessedImage:
        """Return an image of which tiles and layout were kept; see `ImageProcessor.restore`."""
        return self._image_processor.restore(tiles, layout)

    def process_video(
        self,
        source: VideoSource,
        budget: ImageBudget = CHECKPOINT_BUDGET,
        *,
        frames: int | None = None,
        fps: float | None = None,
    ) -> ProcessedImage:
        """Load a video and make tiles of its frames; arguments and errors as of `VideoProcessor.process`."""
        return self._video_processor.process(source, budget, frames=frames, fps=fps)

    def fit_deadline(
        self, generation: Generation, images: int, watch: Stopwatch, *, decodes: bool = True
    ) -> Generation:
        """Lower the limits of images so that the answer probably ends before its deadline.

        Args:
            images: number of images of the request.
            watch: started when the request came.
            decodes: as in `fit_images`.
        """
        return deadline.fit_images(
            generation, images, watch.elapsed, self._costs, self._manifest, decodes=decodes
        )

    def encode_image(self, image: ProcessedImage) -> NDArray[np.float32]:
        """Return embeddings of an image or a video as in the prompt, scaled for the decoder.

        Those of a vision graph that reads the question depend on `ProcessedImage.asked`.

        Returns:
            Float32 ``[tokens, width]``; for cross-attention the rows that it looks at.
        """
        with self._lock.hold() as cancel:
            rows = self._encoder.encode(image.tiles, cancel=cancel)
            return np.concatenate(
                [span.plan.pack([rows[tile] for tile in span.tiles]) for span in image.spans]
            )

    def prompt(
        self,
        messages: Sequence[Message],
        images: Sequence[ProcessedImage],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        """Return the prompt that `stream` decodes for these messages; errors as of `tokenize`."""
        with self._lock.hold():
            return self._prompts.describe(messages, images, tools)

    def tokenize(
        self,
        messages: Sequence[Message],
        images: Sequence[ProcessedImage],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[PromptItem]:
        """Return the prompt for these messages as token ids and spans; see `PromptTokenizer.tokenize`."""
        return self._prompts.tokenize(messages, images, tools)

    def stream(
        self,
        messages: Sequence[Message],
        images: Sequence[ProcessedImage],
        generation: Generation,
        watch: Stopwatch,
        *,
        cancel: CancelSignal | None = None,
        expect_continuation: bool | None = None,
        window: Window | None = None,
        wrap: Callable[[Chunks], Chunks] = lambda chunks: chunks,
    ) -> ChunkStream:
        """Stream the answer to `messages`. Closing or cancelling the stream stops the work.

        The request is checked now; the work begins with the first chunk. Chunks without text come during
        prefill.

        Args:
            images: one for each image part of the messages, in their order.
            watch: started when the request came.
            cancel: signal of the request; None: a new one.
            expect_continuation: a later prompt is expected to begin with this one and its answer; None: this
                is so if the messages hold an earlier answer, or if the model may call tools.
            window: as in `KVCache.reuse_prefix`.
            wrap: wraps the generator of chunks; runs while the stream holds the model.

        Raises:
            PromptError: the chat template of the model does not accept the messages.
            ContextError: prompt and ``max_tokens`` together are longer than the context.
            InputError: the JSON schema is not supported.
            DeadlineError: the time of the request was over before the model was free.
            BusyError, LoadError: as `ModelLock.hold`.
        """
        watch.lap("prepare")
        cancel = self._signal(generation.within, watch, cancel)
        # The tokenizer belongs to the decoder, which another thread may close.
        with self._lock.hold(cancel):
            watch.lap("wait")
            request = self._request(messages, images, generation, watch, cancel)
            request = dataclasses.replace(request, window=window)
            sampler = self._sampler(generation)
        watch.lap("prepare")
        if expect_continuation is None:
            answered = any(message["role"] == "assistant" for message in messages)
            expect_continuation = answered or bool(generation.callable_tools)
        chunks = self._generate(request, expect_continuation, sampler)
        return ChunkStream(wrap(chunks), self._lock, watch, cancel, self._costs.record_stop)

    def _signal(
        self, within: float | None, watch: Stopwatch, cancel: CancelSignal | None = None
    ) -> CancelSignal:
        """Return the signal of a request that may take `within` seconds since `watch` was started.

        Args:
            cancel: the signal, if the request has one already.
        """
        cancel = cancel or CancelSignal()
        if within is not None:
            cancel.limit(within, self._costs.working_time(within) - watch.elapsed)
        return cancel

    @contextlib.contextmanager
    def _hold(
        self, within: float | None, watch: Stopwatch, cancel: CancelSignal | None
    ) -> Iterator[CancelSignal]:
        """Use the model without a stream, until the end of the block or a deadline; see `_signal`."""
        signal = self._signal(within, watch, cancel)
        try:
            with self._lock.hold(signal), signal.timer():
                yield signal
        finally:
            if signal.expired:
                self._costs.record_stop(time.monotonic() - signal.stops_at)

    def _sampler(self, generation: Generation) -> Sampler:
        """Return a new sampler for one answer; errors as of `generation`."""
        sampling = dataclasses.replace(generation.sampling, calls=self._call_grammar(generation))
        return self._decoder.sampler(sampling, self._end_tokens)

    def _call_grammar(self, generation: Generation) -> CallGrammar | None:
        """Return the grammar of an answer that may call tools; None for a request without tools.

        Raises:
            PromptError: the model has no tools.
        """
        tools, tool_format = generation.callable_tools, self._manifest.prompt.tool_calls
        if not tools:
            return None
        if tool_format is None:
            raise PromptError(NO_TOOLS)
        return call_grammar(
            tools,
            generation.tool_choice,
            tool_format,
            parallel=generation.parallel_tool_calls,
        )

    def _request(
        self,
        messages: Sequence[Message],
        images: Sequence[ProcessedImage],
        generation: Generation,
        watch: Stopwatch,
        cancel: CancelSignal,
    ) -> Request:
        """Return the prompt for messages and the settings of its answer; errors as of `stream`."""
        items = self.tokenize(messages, images, generation.callable_tools)
        max_tokens = self._prompts.limit_answer(generation, count_positions(items))
        watch.lap("prepare")
        image = images[-1] if images else None
        return Request(items, image, generation, max_tokens, watch, cancel)

    def _generate(self, request: Request, expect_continuation: bool, sampler: Sampler) -> Chunks:
        request.watch.lap("wait")
        with contextlib.closing(sampler), request.cancel.timer():
            prefill = yield from self._run_prefill(request, expect_continuation)
            answer = yield from self._answers.run(request, prefill.place, sampler)
            if len(answer.token_ids) >= MIN_MEASURED_TOKENS:
                decode_ms = request.watch.ms("decode")
                self._costs.record("decode", decode_ms / 1000, len(answer.token_ids))
            if request.generation.within is not None:
                self._costs.save()
            yield self._report.last_chunk(request, answer, prefill, prefill.place.entries)

    def _run_prefill(
        self, request: Request, expect_continuation: bool
    ) -> Generator[Chunk, None, PrefillStats]:
        """Prefill the prompt of a request as `Prefill.run` does, and record what this costs."""
        items, watch = request.items, request.watch
        try:
            prefill = yield from self._prefill.run(
                items,
                watch,
                expect_continuation=expect_continuation,
                cache_images=request.generation.cache_images,
                cancel=request.cancel,
                window=request.window,
            )
        except DeadlineError:
            phase: CostPhase = "prefill" if watch.ms("prefill") > watch.ms("encode") else "encode"
            amount = count_positions(items) if phase == "prefill" else _count_embeddings(items)
            self._costs.record(phase, watch.ms(phase) / 1000, amount, stopped=True)
            self._costs.save()
            raise
        tiles = prefill.encoded_tiles + prefill.cached_tiles
        embeddings = _count_embeddings(items) * prefill.encoded_tiles / max(1, tiles)
        self._costs.record("encode", watch.ms("encode") / 1000, embeddings)
        positions = prefill.place.entries - prefill.cached_positions
        if positions >= MIN_MEASURED_POSITIONS:
            self._costs.record("prefill", watch.ms("prefill") / 1000, positions)
        return prefill

    def answer_many(
        self, requests: Sequence[PrepareRequest], generation: Generation
    ) -> Generator[tuple[int, Answer | EdgeVLMError], None, None]:
        """Answer many requests, decoded together where this can be done.

        Other requests wait until all are answered.

        Args:
            requests: each returns messages and images, or raises its error, when its turn comes.

        Yields:
            The index of a request, and its answer or its error, as soon as it is there.

        Raises:
            InputError: the JSON schema is not supported.
            BusyError, ClosedError: as `ModelLock.hold`, and if the model is closed meanwhile.
        """
        watches = [Stopwatch() for _ in requests]
        chunks: list[list[Chunk]] = [[] for _ in requests]
        with (
            self._lock.hold(self._signal(generation.within, Stopwatch())) as cancel,
            cancel.timer(),
        ):

            def prepare(index: int) -> Request:
                cancel.check()
                watches[index].lap("wait")
                return self._request(*requests[index](), generation, watches[index], cancel)

            waiting: Waiting[int] = deque((index, index) for index in range(len(requests)))
            for index, event in self._together(waiting, prepare, generation, cancel):
                if isinstance(event, EdgeVLMError):
                    yield index, event
                    continue
                chunks[index].append(event)
                if event.finish_reason is not None:
                    yield index, collect(chunks[index])

    def stream_many(
        self, waiting: Waiting[Item], prepare: Callable[[Item], PreparedRequest]
    ) -> Generator[tuple[int, Chunk | EdgeVLMError], None, None]:
        """Answer requests that wait, decoded together where this can be done.

        Other requests wait until all are answered.

        Args:
            waiting: a number for each request, and what `prepare` makes it from. More may be added meanwhile.
            prepare: prepares a request, or raises its error, when its turn comes. Its settings allow drafts.

        Yields:
            The number of a request and its next chunk, or its error. The last chunk has a finish reason.

        Raises:
            BusyError, ClosedError: as `ModelLock.hold`, and if the model is closed meanwhile.
        """

        def make(item: Item) -> Request:
            one = prepare(item)
            one.watch.lap("prepare")
            return self._request(one.messages, one.images, one.generation, one.watch, one.cancel)

        with self._lock.hold() as cancel:
            yield from self._together(waiting, make, Generation(), cancel)

    def _together(
        self,
        waiting: Waiting[Item],
        prepare: Callable[[Item], Request],
        generation: Generation,
        cancel: CancelSignal,
    ) -> Iterator[tuple[int, Chunk | EdgeVLMError]]:
        """Answer requests together, if the settings allow drafts and branches are independent; or in turn."""
        if not (generation.draftable and self._decoder.independent_branches):
            while waiting:
                index, item = waiting.popleft()
                try:
                    request = item if isinstance(item, Request) else prepare(item)
                except EdgeVLMError as error:
                    raise_if_fatal(error, cancel)
                    yield index, error
                else:
                    yield from ((index, event) for event in self._answer_alone(request, cancel))
            return
        with contextlib.closing(self._decoder.sampler(generation.sampling)) as sampler:
            together = ParallelAnswers(
                prepare,
                self._decoder,
                self._prefill,
                self._kv_cache,
                self._answers,
                sampler,
                cancel,
            )
            for index, event in together.run(waiting):
                if isinstance(event, Uncertain):
                    chunks = self._answer_alone(event.request, cancel, event.told)
                    yield from ((index, chunk) for chunk in chunks)
                elif isinstance(event, Finished):
                    positions = count_positions(event.request.items)
                    yield (
                        index,
                        self._report.last_chunk(
                            event.request, event.answer, event.prefill, positions
                        ),
                    )
                else:
                    yield index, event

    def _answer_alone(
        self, request: Request, cancel: CancelSignal, told: int = 0
    ) -> Iterator[Chunk | EdgeVLMError]:
        """Answer one request.

        Args:
            cancel: stops the work on all requests.
            told: tokens of the answer whose chunks are known.
        """
        sampler = self._sampler(request.generation)
        tokens = 0
        try:
            for chunk in self._generate(request, False, sampler):
                tokens += len(chunk.token_ids)
                if chunk.finish_reason is not None or (chunk.token_ids and tokens > told):
                    yield chunk
        except EdgeVLMError as error:
            raise_if_fatal(error, cancel)
            yield error

    def generation(
        self, options: GenerationOptions, cancel: CancelSignal | None = None
    ) -> Generation:
        """Return the settings of a request, with all checks that need no image.

        Args:
            cancel: signal of the request; None: a new one.

        Raises:
            InputError: a setting is outside its range, a JSON schema is not supported, or the model has no
                tools.
            MissingDependencyError: the libraries for JSON schemas are not installed.
        """
        generation = Generation(**options)
        if generation.json_schema is not None:
            self.check_json_schema(generation.json_schema, cancel)
        calls = self._call_grammar(generation)
        if calls is not None:
            self.check_json_schema(calls.schema, cancel)
        return generation

    def check_json_schema(
        self, schema: Mapping[str, Any], cancel: CancelSignal | None = None
    ) -> None:
        """Check a JSON schema as `stream` does. Only the first call waits for other requests.

        Args:
            cancel: as of `generation`.

        Raises:
            InputError: the schema is not supported.
            MissingDependencyError: the libraries for JSON schemas are not installed.
        """
        check = self._check_schema
        if check is None:
            with self._lock.hold(cancel):
                check = self._check_schema = self._decoder.schema_checker(self._end_tokens)
        check(schema)

    def prompt_tokens(
        self,
        messages: Sequence[Message],
        images: Sequence[ProcessedImage],
        cancel: CancelSignal | None = None,
    ) -> int:
        """Count the positions of the prompt for these messages; errors as of `tokenize`.

        Args:
            cancel: as of `generation`.
        """
        with self._lock.hold(cancel):
            return count_positions(self.tokenize(messages, images))

    def logits(
        self,
        messages: Sequence[Message],
        images: Sequence[ProcessedImage],
        answer: Sequence[int],
        *,
        tokens_per_call: int = 1,
    ) -> NDArray[np.float32]:
        """Return logits under teacher forcing, to compare them with a reference; see `VLM.logits`.

        Nothing of an earlier prompt is reused, so the result does not depend on it.

        Args:
            tokens_per_call: tokens of the answer that are decoded at once. 1, as for an answer that is
                generated, is nearest to the checkpoint.
        """
        if not answer:
            raise InputError("answer must have at least one token id, has none")
        with self._lock.hold() as cancel:
            items = self.tokenize(messages, images)
            return self._forcing.logits(items, answer, tokens_per_call, cancel)

    def greedy_answer(
        self, messages: Sequence[Message], images: Sequence[ProcessedImage], max_tokens: int
    ) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """Return the greedy answer, to compare others with it.

        Returns:
            Token ids, with the end token if the answer ends before `max_tokens`; and their logits under
            teacher forcing, equal to the last bit to those of `logits` with `FORCED_TOKENS_PER_CALL`.
        """
        with self._lock.hold() as cancel:
            return self._forcing.greedy_answer(self.tokenize(messages, images), max_tokens, cancel)

    def score(
        self,
        messages: Sequence[Message],
        images: Sequence[ProcessedImage],
        choices: Sequence[str],
        generation: Generation,
        watch: Stopwatch,
        *,
        cancel: CancelSignal | None = None,
        window: Window | None = None,
    ) -> list[ChoiceScore]:
        """Return the probability of each of `choices` as the whole answer; see `VLM.score`.

        The prompt is prefilled once, as far as the caches do not hold it. The choices branch off it and are
        decoded together.

        Args:
            generation: settings of the request, of which ``cache_images`` and ``within`` count.
            watch: started when the request came.
            cancel: signal of the request; None: a new one.
            window: as in `KVCache.reuse_prefix`.

        Raises:
            PromptError: the chat template of the model does not accept the messages.
            CancelledError: `cancel` stopped the work.
            ContextError: the prompt and the longest choice together are longer than the context.
            DeadlineError: the time of the request was over before its end.
        """
        watch.lap("prepare")
        with self._hold(generation.within, watch, cancel) as cancel:
            watch.lap("wait")
            items = self.tokenize(messages, images)
            spellings = [
                {tuple(self._prompts.tokenize_text(start + text)) for start in ("", " ")}
                for text in choices
            ]
            prompt_tokens = count_positions(items)
            longest = max(len(tokens) for both in spellings for tokens in both)
            if prompt_tokens + longest > self.context_length:
                raise ContextError(
                    f"the prompt has {prompt_tokens} positions and the longest choice {longest}, but the "
                    f"context has {self.context_length}; shorten them or load the model with a larger "
                    f"context_length"
                )
            request = Request(items, None, generation, longest, watch, cancel, window)
            for _ in self._run_prefill(request, expect_continuation=False):
                pass
            distinct = list(dict.fromkeys(tokens for both in spellings for tokens in sorted(both)))
            logprobs = dict(
                zip(
                    distinct,
                    score_continuations(
                        self._decoder,
                        distinct,
                        self._end_tokens,
                        self.context_length - prompt_tokens,
                        cancel,
                    ),
                    strict=True,
                )
            )
        scores = [
            float(np.logaddexp.reduce([logprobs[tokens] for tokens in sorted(both)]))
            for both in spellings
        ]
        total = np.logaddexp.reduce(scores)
        return [
            ChoiceScore(text, score, float(np.exp(score - total)))
            for text, score in zip(choices, scores, strict=True)
        ]

    def close(self) -> None:
        """End the open stream and free both runtimes. May be called again."""
        self._lock.close()

    def _free(self) -> None:
        self._check_schema = None  # its child process ends with the decoder
        self._costs.close()
        self._kv_cache.clear()
        self._encoder.close()
        self._decoder.close()
        system.return_freed_memory()

    @property
    def copy_format(self) -> str:
        """Format of the data of `copy_cache`. Only copies of an equal format can be loaded."""
        return self._decoder.copy_format

    def cached_items(self) -> tuple[CacheKey, ...]:
        """Return what the KV cache holds. The caller's stream must hold the model."""
        return self._kv_cache.held

    def copy_cache(self, items: Sequence[CacheKey]) -> tuple[CacheCopy, ...]:
        """Copy what the KV cache knows of a conversation, as `KVCache.copies` does.

        Args:
            items: the conversation, as `cached_items` returned it.

        Returns:
            The copies; none if each prompt attends to all of itself, so that nothing can be reused.
        """
        with self._lock.hold():
            prefix = self._manifest.decoder.attention == "prefix"
            return () if prefix else self._kv_cache.copies(items)

    def load_cache(self, copies: Sequence[CacheCopy]) -> None:
        """Restore what `copy_cache` returned; errors as of `KVCache.load`."""
        with self._lock.hold():
            self._kv_cache.load(copies)

    @property
    def can_slide(self) -> bool:
        """True if a part in the middle of the KV cache can be removed; see `KVCache.reuse_prefix`."""
        return self._decoder.can_shift and self._manifest.decoder.attention != "prefix"

    def cache_info(self) -> CacheInfo:
        """Return what the caches hold and what they saved; waits for other requests."""
        with self._lock.hold():
            return self._prefill.cache_info()


def _count_embeddings(items: Sequence[PromptItem]) -> int:
    """Return how many positions of a prompt images take."""
    return sum(item.length for item in items if isinstance(item, Span))
