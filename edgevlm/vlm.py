"""The class `VLM`: load a bundle, ask about images, stream, hold conversations, encode."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle import DEFAULT_MODEL, Bundle, DecoderRuntimeName
from edgevlm.chat import Chat, Overflow, load_chat
from edgevlm.chat_file import ModelFiles
from edgevlm.engine.engine import Engine
from edgevlm.engine.model_lock import MAX_WAIT_SECONDS, WAIT_SECONDS
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import InputError
from edgevlm.inputs.images import ImageSource, load_image
from edgevlm.inputs.tiling import Detail, ImageBudget
from edgevlm.manifest import FileEntry, Manifest
from edgevlm.options import KV_TYPES, Generation, GenerationOptions, KVType
from edgevlm.results import CacheInfo, Prompt
from edgevlm.validation import check_number
from edgevlm.watching import Watching

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class VLM(Watching):
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
        decoder_runtime: DecoderRuntimeName = "auto",
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
            decoder: type of the decoder, such as ``q8_0`` (llama.cpp) or ``int8`` (ONNX); None: the
                preferred one of the bundle.
            decoder_runtime: ``llama.cpp`` or ``onnx``; ``auto``: that of `decoder`, or llama.cpp if the
                bundle has a file for it and it is installed, or else ONNX Runtime.
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
        decoder_file = bundle.decoder_file(decoder, decoder_runtime)
        needed = manifest.decoder.needed(decoder_file)
        in_onnx = len(needed) > 1
        precisions = manifest.vision.files if vision is None else (vision,)
        backend = select_backend(device, providers, precisions)
        vision_file = bundle.vision_file(vision, backend.precisions)
        step(0.1, f"checking {vision_file.name} and {decoder_file.name}")
        bundle.check_hashes_once([*manifest.vision.needed(vision_file), *needed])
        step(0.4, f"loading {vision_file.name} and {decoder_file.name}")
        if in_onnx and (gpu_layers is not None or kv != KV_TYPES[0]):
            raise InputError(
                f"gpu_layers and kv are settings of llama.cpp, and {decoder_file.name} runs in ONNX Runtime; "
                f"leave them out, or set decoder_runtime='llama.cpp'"
            )
        if gpu_layers is None:
            gpu_layers = loading.default_gpu_layers(device, decoder_file.name)
        with ThreadPoolExecutor(1, "edgevlm-load") as thread:
            loaded = thread.submit(
                loading.load_vision,
                manifest,
                bundle.path(vision_file),
                backend=backend,
                threads=threads,
            )
            decoder_loaded = loading.load_decoder(
                manifest,
                bundle.path(decoder_file),
                context_length=context_length,
                threads=threads,
                device=loading.graph_device(device),
                providers=providers,
                gpu_layers=gpu_layers,
                kv=kv,
            )
            vision_runtime = loaded.result()
        system.return_freed_memory()  # of the buffers that the files were read into
        watch.lap("prepare")
        devices = vision_runtime.device, decoder_loaded.device
        costs = loading.load_costs((vision_file, decoder_file), devices, threads, kv)
        engine = Engine(
            manifest, vision_runtime, decoder_loaded, watch.total_ms, wait_timeout, costs
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
        """The device that the decoder runs on, as its runtime names it."""
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

        Of a model whose embeddings depend on the question (InstructBLIP), those for an empty one.

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
