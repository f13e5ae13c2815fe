"""A conversation: turns that build on each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgevlm.engine.engine import Chunks, Engine
from edgevlm.engine.model_lock import ChunkStream
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import ContextError, InputError
from edgevlm.inputs.image_processor import Picture
from edgevlm.inputs.images import ImageSource, load_images
from edgevlm.inputs.prompt import system_messages, user_message
from edgevlm.options import Generation, GenerationOptions
from edgevlm.results import Answer, collect

if TYPE_CHECKING:
    from typing_extensions import Unpack

Overflow = Literal["error", "drop_images", "drop_turns"]
"""What a conversation does that no longer fits the context; see `VLM.chat`."""

FREED_SHARE = 0.25
"""Share of the context that is free after turns were dropped: the turns that follow find what is left in the
KV cache, where dropping a little in each of them would prefill everything each time."""


@dataclass(frozen=True)
class _Turn:
    question: dict[str, Any]
    answer: str
    pictures: tuple[Picture, ...]

    @property
    def messages(self) -> list[dict[str, Any]]:
        parts = [{"type": "text", "text": self.answer}]
        return [self.question, {"role": "assistant", "content": parts}]

    def without_images(self) -> _Turn:
        parts = [part for part in self.question["content"] if part["type"] != "image"]
        return _Turn({**self.question, "content": parts}, self.answer, ())


@dataclass(frozen=True)
class _Dropped:
    turns: int = 0
    images: int = 0


class Chat:
    """Made by `VLM.chat`.

    A turn that fails leaves the conversation as it was; one that is stopped early (its stream closed)
    keeps what had been said.
    """

    def __init__(
        self, engine: Engine, system: str | None = None, overflow: Overflow = "error"
    ) -> None:
        if overflow not in get_args(Overflow):
            raise InputError(
                f"overflow must be one of {', '.join(get_args(Overflow))}, is {overflow!r}"
            )
        self._engine = engine
        self._system = system_messages(system)
        self._overflow = overflow
        self._turns: list[_Turn] = []

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, as transformers' messages; pictures are bare ``{"type": "image"}``."""
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
        """Answer the next turn; arguments and errors as in `VLM.ask`."""
        return collect(self.stream(text, images, **options))

    def stream(
        self,
        text: str,
        images: ImageSource | Iterable[ImageSource] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> ChunkStream:
        """Answer as `send`, in chunks."""
        watch = Stopwatch()
        generation = Generation(**options)
        budget = generation.image_budget
        pictures = tuple(self._engine.prepare(picture, budget) for picture in load_images(images))
        question = user_message(text, len(pictures))
        turns, dropped = self._fitting(question, pictures, generation)

        def record(chunks: Chunks) -> Chunks:
            said: list[str] = []
            failed = False
            try:
                for chunk in chunks:
                    said.append(chunk.text)
                    if chunk.stats is not None:
                        stats = dataclasses.replace(
                            chunk.stats, dropped_turns=dropped.turns, dropped_images=dropped.images
                        )
                        chunk = dataclasses.replace(chunk, stats=stats)
                    yield chunk
            except Exception:
                failed = True
                raise
            finally:
                chunks.close()
                answer = "".join(said)
                if answer and not failed:
                    self._turns = [*turns, _Turn(question, answer, pictures)]

        return self._engine.generate(
            [*self._messages(turns), question],
            [*_pictures(turns), *pictures],
            generation,
            watch,
            continues=True,
            through=record,
        )

    def _messages(self, turns: Sequence[_Turn]) -> list[dict[str, Any]]:
        return [*self._system, *(message for turn in turns for message in turn.messages)]

    def _fitting(
        self, question: dict[str, Any], pictures: Sequence[Picture], generation: Generation
    ) -> tuple[list[_Turn], _Dropped]:
        """The earlier turns that are kept beside the next question, and how much is dropped of them."""
        turns, context = list(self._turns), self._engine.context_length
        if self._overflow == "error" or not turns:
            return turns, _Dropped()

        def needed() -> float:
            messages = [*self._messages(turns), question]
            try:
                return self._engine.prompt_tokens(messages, [*_pictures(turns), *pictures])
            except ContextError:  # longer than it was counted to the end
                return math.inf

        answer = min(generation.max_tokens or 1, context)
        if needed() + answer <= context:
            return turns, _Dropped()
        kept = context - int(FREED_SHARE * context)
        images = 0
        if self._overflow == "drop_images":
            for at, turn in enumerate(turns):
                if needed() + answer <= kept:
                    break
                images += len(turn.pictures)
                turns[at] = turn.without_images()
        while turns and needed() + answer > kept:
            images += len(turns[0].pictures)
            del turns[0]
        return turns, _Dropped(len(self._turns) - len(turns), images)


def _pictures(turns: Iterable[_Turn]) -> list[Picture]:
    return [picture for turn in turns for picture in turn.pictures]
