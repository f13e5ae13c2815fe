"""A conversation: turns that build on each other."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from edgevlm.engine import Engine
from edgevlm.generation import Generation, GenerationOptions
from edgevlm.images import ImageSource, load_images
from edgevlm.pictures import Picture
from edgevlm.prompt import system_messages, user_message
from edgevlm.results import Answer, Chunk, Stopwatch, collect

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Chat:
    """Made by `VLM.chat`.

    A turn that fails leaves the conversation as it was; one that is stopped early (its stream closed)
    keeps what had been said.
    """

    def __init__(self, engine: Engine, system: str | None = None) -> None:
        self._engine = engine
        self._messages = system_messages(system)
        self._pictures: list[Picture] = []

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, as transformers' messages; pictures are bare ``{"type": "image"}``."""
        return [{**message, "content": list(message["content"])} for message in self._messages]

    def send(
        self,
        text: str,
        images: ImageSource | Iterable[ImageSource] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """The answer to the next turn; arguments and errors as in `VLM.ask`."""
        return collect(self.stream(text, images, **options))

    def stream(
        self,
        text: str,
        images: ImageSource | Iterable[ImageSource] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[Chunk, None, None]:
        """As `send`, in chunks."""
        watch = Stopwatch()
        generation = Generation(**options)
        budget = generation.image_budget
        pictures = [self._engine.prepare(picture, budget) for picture in load_images(images)]
        question = user_message(text, len(pictures))
        chunks = self._engine.generate(
            [*self._messages, question], [*self._pictures, *pictures], generation, watch
        )
        return self._record(chunks, question, pictures)

    def _record(
        self,
        chunks: Generator[Chunk, None, None],
        question: dict[str, Any],
        pictures: list[Picture],
    ) -> Generator[Chunk, None, None]:
        said: list[str] = []
        failed = False
        try:
            with contextlib.closing(chunks):
                for chunk in chunks:
                    said.append(chunk.text)
                    yield chunk
        except Exception:
            failed = True
            raise
        finally:
            answer = "".join(said)
            if answer and not failed:
                part = {"type": "text", "text": answer}
                self._messages += [question, {"role": "assistant", "content": [part]}]
                self._pictures += pictures
