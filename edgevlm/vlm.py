"""The public face: load a bundle, ask about pictures, stream, converse, encode."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle import DEFAULT_MODEL, Bundle
from edgevlm.chat import Chat, Overflow
from edgevlm.engine.engine import Engine
from edgevlm.engine.model_lock import MAX_WAIT_SECONDS, WAIT_SECONDS, ChunkStream
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import InputError
from edgevlm.inputs.image_processor import Picture
from edgevlm.inputs.images import ImageSource, image_of_part, load_image, load_images
from edgevlm.inputs.prompt import check_messages, system_messages, user_message
from edgevlm.inputs.tiling import Detail, ImageBudget
from edgevlm.manifest import FileEntry, Manifest
from edgevlm.options import Generation, GenerationOptions
from edgevlm.results import Answer, CacheInfo, ChoiceScore, Prompt, collect
from edgevlm.validation import check_number

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class VLM:
    """A vision-language model, loaded and ready.

    One object serves one request at a time; requests of several threads wait for each other. Use as a
    context manager, or `close` it, to free the memory at a definite time.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, device: str, files: tuple[FileEntry, FileEntry]
    ) -> None:
        self._bundle = bundle
        self._engine = engine
        self._device = device
        self._files = files

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        device: str = "auto",
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        gpu_layers: int | None = None,
        context_length: int | None = None,
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
            model: a built-in name, a bundle's folder, or a hub repository that holds a bundle.
            device: where pictures are encoded: ``auto``, ``cpu``, ``cuda``, ``tensorrt``, ``coreml``,
                ``qnn``, ``openvino`` (its CPU), ``openvino:gpu`` or ``openvino:npu``. ``auto`` takes the
                best that is there; a named one must be there.
            providers: ONNX Runtime execution providers by name, instead of `device`.
            threads: of each runtime; None lets each choose.
            gpu_layers: decoder layers on the GPU; -1 for all, None for all if `device` is no CPU and
                llama.cpp was built for a GPU.
            context_length: positions for prompt and answer together; None for
                `edgevlm.engine.loading.default_context_length`.
            wait_timeout: seconds that a request waits while nobody reads the stream that holds the model;
                then it raises BusyError. None waits for ever.
            vision, decoder: precisions, such as ``int8`` and ``q8_0``; None chooses by the device.
            revision, cache_dir, token, local_files_only: as in huggingface_hub.
            progress: called before each step, with the share of the steps that is done and what comes.

        Raises:
            BundleError: no such model, or a bundle that is incomplete or altered.
            InputError: an argument outside its range.
            RuntimeLoadError: a device that is not there, or a file that does not load.
        """
        watch = Stopwatch()

        def step(share: float, what: str) -> None:
            if progress is not None:
                progress(share, what)

        step(0.0, "finding the bundle")
        from edgevlm.engine import loading
        from edgevlm.runtimes import system
        from edgevlm.runtimes.devices import select

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
        trained = manifest.decoder.context_length
        if context_length is None:
            context_length = loading.default_context_length(manifest)
        if not isinstance(context_length, int) or not 1 <= context_length <= trained:
            raise InputError(
                f"context_length must be from 1 to the {trained} of the checkpoint, is {context_length!r}"
            )
        decoder_file = bundle.decoder_file(decoder)
        precisions = manifest.vision.files if vision is None else (vision,)
        target = select(device, providers, precisions)
        vision_file = bundle.vision_file(vision, target.precisions)
        step(0.1, f"checking {vision_file.name} and {decoder_file.name}")
        bundle.check_hashes_once([vision_file, decoder_file])
        step(0.4, f"loading {vision_file.name} and {decoder_file.name}")
        if gpu_layers is None:
            gpu_layers = loading.default_gpu_layers(device)
        with ThreadPoolExecutor(1, "edgevlm-load") as thread:  # neither needs a whole processor
            opening = thread.submit(
                loading.open_vision,
                manifest,
                bundle.path(vision_file),
                target=target,
                threads=threads,
            )
            decoder_runtime = loading.open_decoder(
                manifest,
                bundle.path(decoder_file),
                context_length=context_length,
                threads=threads,
                gpu_layers=gpu_layers,
            )
            vision_runtime = opening.result()
        system.return_freed_memory()  # what reading the files took
        used = f"vision {vision_runtime.device}, decoder {decoder_runtime.device}"
        watch.end("prepare")
        engine = Engine(manifest, vision_runtime, decoder_runtime, watch.total_ms, wait_timeout)
        step(1.0, "loaded")
        return cls(bundle, engine, used, (vision_file, decoder_file))

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def context_length(self) -> int:
        """Positions for prompt and answer together."""
        return self._engine.context_length

    @property
    def device(self) -> str:
        """What both halves really run on."""
        return self._device

    @property
    def files(self) -> tuple[FileEntry, FileEntry]:
        """The vision graph and the decoder that are loaded, of all that the bundle has."""
        return self._files

    def ask(
        self,
        image: ImageSource | Iterable[ImageSource] | None,
        question: str,
        *,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Answer one question about a picture, several, or none.

        Args:
            image: an `edgevlm.ImageSource` (a path, a data URI, a file's bytes, a binary file, a
                Pillow image, an RGB array ``[height, width, 3]``), an iterable of these, or None.
            system: instructions before the question.
            options: fields of `edgevlm.options.Generation`.

        Raises:
            ImageError: a picture that cannot be read.
            PromptError: an empty question, or messages that the model does not know.
            ContextError: prompt and ``max_tokens`` do not fit the context together.
        """
        return collect(self.stream(image, question, system=system, **options))

    def stream(
        self,
        image: ImageSource | Iterable[ImageSource] | None,
        question: str,
        *,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> ChunkStream:
        """Answer as `ask`, in chunks, of which the last has ``finish_reason`` and ``stats``.

        The stream may be read from any thread. Closing it stops the work, also while the prompt is prefilled:
        chunks without text come then. Until its end it holds the model, and other requests wait.
        """
        watch = Stopwatch()
        generation = Generation(**options)
        budget = generation.image_budget
        pictures = [self._engine.prepare(picture, budget) for picture in load_images(image)]
        messages = [*system_messages(system), user_message(question, len(pictures))]
        return self._engine.generate(messages, pictures, generation, watch)

    def generate(
        self, messages: Sequence[Mapping[str, Any]], **options: Unpack[GenerationOptions]
    ) -> ChunkStream:
        """Stream the answer to a whole conversation, pictures anywhere between the texts.

        Args:
            messages: as in transformers, with pictures in place: ``{"role": "user", "content":
                [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is this?"}]}``.
                Instead of ``image`` a part may have ``path``, ``url`` (a data URI or a ``file://`` URL)
                or ``base64``.
                A ``"detail"`` beside a picture is for it alone.
        """
        watch = Stopwatch()
        generation = Generation(**options)
        pictures = self._prepare(messages, generation)
        return self._engine.generate(messages, pictures, generation, watch)

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], **options: Unpack[GenerationOptions]
    ) -> Prompt:
        """What the model would be given by `generate` with the same arguments: texts and tiles, in order.

        Raises:
            ImageError, PromptError: as `ask`.
        """
        pictures = self._prepare(messages, Generation(**options))
        return self._engine.prompt(messages, pictures)

    def score(
        self,
        image: ImageSource | Iterable[ImageSource] | None,
        question: str,
        choices: Sequence[str],
        *,
        system: str | None = None,
        detail: Detail | None = None,
        max_image_tokens: int | None = None,
        cache_images: bool = True,
    ) -> list[ChoiceScore]:
        """How likely each of several answers is, by the model's own probabilities.

        The probability of a choice is that of its tokens one after the other, each after the prompt and
        the ones before it, times that of ending there, at temperature 1 and without filters; that with and
        without a space before the choice added up, since answers are shown without it. The tokens are those
        that the vocabulary's own tokenizer makes of the choice; other ways to spell it do not count. Choices
        of many tokens are less likely than short ones for that alone.

        Args:
            image, question, system, detail, max_image_tokens, cache_images: as in `ask`.
            choices: texts that are neither empty nor there twice, at least one.

        Returns:
            One for each choice, in their order.

        Raises:
            InputError: no choices, or one that is empty or there twice.
            ImageError, PromptError: as `ask`.
            ContextError: prompt and the longest choice do not fit the context together.
        """
        if isinstance(choices, str) or not choices or not all(text.strip() for text in choices):
            raise InputError(f"choices must be several texts, none of them empty, is {choices!r}")
        if len(set(choices)) < len(choices):
            raise InputError(f"choices must differ, are {', '.join(choices)}")
        budget = ImageBudget(detail, max_image_tokens)
        pictures = [self._engine.prepare(picture, budget) for picture in load_images(image)]
        messages = [*system_messages(system), user_message(question, len(pictures))]
        return self._engine.score(messages, pictures, choices, cache_images=cache_images)

    def _prepare(
        self, messages: Sequence[Mapping[str, Any]], generation: Generation
    ) -> list[Picture]:
        """The pictures in place in some messages, in tiles."""
        check_messages(messages)
        return [
            self._engine.prepare(image_of_part(part), _budget(part, generation))
            for part in _image_parts(messages)
        ]

    def chat(self, system: str | None = None, *, overflow: Overflow = "error") -> Chat:
        """Start a conversation. Conversations may be interleaved; each keeps its place in the KV cache.

        Args:
            system: instructions before the first turn.
            overflow: what to do once a turn no longer fits the context: ``error`` raises ContextError;
                ``drop_turns`` drops the oldest turns until a quarter of the context is free;
                ``drop_images`` drops the images of the oldest turns first, and then turns. `Stats` says how
                many were dropped.
        """
        return Chat(self._engine, system, overflow)

    def encode(
        self,
        image: ImageSource,
        *,
        detail: Detail | None = None,
        max_image_tokens: int | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings float32 ``[tokens, width]`` of one picture, as the decoder gets them."""
        budget = ImageBudget(detail, max_image_tokens)
        return self._engine.encode(self._engine.prepare(load_image(image), budget))

    def check_json_schema(self, schema: Mapping[str, Any]) -> None:
        """Refuse a ``json_schema`` that the methods that answer would refuse.

        The schema is tried in a child process, within bounds on time and memory, and the verdict is
        remembered. May be called from any thread while the model answers.

        Raises:
            InputError: the schema is not valid, not supported or costs too much; with the place.
            MissingDependencyError: the extra ``serve`` is not installed.
        """
        self._engine.check_json_schema(schema)

    def cache_info(self) -> CacheInfo:
        """What is kept of pictures and conversations, and what that spared."""
        return self._engine.cache_info()

    def close(self) -> None:
        """End the stream that is open and free the memory; later requests raise RuntimeLoadError.

        May be called again, and from any thread.
        """
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _image_parts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The parts that are images; what is wrong with the messages is the prompt's to find."""
    found = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and part.get("type") == "image":
                found.append(part)
    return found


def _budget(part: Mapping[str, Any], generation: Generation) -> ImageBudget:
    """What one picture may cost."""
    detail = part.get("detail")
    detail = generation.detail if detail is None else detail
    return ImageBudget(detail, generation.max_image_tokens)
