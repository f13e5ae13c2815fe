"""The class `VLM`: load a bundle, ask about images, stream, hold conversations, encode."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from edgevlm.async_stream import AsyncChunkStream, collect_async
from edgevlm.boxes import Box, Point
from edgevlm.bundle import DEFAULT_MODEL, Bundle
from edgevlm.cancellation import CancelSignal
from edgevlm.chat import Chat, Overflow, load_chat
from edgevlm.chat_file import ModelFiles
from edgevlm.choice_calibration import scale_logprobs
from edgevlm.engine.engine import Engine
from edgevlm.engine.model_lock import MAX_WAIT_SECONDS, WAIT_SECONDS, ChunkStream
from edgevlm.engine.parallel import Waiting
from edgevlm.engine.request import PreparedRequest
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.frame_questions import ChoiceQuestion, TextQuestion
from edgevlm.frames.find import CameraSource, find_source
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.images import ImageSource, load_image, load_image_part, load_images
from edgevlm.inputs.prompt import check_messages, system_messages, user_message
from edgevlm.inputs.tiling import Detail, ImageBudget
from edgevlm.inputs.videos import Video, VideoSource, load_video_part
from edgevlm.locations import location_question
from edgevlm.lru_cache import LruCache
from edgevlm.manifest import FileEntry, Manifest
from edgevlm.options import KV_TYPES, ExtractOptions, Generation, GenerationOptions, KVType
from edgevlm.results import Answer, CacheInfo, Choice, ChoiceScore, Chunk, Prompt, collect
from edgevlm.validation import check_number
from edgevlm.watch import FrameQuestion, Watch

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

LOCATE_MAX_TOKENS = 1024
"""Limit of an answer of `VLM.detect` and `VLM.point` in tokens, or less where the context is shorter."""

_RECENT_IMAGES = 8
"""Processed images that `VLM.ask_many` keeps for further questions about the same object."""


Value = TypeVar("Value")


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


class VLM:
    """A vision-language model, loaded and ready.

    It serves one request at a time; requests from several threads wait for each other. Use it as a context
    manager, or call `close`, to free the memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        devices: tuple[str, str],
        files: tuple[FileEntry, FileEntry],
    ) -> None:
        self._bundle = bundle
        self._engine = engine
        self._vision_device, self._decoder_device = devices
        self._vision_file, self._decoder_file = files
        self._files = ModelFiles(bundle.digest(), *(entry.sha256 for entry in files))

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        device: str = "auto",
        providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
        threads: int | None = None,
        gpu_layers: int | None = None,
        context_length: int | None = None,
        kv: KVType = "f16",
        wait_timeout: float | None = WAIT_SECONDS,
        vision: str | None = None,
        decoder: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        progress: Callable[[float, str], object] | None = None,
    ) -> Self:
        """Load a bundle.

        Args:
            model: a built-in name, the folder of a bundle, or a hub repository that holds one.
            device: the device that encodes images: ``auto``, ``cpu``, ``cuda``, ``tensorrt``, ``coreml``,
                ``qnn``, ``openvino`` (its CPU), ``openvino:gpu`` or ``openvino:npu``. ``auto`` takes the
                best available device; a named device must be available.
            providers: names of ONNX Runtime execution providers, instead of `device`.
            threads: number of threads of each runtime; None: each runtime chooses.
            gpu_layers: number of decoder layers on the GPU; -1: all; None: all if `device` is not the CPU
                and llama.cpp was built for a GPU, else 0.
            context_length: positions for prompt and answer together; None: 4096, or less if the checkpoint
                was trained for less or attends over the whole prompt.
            kv: type of the decoder's KV cache: ``f16``, or ``q8_0`` for about half of the memory. ``q8_0``
                needs heads whose size is a multiple of 32.
            wait_timeout: seconds that a request waits for an open stream that nobody reads, before it raises
                BusyError; None: no limit.
            vision: precision of the vision graph, such as ``int8``; None: chosen by the device.
            decoder: type of the decoder, such as ``q8_0``; None: the preferred one of the bundle.
            revision: branch, tag or commit of a hub repository; None: the default branch.
            cache_dir: folder for downloads; None: huggingface_hub's own.
            token: token for a private repository; None: the one that huggingface_hub has stored.
            local_files_only: use downloaded files only, never the network.
            progress: called before each step with the fraction that is done, 0.0 to 1.0, and the name of the
                step.

        Raises:
            BundleError: there is no such model, or the bundle is incomplete or altered.
            InputError: an argument is outside its range.
            LoadError: a device is not available, or a file cannot be loaded.
        """
        watch = Stopwatch()

        def step(done: float, name: str) -> None:
            if progress is not None:
                progress(done, name)

        step(0.0, "finding the bundle")
        from edgevlm.engine import loading
        from edgevlm.runtimes import system
        from edgevlm.runtimes.devices import select_backend

        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads must be a positive integer or None, is {threads!r}")
        if wait_timeout is not None:
            check_number("wait_timeout", wait_timeout, 0, MAX_WAIT_SECONDS)
        bundle = Bundle.open(
            model,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        manifest = bundle.manifest
        if kv not in KV_TYPES:
            raise InputError(f"kv must be one of {', '.join(KV_TYPES)}, is {kv!r}")
        trained = manifest.decoder.context_length
        if context_length is None:
            context_length = loading.default_context_length(manifest)
        if not isinstance(context_length, int) or not 1 <= context_length <= trained:
            raise InputError(
                f"context_length must be from 1 to the {trained} of the checkpoint, is {context_length!r}"
            )
        decoder_file = bundle.decoder_file(decoder)
        precisions = manifest.vision.files if vision is None else (vision,)
        backend = select_backend(device, providers, precisions)
        vision_file = bundle.vision_file(vision, backend.precisions)
        step(0.1, f"checking {vision_file.name} and {decoder_file.name}")
        bundle.check_hashes_once([vision_file, decoder_file])
        step(0.4, f"loading {vision_file.name} and {decoder_file.name}")
        if gpu_layers is None:
            gpu_layers = loading.default_gpu_layers(device)
        with ThreadPoolExecutor(1, "edgevlm-load") as thread:
            loaded = thread.submit(
                loading.load_vision,
                manifest,
                bundle.path(vision_file),
                backend=backend,
                threads=threads,
            )
            decoder_runtime = loading.load_decoder(
                manifest,
                bundle.path(decoder_file),
                context_length=context_length,
                threads=threads,
                gpu_layers=gpu_layers,
                kv=kv,
            )
            vision_runtime = loaded.result()
        system.return_freed_memory()  # of the buffers that the files were read into
        watch.lap("prepare")
        devices = vision_runtime.device, decoder_runtime.device
        costs = loading.load_costs((vision_file, decoder_file), devices, threads, kv)
        engine = Engine(
            manifest, vision_runtime, decoder_runtime, watch.total_ms, wait_timeout, costs
        )
        step(1.0, "loaded")
        return cls(bundle, engine, devices, (vision_file, decoder_file))

    @property
    def manifest(self) -> Manifest:
        """The manifest of the bundle."""
        return self._bundle.manifest

    @property
    def context_length(self) -> int:
        """Positions for prompt and answer together."""
        return self._engine.context_length

    @property
    def vision_device(self) -> str:
        """The device that the vision graph runs on, as its runtime names it."""
        return self._vision_device

    @property
    def decoder_device(self) -> str:
        """The device that the decoder runs on, as llama.cpp names it."""
        return self._decoder_device

    @property
    def vision_file(self) -> FileEntry:
        """The vision graph that is loaded."""
        return self._vision_file

    @property
    def decoder_file(self) -> FileEntry:
        """The decoder that is loaded."""
        return self._decoder_file

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

    @overload
    def extract(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        answer_type: type[Value],
        *,
        system: str | None = None,
        **options: Unpack[ExtractOptions],
    ) -> Value: ...

    @overload
    def extract(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        answer_type: Any,
        *,
        system: str | None = None,
        **options: Unpack[ExtractOptions],
    ) -> Any: ...

    def extract(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        answer_type: Any,
        *,
        system: str | None = None,
        **options: Unpack[ExtractOptions],
    ) -> Any:
        """Answer a question with a value of a type.

        The answer is a JSON text that keeps to the JSON schema of the type. The model sees the question, and
        the names of fields as it writes them; it does not see the schema.

        Args:
            images: as in `ask`.
            question: as in `ask`.
            answer_type: a pydantic model, dataclass, TypedDict, Enum, Literal or any other type that
                pydantic's ``TypeAdapter`` takes; or a JSON schema as a mapping.
            system: as in `ask`.
            options: fields of `Generation`, without ``json_schema``, ``stop`` and ``top_logprobs``.

        Returns:
            A value of the type; for a JSON schema what ``json.loads`` returns.

        Raises:
            InputError: the type has no JSON schema that an answer can be kept to. The message names the place
                in the schema. No image was loaded.
            IncompleteAnswerError: ``max_tokens`` or ``within`` ended the answer.
            DeadlineError: the time that ``within`` allows is over before the first token.
            AnswerError: a validator of the type refuses the value.
            ImageError, PromptError, ContextError: as `ask`.
            MissingDependencyError: the extra ``typed`` is not installed.
        """
        from edgevlm.typed_answers import answer_format

        unknown = ", ".join(options.keys() - ExtractOptions.__annotations__.keys())
        if unknown:
            raise InputError(f"extract takes no {unknown}; use ask with json_schema")
        wanted = answer_format(answer_type)
        answer = self.ask(images, question, system=system, json_schema=wanted.schema, **options)
        return wanted.value(answer)

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

    def detect(
        self,
        image: ImageSource,
        thing: str,
        *,
        language: str = "en",
        **options: Unpack[GenerationOptions],
    ) -> list[Box]:
        """Find the boxes of a thing on an image.

        The question is that of the task ``detect`` in the manifest (`edgevlm inspect` shows it), and the
        answer is that of `ask`, at most `LOCATE_MAX_TOKENS` tokens long.

        Args:
            image: an `ImageSource`.
            thing: the name of the thing without an article, such as ``red key``.
            language: language of the name, such as ``en``.
            options: fields of `Generation`.

        Returns:
            The boxes in the order of the answer, each with its probability and with a label: that of the
            model, or else `thing`. Empty if the model finds none.

        Raises:
            InputError: the model writes no boxes, or has no question in this language.
            ImageError, PromptError, ContextError: as `ask`.
        """
        answer = self._locate("detect", image, thing, language, options)
        return [dataclasses.replace(box, label=box.label or thing) for box in answer.boxes]

    def point(
        self,
        image: ImageSource,
        thing: str,
        *,
        language: str = "en",
        **options: Unpack[GenerationOptions],
    ) -> list[Point]:
        """Find points on a thing on an image; arguments as of `detect`.

        Returns:
            The points in the order of the answer, with probability and label as of `detect`.

        Raises:
            InputError: the model writes no points, or has no question in this language. Of a model that
                writes boxes, take `Box.center`.
            ImageError, PromptError, ContextError: as `ask`.
        """
        answer = self._locate("point", image, thing, language, options)
        return [dataclasses.replace(point, label=point.label or thing) for point in answer.points]

    def _locate(
        self,
        task: Literal["detect", "point"],
        image: ImageSource,
        thing: str,
        language: str,
        options: GenerationOptions,
    ) -> Answer:
        """Ask for boxes or points, with the probabilities of the tokens."""
        question = location_question(task, self.manifest.usage, thing, language)
        all_options: GenerationOptions = {
            "max_tokens": LOCATE_MAX_TOKENS,
            "cap_max_tokens": True,
            "top_logprobs": 0,
            **options,
        }
        return self.ask([image], question, **all_options)

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], **options: Unpack[GenerationOptions]
    ) -> Prompt:
        """Return the prompt of `generate` with the same arguments: texts and tiles, in order.

        Raises:
            ImageError, PromptError: as `ask`.
        """
        generation = Generation(**options)
        images = self._process_images(messages, generation)
        return self._engine.prompt(messages, images, generation.callable_tools)

    def score(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        choices: Sequence[str],
        *,
        system: str | None = None,
        detail: Detail | None = None,
        max_image_tokens: int | None = None,
        cache_images: bool = True,
        within: float | None = None,
    ) -> list[ChoiceScore]:
        """Return the probability that the model gives to each of several answers.

        The probability of a choice is the product of the probabilities of its tokens and of the end of the
        answer, at temperature 1 and without filters. Those with and without a space before the choice are
        added. The tokens are those of the model's own tokenizer; other spellings do not count.

        Args:
            images: as in `ask`.
            question: as in `ask`.
            system: as in `ask`.
            detail: as in `Generation`.
            max_image_tokens: as in `Generation`.
            cache_images: as in `Generation`.
            within: seconds that the call may take, as in `Generation`; there are no scores of some choices.
            choices: at least one text; each is not empty and occurs once.

        Returns:
            One score for each choice, in the same order.

        Raises:
            InputError: there is no choice, or a choice is empty or occurs twice.
            ImageError, PromptError: as `ask`.
            ContextError: the prompt and the longest choice together are longer than the context.
            DeadlineError: the time that ``within`` allows is over before all choices have their score.
        """
        watch = Stopwatch()
        check_choices(choices)
        generation = Generation(
            detail=detail,
            max_image_tokens=max_image_tokens,
            cache_images=cache_images,
            within=within,
        )
        messages, processed, generation = self._read_request(
            images, question, system, generation, watch, decodes=False
        )
        return self._engine.score(messages, processed, choices, generation, watch)

    def choose(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        choices: Sequence[str],
        *,
        system: str | None = None,
        detail: Detail | None = None,
        max_image_tokens: int | None = None,
        cache_images: bool = True,
        within: float | None = None,
    ) -> Choice:
        """Choose one of several answers, with the probability of each.

        The probability of a choice is that of `score`, given that the model answers with one of the choices:
        the product over the tokens of the choice and the end of the answer, divided by the sum over all
        choices. There is no other correction for length. A longer choice loses nothing for tokens that are
        certain after those before them. If `edgevlm calibrate` measured a temperature for the loaded files,
        the log-probabilities are divided by it first.

        Args:
            images: as in `ask`.
            question: as in `ask`.
            choices: at least two texts, worded as the model would answer; they differ in more than white
                space around them.
            system: as in `ask`.
            detail: as in `Generation`.
            max_image_tokens: as in `Generation`.
            cache_images: as in `Generation`.
            within: as in `score`.

        Raises:
            InputError, ImageError, PromptError, ContextError, DeadlineError: as `score`.
        """
        if not isinstance(choices, str) and len(choices) == 1:
            raise InputError(f"choices must be at least two texts, is {choices!r}")
        scores = self.score(
            images,
            question,
            choices,
            system=system,
            detail=detail,
            max_image_tokens=max_image_tokens,
            cache_images=cache_images,
            within=within,
        )
        measured = self._bundle.choice_calibration.find(self._vision_file, self._decoder_file)
        temperature = 1.0 if measured is None else measured.temperature
        logprobs = np.array([score.logprob for score in scores])
        probabilities = np.exp(scale_logprobs(logprobs, temperature)).tolist()
        best, second = sorted(range(len(scores)), key=lambda index: -probabilities[index])[:2]
        return Choice(
            label=scores[best].text,
            probabilities=dict(zip(choices, probabilities, strict=True)),
            margin=probabilities[best] - probabilities[second],
            calibrated=measured is not None,
        )

    def logits(
        self,
        messages: Sequence[Mapping[str, Any]],
        answer: Sequence[int],
        *,
        detail: Detail | None = None,
        max_image_tokens: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the logits at each position of a given answer, as under teacher forcing.

        With them two models can be compared: `edgevlm eval` computes Kullback-Leibler divergences.

        Args:
            messages: as in `generate`.
            answer: token ids, at least one, such as ``Answer.token_ids``.
            detail: as in `Generation`.
            max_image_tokens: as in `Generation`.

        Returns:
            float32 ``[len(answer), vocabulary]``; row i is what follows the prompt and ``answer[:i]``.

        Raises:
            InputError: a token id is outside the vocabulary, or there is none.
            ImageError, PromptError: as `ask`.
            ContextError: the prompt and the answer together are longer than the context.
        """
        generation = Generation(detail=detail, max_image_tokens=max_image_tokens)
        images = self._process_images(messages, generation)
        return self._engine.logits(messages, images, answer)

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

    def watch(
        self,
        source: CameraSource | list[CameraSource] | tuple[CameraSource, ...],
        question: str,
        *,
        schema: Any = None,
        choices: Sequence[str] | None = None,
        max_age: float | None = None,
        every: float = 0.0,
        min_change: float = 0.0,
        every_frame: bool = False,
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
            topic: topic of a recording.
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
            for one in (source if isinstance(source, list | tuple) else [source])
        ]
        if not sources:
            raise InputError("watch needs at least one source, has none")
        asked = self._frame_question(question, schema, choices, system, options)
        return Watch(
            sources,
            asked,
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
            return ChoiceQuestion(
                functools.partial(
                    self.choose, question=question, choices=choices, system=system, **settings
                )
            )
        parse: Callable[[Answer], Any] = operator.attrgetter("text")
        if schema is not None:
            from edgevlm.typed_answers import answer_format

            wanted = answer_format(schema)
            parse = wanted.value
            options["json_schema"] = wanted.schema
        self._engine.generation(options)
        return TextQuestion(
            functools.partial(self.stream, question=question, system=system, **options), parse
        )

    def chat(self, system: str | None = None, *, overflow: Overflow = "error") -> Chat:
        """Start a conversation. Conversations may be interleaved; each keeps its KV cache.

        Args:
            system: instructions before the first turn.
            overflow: what to do when a turn no longer fits the context: ``error`` raises ContextError;
                ``drop_turns`` drops the oldest turns until a quarter of the context is free;
                ``drop_images`` drops the images of the oldest turns first, and then turns. `Stats`
                counts them.
        """
        return Chat(self._engine, self._files, system, overflow)

    def load_chat(self, path: str | os.PathLike[str]) -> Chat:
        """Continue a conversation that `Chat.save` wrote, in this process or an earlier one.

        The bundle must be the same. If precisions, ``kv``, ``context_length`` and the version of llama.cpp
        are also the same, the KV cache is restored, and the next answer prefills what is new. Otherwise a
        warning is logged, and the next answer encodes and prefills the conversation again.

        A checksum finds damage. It does not tell who wrote the file: load files that you or people you trust
        saved.

        Raises:
            ChatFileError: there is no such file, it is damaged, or it belongs to another bundle.
            BusyError: a stream that nobody reads holds the model.
            ClosedError: the model is closed.
        """
        return load_chat(Path(path), self._engine, self._files)

    def encode_image(
        self,
        image: ImageSource,
        *,
        detail: Detail | None = None,
        max_image_tokens: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the embeddings of one image, float32 ``[tokens, width]``, scaled for the decoder.

        Raises:
            ImageError: the image cannot be read.
        """
        budget = ImageBudget(detail, max_image_tokens)
        return self._engine.encode_image(self._engine.process_image(load_image(image), budget))

    def check_json_schema(self, schema: Mapping[str, Any]) -> None:
        """Check that ``json_schema`` can be used for an answer.

        The schema is tried in a child process, with limits on time and memory, and the result is remembered.
        Any thread may call this while the model answers.

        Raises:
            InputError: the schema is not valid, not supported or too expensive; the message names the place.
            MissingDependencyError: the extra ``typed`` is not installed.
        """
        self._engine.check_json_schema(schema)

    def check_options(self, **options: Unpack[GenerationOptions]) -> None:
        """Check the options of an answer, before an image is read.

        Any thread may call this while the model answers; see `check_json_schema`.

        Raises:
            InputError: an option is outside its range, a JSON schema is not supported, or the model has no
                tools.
            MissingDependencyError: the extra ``typed`` is not installed.
        """
        self._engine.generation(options)

    def cache_info(self) -> CacheInfo:
        """Return what is cached of images and conversations, and what this saved."""
        return self._engine.cache_info()

    def close(self) -> None:
        """End the open stream and free the memory. Later requests raise ClosedError.

        May be called again, and from any thread.
        """
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_choices(choices: Sequence[str]) -> None:
    """Check texts of which one is chosen.

    Raises:
        InputError: there is none, one is empty, or two differ only in white space around them.
    """
    if (
        isinstance(choices, str)
        or not choices
        or not all(isinstance(text, str) and text.strip() for text in choices)
    ):
        raise InputError(f"choices must be several texts, none of them empty, is {choices!r}")
    if len({text.strip() for text in choices}) < len(choices):
        raise InputError(
            f"choices must differ in more than white space around them, are {choices!r}"
        )


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
