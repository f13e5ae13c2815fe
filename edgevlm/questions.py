"""Questions about images, videos and conversations: the part of `VLM` whose answers are texts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.async_stream import AsyncChunkStream, collect_async
from edgevlm.cancellation import CancelSignal
from edgevlm.engine.engine import Engine
from edgevlm.engine.model_lock import ChunkStream
from edgevlm.engine.parallel import Waiting
from edgevlm.engine.request import PreparedRequest
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.images import ImageSource, load_image_part, load_images
from edgevlm.inputs.prompt import check_messages, system_messages, user_message
from edgevlm.inputs.tiling import ImageBudget
from edgevlm.inputs.videos import Video, VideoSource, load_video_part
from edgevlm.lru_cache import LruCache
from edgevlm.options import Generation, GenerationOptions
from edgevlm.results import Answer, Chunk, collect

if TYPE_CHECKING:
    from typing_extensions import Unpack

_RECENT_IMAGES = 8
"""Processed images that `VLM.ask_many` keeps for further questions about the same object."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A request to `VLM.stream_many`."""

    messages: Callable[[], Sequence[Mapping[str, Any]]]
    """Returns the messages, as for `VLM.generate`, or raises an EdgeVLMError, when its turn comes."""
    generation: Generation
    """Settings that are `Generation.draftable`, without `Generation.within`."""
    cancel: CancelSignal = dataclasses.field(default_factory=CancelSignal)
    """Stops the work on this request."""
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)


WaitingConversations: TypeAlias = "Waiting[Conversation]"
"""A deque of conversations that wait, each with a number."""


