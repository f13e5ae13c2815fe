"""Questions about the frames of cameras and other sources: the part of `VLM` that watches."""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.kv_cache import Window
from edgevlm.engine.model_lock import ChunkStream
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import ContextError, InputError
from edgevlm.frame_memory import FrameMemory
from edgevlm.frame_questions import ChoiceQuestion, TextQuestion
from edgevlm.frames.find import CameraSource, find_source
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.prompt import system_messages, user_message
from edgevlm.options import Generation, GenerationOptions
from edgevlm.results import Answer, Choice, ChoiceScore
from edgevlm.validation import check_number
from edgevlm.values import Values, check_choices
from edgevlm.watch import FrameQuestion, Watch

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Remembered:
    """A question about the frames of a memory."""

    question: str
    system: str | None
    generation: Generation
    memory: FrameMemory


class Watching(Values):
    """The method `VLM.watch`."""

    def watch(
        self,
        source: CameraSource | Sequence[CameraSource],
        question: str,
        *,
        schema: Any = None,
        choices: Sequence[str] | None = None,
        max_age: float | None = None,
        every: float = 0.0,
        min_change: float = 0.0,
        every_frame: bool = False,
        memory: int | str | None = None,
        topic: str | None = None,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Watch:
        """Ask one question about the newest frame of a camera or another source, again and again.

            with vlm.watch(0, "Is the path clear?", choices=["yes", "no"], max_age=0.5) as seen:
                for one in seen:
                    print(one.value, one.age)

        Args:
            source: a `CameraSource`; or a list or tuple of them, which take turns.
            question: the text after each frame.
            schema: a type or a JSON schema as of `extract`, whose value is wanted; None: the text.
            choices: labels as of `choose`, one of which is wanted.
            max_age: age in seconds above which a frame is not answered, and no value of it returned. A source
                that gives no frame for so long is a StalledError. The answer has the time that is left of it.
            every: seconds between the beginnings of two answers about one source.
            min_change: skip frames whose mean change of brightness since the last answer is less than this, 0
                to 1; 0 skips none. Noise of a camera is about 0.01.
            every_frame: read files and recordings frame by frame, as fast as the model answers. Otherwise
                their frames come at their times, and replace each other as those of a camera.
            memory: number of frames that the model sees together, the newest last, or the seconds from which
                they are, such as ``30s``; None: the newest one alone. Fewer if they do not fit the context.
                Each frame is encoded and decoded once: what is forgotten is removed from the KV cache, and
                the frames after it move there. They have seen it, so values may differ from those of
                a new prompt. Each source has a memory of its own; what the KV cache holds for it is copied
                out and back when another source or another request has its turn. A model whose positions
                cannot move decodes all frames again.
            topic: topic of a recording; camera of a LeRobot data set.
            system: as in `ask`.
            options: fields of `Generation`; with ``choices`` only ``detail``, ``max_image_tokens`` and
                ``cache_images``. ``within`` is the time of one answer. ``cache_images`` is False unless it
                is given, since the frames of a camera do not come again.

        Raises:
            InputError: an argument is outside its range, or `schema` has no JSON schema.
            SourceError: a file does not exist, or an address has an unknown scheme.
            MissingDependencyError: the extra ``typed`` is not installed, and there is a schema.
        """
        options.setdefault("cache_images", False)
        within = options.pop("within", None)
        for name, value in (("max_age", max_age), ("within", within)):
            if value is not None:
                check_number(name, value, 1e-3, 1e6)
        check_number("every", every, 0, 1e6)
        check_number("min_change", min_change, 0, 1)
        sources = [
            find_source(one, topic)
            for one in (
                source if isinstance(source, list | tuple) else [cast("CameraSource", source)]
            )
        ]
        if not sources:
            raise InputError("watch needs at least one source, has none")
        questions = [
            self._frame_question(
                question,
                schema,
                choices,
                system,
                options,
                None if memory is None else FrameMemory(memory),
            )
            for _ in sources
        ]
        if memory is not None and not self._engine.can_slide:
            log.warning(
                "the KV cache of %s cannot forget frames in its middle; each frame decodes all of the memory",
                self._bundle.manifest.name,
            )
        return Watch(
            list(zip(sources, questions, strict=True)),
            max_age=max_age,
            within=within,
            every=every,
            min_change=min_change,
            every_frame=every_frame,
        )

    def _frame_question(
        self,
        question: str,
        schema: Any,
        choices: Sequence[str] | None,
        system: str | None,
        options: GenerationOptions,
        memory: FrameMemory | None = None,
    ) -> FrameQuestion:
        """Return what `watch` asks about each frame; all that needs no frame is checked."""
        _ = system_messages(system), user_message(question, 1)
        if choices is not None:
            unknown = options.keys() - {"detail", "max_image_tokens", "cache_images"}
            if schema is not None or unknown:
                raise InputError(
                    f"choices take no {'schema' if schema is not None else ', '.join(sorted(unknown))}"
                )
            check_choices(choices)
            settings: Any = options
            if memory is not None:
                remembered = Remembered(question, system, Generation(**settings), memory)
                return ChoiceQuestion(
                    functools.partial(self._choose_remembered, remembered, choices)
                )
            return ChoiceQuestion(
                lambda images, within, cancel: self._choice(
                    self._score(
                        images,
                        question,
                        choices,
                        system,
                        Generation(**(settings | {"within": within})),
                        cancel,
                    )
                )
            )
        parse: Callable[[Answer], Any] = operator.attrgetter("text")
        if schema is not None:
            from edgevlm.typed_answers import answer_format

            wanted = answer_format(schema)
            parse = wanted.value
            options["json_schema"] = wanted.schema
        generation = self._engine.generation(options)
        if memory is not None:
            remembered = Remembered(question, system, generation, memory)
            return TextQuestion(functools.partial(self._stream_remembered, remembered), parse)

        def begin(
            images: list[NDArray[np.uint8]], within: float | None, cancel: CancelSignal
        ) -> ChunkStream:
            settings: GenerationOptions = {**options, "within": within}
            return self._stream(images, question, system, settings, Stopwatch(), cancel)

        return TextQuestion(begin, parse)

    def _ask_remembered(
        self,
        remembered: Remembered,
        images: Sequence[NDArray[np.uint8]],
        within: float | None,
        ask: Callable[..., Result],
    ) -> Result:
        """Add a frame to a memory, and ask about its frames; forget the oldest if they do not fit.

        Args:
            ask: takes messages, images, generation, stopwatch and ``window``, as `Engine.stream`.
        """
        watch = Stopwatch()
        memory = remembered.memory
        generation = dataclasses.replace(remembered.generation, within=within)
        generation = self._engine.fit_deadline(generation, 1, watch)
        window = memory.window if self._engine.can_slide else None
        memory.add(self._engine.process_image(images[0], generation.image_budget))
        while True:
            frames = memory.frames
            message = user_message(remembered.question, len(frames))
            try:
                messages = [*system_messages(remembered.system), message]
                return ask(messages, frames, generation, watch, window=window)
            except ContextError:
                if not memory.forget_oldest():
                    raise

    def _stream_remembered(
        self,
        remembered: Remembered,
        images: Sequence[NDArray[np.uint8]],
        within: float | None,
        cancel: CancelSignal,
    ) -> ChunkStream:
        stream = functools.partial(self._engine.stream, cancel=cancel)
        return self._ask_remembered(remembered, images, within, stream)

    def _choose_remembered(
        self,
        remembered: Remembered,
        choices: Sequence[str],
        images: Sequence[NDArray[np.uint8]],
        within: float | None,
        cancel: CancelSignal,
    ) -> Choice:
        def score(
            messages: list[dict[str, Any]],
            frames: list[ProcessedImage],
            generation: Generation,
            watch: Stopwatch,
            window: Window | None,
        ) -> list[ChoiceScore]:
            return self._engine.score(
                messages, frames, choices, generation, watch, cancel=cancel, window=window
            )

        return self._choice(self._ask_remembered(remembered, images, within, score))
