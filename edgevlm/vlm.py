"""The class `VLM`: load a bundle, ask about images, stream, hold conversations, encode."""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle import DEFAULT_MODEL, Bundle
from edgevlm.chat import Chat, Overflow, load_chat
from edgevlm.chat_file import ModelFiles
from edgevlm.engine.engine import Engine
from edgevlm.engine.model_lock import MAX_WAIT_SECONDS, WAIT_SECONDS, ChunkStream
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import ContextError, InputError
from edgevlm.frame_memory import FrameMemory
from edgevlm.frame_questions import ChoiceQuestion, TextQuestion
from edgevlm.frames.find import CameraSource, find_source
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.images import ImageSource, load_image
from edgevlm.inputs.prompt import system_messages, user_message
from edgevlm.inputs.tiling import Detail, ImageBudget
from edgevlm.manifest import FileEntry, Manifest
from edgevlm.options import KV_TYPES, Generation, GenerationOptions, KVType
from edgevlm.results import Answer, CacheInfo, Choice, ChoiceScore, Prompt
from edgevlm.validation import check_number
from edgevlm.values import Values, check_choices
from edgevlm.watch import FrameQuestion, Watch

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Remembered:
    """A question about the frames of a memory."""

    question: str
    system: str | None
    generation: Generation
    memory: FrameMemory


class VLM(Values):
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
                the frames after it move there. They have seen it, so values may differ a little from those of
                a new prompt. For one source. A model whose positions cannot move decodes all frames again.
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
            for one in (
                source if isinstance(source, list | tuple) else [cast("CameraSource", source)]
            )
        ]
        if not sources:
            raise InputError("watch needs at least one source, has none")
        if memory is not None and len(sources) > 1:
            raise InputError(
                f"memory is for one source, there are {len(sources)}; start a watch for each"
            )
        frames = None if memory is None else FrameMemory(memory)
        asked = self._frame_question(question, schema, choices, system, options, frames)
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
                remembered = self._remember(question, system, Generation(**settings), memory)
                return ChoiceQuestion(
                    functools.partial(self._choose_remembered, remembered, choices)
                )
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
        generation = self._engine.generation(options)
        if memory is not None:
            remembered = self._remember(question, system, generation, memory)
            return TextQuestion(functools.partial(self._stream_remembered, remembered), parse)
        return TextQuestion(
            functools.partial(self.stream, question=question, system=system, **options), parse
        )

    def _remember(
        self, question: str, system: str | None, generation: Generation, memory: FrameMemory
    ) -> Remembered:
        """Return what `_ask_remembered` needs; log it if the memory costs much."""
        if not self._engine.can_slide:
            log.warning(
                "the KV cache of %s cannot forget frames in its middle; each frame decodes all of the memory",
                self.manifest.name,
            )
        return Remembered(question, system, generation, memory)

    def _ask_remembered(
        self,
        remembered: Remembered,
        images: Sequence[NDArray[np.uint8]],
        within: float | None,
        ask: Callable[[list[dict[str, Any]], list[ProcessedImage], Generation, Stopwatch], Result],
    ) -> Result:
        """Add a frame to a memory, and ask about its frames; forget the oldest if they do not fit."""
        watch = Stopwatch()
        memory = remembered.memory
        generation = dataclasses.replace(remembered.generation, within=within)
        generation = self._engine.fit_deadline(generation, 1, watch)
        memory.add(self._engine.process_image(images[0], generation.image_budget))
        while True:
            frames = memory.frames
            message = user_message(remembered.question, len(frames))
            try:
                return ask(
                    [*system_messages(remembered.system), message], frames, generation, watch
                )
            except ContextError:
                if not memory.forget_oldest():
                    raise

    def _stream_remembered(
        self, remembered: Remembered, images: Sequence[NDArray[np.uint8]], within: float | None
    ) -> ChunkStream:
        stream = functools.partial(self._engine.stream, slide=True)
        return self._ask_remembered(remembered, images, within, stream)

    def _choose_remembered(
        self,
        remembered: Remembered,
        choices: Sequence[str],
        images: Sequence[NDArray[np.uint8]],
        within: float | None,
    ) -> Choice:
        def score(
            messages: list[dict[str, Any]],
            frames: list[ProcessedImage],
            generation: Generation,
            watch: Stopwatch,
        ) -> list[ChoiceScore]:
            return self._engine.score(messages, frames, choices, generation, watch, slide=True)

        return self._choice(self._ask_remembered(remembered, images, within, score))

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