class Questions:
    """The methods of `VLM` that answer with texts."""

    _engine: Engine

    def ask(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        *,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Answer a question about one image, several images, a video, or none of them.

        Args:
            images: an `ImageSource` (a path, a data URI, the bytes of a file, a binary file, a Pillow image,
                an RGB array ``[height, width, 3]``), an iterable of these, a `Video`, or None.
            question: the text after the images.
            system: instructions before the question.
            options: fields of `Generation`.

        Raises:
            ImageError: an image cannot be read.
            PromptError: the question is empty, or the model does not support a system message.
            ContextError: prompt and ``max_tokens`` together are longer than the context.
            DeadlineError: the time that ``within`` allows is over before the first token.
        """
        return collect(self.stream(images, question, system=system, **options))

    def stream(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        *,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> ChunkStream:
        """Answer as `ask` does, in chunks. The last chunk has ``finish_reason`` and ``stats``.

        Any thread may read the stream. Closing it stops the work; during prefill it yields chunks without
        text for this. Until it ends it holds the model, and other requests wait.
        """
        return self._stream(images, question, system, options, Stopwatch())

    async def aask(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        *,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Answer as `ask` does, for asyncio.

        Another thread works, so the event loop goes on meanwhile. Cancelling the task stops the work.
        """
        return await collect_async(self.astream(images, question, system=system, **options))

    def astream(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        *,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncChunkStream:
        """Answer as `stream` does, for ``async for``.

        All work, also that of loading images, begins with the first chunk, in another thread. Each further
        chunk is computed when it is asked for. Cancelling the task or leaving the loop stops the work.
        """
        start = functools.partial(self._stream, images, question, system, options)
        return AsyncChunkStream(self._engine, start, Generation(**options).within)

    def _stream(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        system: str | None,
        options: GenerationOptions,
        watch: Stopwatch,
        cancel: CancelSignal | None = None,
    ) -> ChunkStream:
        cancel = cancel or CancelSignal()
        generation = self._engine.generation(options, cancel)
        messages, processed, generation = self._read_request(
            images, question, system, generation, watch
        )
        return self._engine.stream(messages, processed, generation, watch, cancel=cancel)

    def ask_many(
        self,
        requests: Iterable[tuple[ImageSource | Iterable[ImageSource] | Video | None, str]],
        *,
        system: str | None = None,
        progress: Callable[[int, int], object] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Answer | EdgeVLMError]:
        """Answer many questions.

        Answers are decoded together, as parallel sequences of one context. Greedy answers are those of `ask`.
        This saves most where questions are about the same image or answers are long: encoding and prefill of
        different images cost what they cost alone.
        With a temperature, a repetition penalty, a JSON schema or log-probabilities, and for models that have
        recurrent layers or sliding windows, they are decoded one after another. Other threads wait until all
        are answered.

        Args:
            requests: pairs of images and question, each as in `ask`. Questions about the same images should
                stand together, and have the same object or the same path.
            system: as in `ask`, for all.
            progress: called after each answer with the number of answers so far and of all requests.
            options: fields of `Generation`, for all.

        Returns:
            For each request in order its answer; or its error, as `ask` raises it.

        Raises:
            InputError: an option is outside its range, or the JSON schema is not supported.
            ClosedError: the model is closed.
        """
        generation = self._engine.generation(options)
        pairs = list(requests)

        recent: LruCache[object, list[ProcessedImage]] = LruCache(_RECENT_IMAGES)

        def prepare(
            images: ImageSource | Iterable[ImageSource] | Video | None, question: str
        ) -> tuple[Sequence[Mapping[str, Any]], Sequence[ProcessedImage]]:
            key = images if isinstance(images, str | os.PathLike) else id(images)
            if key not in recent:
                media = _load_media(images)
                _, recent[key] = self._user_turn(media, question, generation.image_budget)
            processed = recent[key]
            images_count = 0 if isinstance(images, Video) else len(processed)
            message = user_message(question, images_count, videos=len(processed) - images_count)
            return [*system_messages(system), message], processed

        answers: dict[int, Answer | EdgeVLMError] = {}
        prepared = [functools.partial(prepare, images, question) for images, question in pairs]
        with contextlib.closing(self._engine.answer_many(prepared, generation)) as outcomes:
            for index, outcome in outcomes:
                answers[index] = outcome
                if progress is not None:
                    progress(len(answers), len(pairs))
        return [answers[index] for index in range(len(pairs))]

    def ask_video(
        self,
        video: VideoSource,
        question: str,
        *,
        frames: int | None = None,
        fps: float | None = None,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Answer a question about a video, of which the model sees several frames with their times.

        Frames are chosen, prepared and written in the prompt as the checkpoint's processor in transformers
        does it.

        Args:
            video: a `VideoSource`: a file (needs the extra ``video``), or an iterable of images, the frames.
            question: the text after the video.
            frames: number of frames, evenly spread; with `fps`, the most frames. None: as many as `fps` asks
                for, and not more than the model's default.
            fps: frames of a file that the model sees in a second; for a list of images, how many there are in
                a second. None: the rate of the checkpoint.
            system: instructions before the question.
            options: fields of `Generation`. ``max_image_tokens`` is a limit for the whole video.

        Raises:
            InputError: the model takes no video, or an argument is outside its range.
            ImageError: the video cannot be read.
            MissingDependencyError: the video is a file, and PyAV is not installed.
            PromptError, ContextError: as `ask`.
        """
        return collect(
            self.stream_video(video, question, frames=frames, fps=fps, system=system, **options)
        )

    def stream_video(
        self,
        video: VideoSource,
        question: str,
        *,
        frames: int | None = None,
        fps: float | None = None,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> ChunkStream:
        """Answer as `ask_video` does, in chunks; see `stream`."""
        return self.stream(Video(video, frames, fps), question, system=system, **options)

    def generate(
        self, messages: Sequence[Mapping[str, Any]], **options: Unpack[GenerationOptions]
    ) -> Answer:
        """Answer a whole conversation, with images anywhere between the texts.

        Args:
            messages: as in transformers, with images in place: ``{"role": "user", "content":
                [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is this?"}]}``.
                Instead of ``image`` a part may have ``path``, ``url`` (a data URI or a ``file://`` URL)
                or ``base64``. A ``"detail"`` in a part is for this image alone. A part ``{"type": "video",
                "video": "a.mp4"}``, or with ``path`` or ``url``, may have ``frames`` and ``fps`` as in
                `ask_video`.
            options: fields of `Generation`.

        Raises:
            ImageError, PromptError, ContextError: as `ask`.
        """
        return collect(self.stream_generate(messages, **options))

    def stream_generate(
        self, messages: Sequence[Mapping[str, Any]], **options: Unpack[GenerationOptions]
    ) -> ChunkStream:
        """Answer as `generate` does, in chunks; see `stream`."""
        watch = Stopwatch()
        generation = self._engine.generation(options)
        check_messages(messages)
        generation = self._engine.fit_deadline(generation, len(_media_parts(messages)), watch)
        processed = self._process_images(messages, generation)
        return self._engine.stream(messages, processed, generation, watch)

    def stream_many(
        self, waiting: WaitingConversations
    ) -> Generator[tuple[int, Chunk | EdgeVLMError], None, None]:
        """Answer conversations that wait, in chunks. Greedy answers are decoded together, as in `ask_many`.

        Args:
            waiting: a deque of pairs, a number and a conversation each, from which they are taken. More may
                be added between two chunks.

        Yields:
            The number of a conversation, and the next chunk of its answer or its error.

        Raises:
            ClosedError: the model is closed.
        """

        def prepare(one: Conversation) -> PreparedRequest:
            one.watch.lap("wait")
            messages = one.messages()
            images = self._process_images(messages, one.generation)
            return PreparedRequest(messages, images, one.generation, one.watch, one.cancel)

        return self._engine.stream_many(waiting, prepare)

    def _read_request(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        system: str | None,
        generation: Generation,
        watch: Stopwatch,
        *,
        decodes: bool = True,
    ) -> tuple[list[dict[str, Any]], list[ProcessedImage], Generation]:
        """Read images and split them as finely as the time of the request allows.

        Args:
            watch: started when the request came.
            decodes: as in `fit_images`.

        Returns:
            Messages, images, and the settings with the detail of the images.
        """
        media = _load_media(images)
        count = 1 if isinstance(media, Video) else len(media)
        generation = self._engine.fit_deadline(generation, count, watch, decodes=decodes)
        message, processed = self._user_turn(media, question, generation.image_budget)
        return [*system_messages(system), message], processed, generation

    def _user_turn(
        self, media: Video | Sequence[NDArray[np.uint8]], question: str, budget: ImageBudget
    ) -> tuple[dict[str, Any], list[ProcessedImage]]:
        """Return the message of a question, and its images or its video, split into tiles."""
        if isinstance(media, Video):
            video = self._engine.process_video(
                media.source, budget, frames=media.frames, fps=media.fps
            )
            return user_message(question, 0, videos=1), [video]
        processed = [self._engine.process_image(image, budget) for image in media]
        return user_message(question, len(processed)), processed

    def _process_images(
        self, messages: Sequence[Mapping[str, Any]], generation: Generation
    ) -> list[ProcessedImage]:
        """Read and split the images and videos of messages."""
        check_messages(messages)
        return [
            self._engine.process_image(load_image_part(part), _budget(part, generation))
            if part["type"] == "image"
            else self._engine.process_video(
                load_video_part(part),
                _budget(part, generation),
                frames=part.get("frames"),
                fps=part.get("fps"),
            )
            for part in _media_parts(messages)
        ]


def _load_media(
    images: ImageSource | Iterable[ImageSource] | Video | None,
) -> Video | Sequence[NDArray[np.uint8]]:
    """Load images; return a video as it is."""
    return images if isinstance(images, Video) else load_images(images)


def _media_parts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the parts that are images or videos. The prompt builder reports faults of messages."""
    found = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and part.get("type") in ("image", "video"):
                found.append(part)
    return found


def _budget(part: Mapping[str, Any], generation: Generation) -> ImageBudget:
    """Return the budget of one image or video."""
    detail = part.get("detail")
    detail = generation.detail if detail is None else detail
    return ImageBudget(detail, generation.max_image_tokens)
