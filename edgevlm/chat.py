"""A conversation with a model."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgevlm.async_stream import AsyncChunkStream, collect_async
from edgevlm.cancellation import CancelSignal
from edgevlm.chat_file import (
    ModelFiles,
    SavedChat,
    SavedImage,
    SavedTurn,
    read_chat,
    write_chat,
)
from edgevlm.engine.engine import Chunks, Engine
from edgevlm.engine.kv_cache import CacheKey
from edgevlm.engine.model_lock import ChunkStream
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import (
    BusyError,
    CancelledError,
    ChatFileError,
    ContextError,
    InferenceError,
    InputError,
)
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.images import ImageSource, load_images
from edgevlm.inputs.prompt import system_messages, user_message
from edgevlm.options import Generation, GenerationOptions
from edgevlm.results import Answer, collect

if TYPE_CHECKING:
    from typing_extensions import Unpack

_logger = logging.getLogger("edgevlm")

Overflow = Literal["error", "drop_images", "drop_turns"]
"""Action for a conversation that no longer fits the context; see `VLM.chat`."""

FREED_SHARE = 0.25
"""Share of the context that is free after turns were dropped. The next turns then find their prefix in the KV
cache; if each of them dropped a little, each would prefill everything."""


@dataclass(frozen=True)
class _Turn:
    question: dict[str, Any]
    answer: str
    images: tuple[ProcessedImage, ...]

    @property
    def messages(self) -> list[dict[str, Any]]:
        parts = [{"type": "text", "text": self.answer}]
        return [self.question, {"role": "assistant", "content": parts}]

    @property
    def text(self) -> str:
        text: str = self.question["content"][-1]["text"]
        return text

    def without_images(self) -> _Turn:
        parts = [part for part in self.question["content"] if part["type"] != "image"]
        return _Turn({**self.question, "content": parts}, self.answer, ())


@dataclass(frozen=True)
class _Dropped:
    turns: int = 0
    images: int = 0


class Chat:
    """A conversation; created by `VLM.chat` and `VLM.load_chat`.

    A turn that fails does not change the conversation. A turn whose stream is closed or cancelled
    keeps the text up to this point.
    """

    def __init__(
        self,
        engine: Engine,
        files: ModelFiles,
        system: str | None = None,
        overflow: Overflow = "error",
    ) -> None:
        if overflow not in get_args(Overflow):
            raise InputError(
                f"overflow must be one of {', '.join(get_args(Overflow))}, is {overflow!r}"
            )
        self._engine = engine
        self._files = files
        self._system_text = system
        self._system = system_messages(system)
        self._overflow = overflow
        self._turns: list[_Turn] = []
        self._cached_items: tuple[CacheKey, ...] = ()
        """What the KV cache held after the last turn."""
        self._answering = False

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, as messages of transformers; an image is a bare ``{"type": "image"}``."""
        return [
            {**message, "content": list(message["content"])}
            for message in self._messages(self._turns)
        ]

    def send(
        self,
        text: str,
        images: ImageSource | Iterable[ImageSource] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Answer the next turn; arguments and errors as of `VLM.ask`."""
        return collect(self.stream(text, images, **options))

    def stream(
        self,
        text: str,
        images: ImageSource | Iterable[ImageSource] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> ChunkStream:
        """Answer as `send` does, in chunks; see `VLM.stream`."""
        return self._stream(text, images, options, Stopwatch())

    async def asend(
        self,
        text: str,
        images: ImageSource | Iterable[ImageSource] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Answer as `send` does, for asyncio; see `VLM.aask`."""
        return await collect_async(self.astream(text, images, **options))

    def astream(
        self,
        text: str,
        images: ImageSource | Iterable[ImageSource] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncChunkStream:
        """Answer as `send` does, for ``async for``; see `VLM.astream`."""
        start = functools.partial(self._stream, text, images, options)
        return AsyncChunkStream(self._engine, start, Generation(**options).within)

    def _stream(
        self,
        text: str,
        images: ImageSource | Iterable[ImageSource] | None,
        options: GenerationOptions,
        watch: Stopwatch,
        cancel: CancelSignal | None = None,
    ) -> ChunkStream:
        cancel = cancel or CancelSignal()
        generation = self._engine.generation(options, cancel)
        loaded = load_images(images)
        generation = self._engine.fit_deadline(generation, len(loaded), watch)
        budget = generation.image_budget
        processed = tuple(self._engine.process_image(image, budget) for image in loaded)
        question = user_message(text, len(processed))
        turns, dropped = self._drop_turns(question, processed, generation, cancel)

        def record(chunks: Chunks) -> Chunks:
            texts: list[str] = []
            failed = False
            self._answering = True
            try:
                for chunk in chunks:
                    texts.append(chunk.text)
                    if chunk.stats is not None:
                        stats = dataclasses.replace(
                            chunk.stats, dropped_turns=dropped.turns, dropped_images=dropped.images
                        )
                        chunk = dataclasses.replace(chunk, stats=stats)
                    yield chunk
            except Exception as error:
                failed = not isinstance(error, CancelledError)
                raise
            finally:
                chunks.close()
                answer = "".join(texts)
                if answer and not failed:
                    self._turns = [*turns, _Turn(question, answer, processed)]
                    self._cached_items = self._engine.cached_items()
                self._answering = False

        return self._engine.stream(
            [*self._messages(turns), question],
            [*_images(turns), *processed],
            generation,
            watch,
            cancel=cancel,
            expect_continuation=True,
            wrap=record,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation into a file, for `VLM.load_chat`. An existing file is replaced.

        The file holds texts, the tiles of the images, the action for an overflow, and the decoder's KV cache
        if that still holds the conversation. If this raises an error, an existing file stays as it is.

        Raises:
            BusyError: a stream of this conversation is not at its end, or another one holds the model.
            ChatFileError: the file cannot be written, or the conversation is too large.
            ClosedError: the model is closed.
        """
        if self._answering:
            raise BusyError(
                "this conversation is in the middle of an answer; read its stream to the end, or close it, "
                "and then save"
            )
        turns = tuple(
            SavedTurn(
                turn.text,
                turn.answer,
                tuple(SavedImage(image.layout, image.split().pixels) for image in turn.images),
            )
            for turn in self._turns
        )
        copies = self._engine.copy_cache(self._cached_items)
        write_chat(
            Path(path),
            SavedChat(self._system_text, self._overflow, turns, copies),
            self._files,
            self._engine.copy_format,
        )

    def _messages(self, turns: Sequence[_Turn]) -> list[dict[str, Any]]:
        return [*self._system, *(message for turn in turns for message in turn.messages)]

    def _drop_turns(
        self,
        question: dict[str, Any],
        images: Sequence[ProcessedImage],
        generation: Generation,
        cancel: CancelSignal,
    ) -> tuple[list[_Turn], _Dropped]:
        """Return the earlier turns that fit beside the next question, and how many were dropped."""
        turns, context = list(self._turns), self._engine.context_length
        if self._overflow == "error" or not turns:
            return turns, _Dropped()

        def needed() -> float:
            messages = [*self._messages(turns), question]
            try:
                return self._engine.prompt_tokens(messages, [*_images(turns), *images], cancel)
            except ContextError:  # the prompt builder stops counting there
                return math.inf

        answer = min(generation.max_tokens or 1, context)
        if needed() + answer <= context:
            return turns, _Dropped()
        kept = context - int(FREED_SHARE * context)
        dropped_images = 0
        if self._overflow == "drop_images":
            for at, turn in enumerate(turns):
                if needed() + answer <= kept:
                    break
                dropped_images += len(turn.images)
                turns[at] = turn.without_images()
        while turns and needed() + answer > kept:
            dropped_images += len(turns[0].images)
            del turns[0]
        return turns, _Dropped(len(self._turns) - len(turns), dropped_images)


def _images(turns: Iterable[_Turn]) -> list[ProcessedImage]:
    return [image for turn in turns for image in turn.images]


def load_chat(path: Path, engine: Engine, files: ModelFiles) -> Chat:
    """Load a conversation that `Chat.save` wrote; see `VLM.load_chat`."""
    saved = read_chat(path, files, engine.copy_format)
    mismatch = saved.mismatch
    try:
        chat = Chat(engine, files, saved.system, saved.overflow)
        chat._turns = [_restore_turn(turn, engine) for turn in saved.turns]
        if saved.copies:
            engine.load_cache(saved.copies)
            chat._cached_items = saved.copies[-1].items
    except InferenceError as error:
        mismatch = str(error)
    except (InputError, ArithmeticError, LookupError, AssertionError) as error:
        raise ChatFileError(f"{path} was changed, and cannot be continued: {error}") from error
    if mismatch is not None:
        _logger.warning(
            "the KV cache in %s is not used: %s; the next answer prefills the conversation again",
            path,
            mismatch,
        )
    return chat


def _restore_turn(saved: SavedTurn, engine: Engine) -> _Turn:
    images = tuple(engine.restore_image(image.tiles, image.layout) for image in saved.images)
    return _Turn(user_message(saved.question, len(images)), saved.answer, images)
