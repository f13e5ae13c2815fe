"""Load the vision graph and the decoder of a bundle into their runtimes.

Only this module passes data of the manifest to a runtime. Callers choose file, device and threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.engine.costs import Costs
from edgevlm.errors import LoadError
from edgevlm.inputs.packing import max_image_tokens
from edgevlm.manifest import FileEntry, Manifest
from edgevlm.runtimes import system
from edgevlm.runtimes.devices import CPU_BACKEND, VisionBackend
from edgevlm.runtimes.onnx.execution_providers import Provider
from edgevlm.runtimes.protocols import DecoderRuntime, VisionRuntime
from edgevlm.runtimes.questions import QuestionInput
from edgevlm.user_cache import user_cache
from edgevlm.versions import installed_versions

if TYPE_CHECKING:  # imported for a GGUF file only
    from edgevlm.runtimes.llama_cpp.activations import RecordingDecoder

RUNTIMES = ("edgevlm", "llama-cpp-python", "onnxruntime", "onnxruntime-gpu", "openvino")
"""Distributions on whose version the costs of a request depend."""

GRAPH_SUFFIX = ".onnx"
"""Ending of the name of an ONNX graph."""

TEXT_LENGTH = 1024
"""Positions for prompt and answer beside one image."""

CONVERSATION_LENGTH = 4096
"""Positions for a conversation of three images in 17 tiles; the KV cache of SmolVLM-256M takes 90 MB."""


def load_vision(
    manifest: Manifest,
    path: Path,
    *,
    backend: VisionBackend = CPU_BACKEND,
    threads: int | None = None,
) -> VisionRuntime:
    """Load the vision graph at `path`; errors as of `VisionBackend.load`."""
    text = manifest.vision.text_input
    question = None
    if text is not None:
        question = QuestionInput(
            text.input_name, path.with_name(text.tokenizer.name), text.max_tokens
        )
    return backend.load(
        path,
        input_name=manifest.vision.input_name,
        output_name=manifest.vision.output_name,
        threads=threads,
        question=question,
    )


def load_decoder(
    manifest: Manifest,
    path: Path,
    *,
    context_length: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    providers: Sequence[Provider] | None = None,
    gpu_layers: int = 0,
    kv: str = "f16",
    try_file: bool = True,
) -> DecoderRuntime:
    """Load the decoder at `path`: a GGUF file, or an ONNX graph, whose other files are beside it.

    Args:
        context_length: None for `default_context_length`.
        device, providers: of an ONNX graph; as of `OnnxDecoder`.
        gpu_layers, kv, try_file: of a GGUF file; as of `LlamaCppDecoder`.

    Raises:
        LoadError: the manifest numbers positions in a grid, and the decoder has no M-RoPE; cross-attention is
            in the manifest or in the decoder alone; or as of the decoder.
    """
    length = default_context_length(manifest) if context_length is None else context_length
    decoder: DecoderRuntime
    if path.suffix == GRAPH_SUFFIX:
        decoder = _load_graph(manifest, path, length, threads, device, providers)
    else:
        from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder

        decoder = LlamaCppDecoder(
            path,
            context_length=length,
            threads=threads,
            gpu_layers=gpu_layers,
            bidirectional=bidirectional_entries(manifest, length),
            kv=kv,
            splits_text=manifest.prompt.splitting is None,
            try_file=try_file,
        )
    crosses = manifest.decoder.attention == "cross"
    if crosses != decoder.cross_attention:
        decoder.close()
        raise LoadError(
            f"manifest.decoder.attention is {manifest.decoder.attention!r}, and {path} has "
            f"{'no ' if crosses else ''}layers with cross-attention; the files are not of one bundle, get it "
            f"again"
        )
    if manifest.decoder.positions == "grid" and not decoder.grid_positions:
        decoder.close()
        raise LoadError(
            f"manifest.decoder.positions is 'grid', but a position of {path} has one number; the files are "
            f"not of one bundle, get it again"
        )
    return decoder


def _load_graph(
    manifest: Manifest,
    path: Path,
    context_length: int,
    threads: int | None,
    device: str,
    providers: Sequence[Provider] | None,
) -> DecoderRuntime:
    from edgevlm.runtimes.onnx.decoder import OnnxDecoder

    spec = manifest.decoder.onnx
    if spec is None:
        raise LoadError(f"the manifest has no ONNX decoder, so {path} cannot be used")
    layers = spec.layer_embeddings
    return OnnxDecoder(
        path,
        tokenizer=path.with_name(spec.tokenizer.name),
        embeddings=path.with_name(spec.embeddings.name),
        layer_embeddings=None if layers is None else path.with_name(layers.name),
        context_length=context_length,
        window=spec.window,
        device=device,
        providers=providers,
        threads=threads,
    )


def load_costs(
    files: Sequence[FileEntry], devices: Sequence[str], threads: int | None, kv: str
) -> Costs:
    """Load what requests cost with these files and settings on this machine, as far as it was measured."""
    parts = (
        *(file.sha256 for file in files),
        *devices,
        str(system.physical_cores() if threads is None else threads),
        kv,
        system.cpu_model(),
        *map(str, installed_versions(RUNTIMES).items()),
    )
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return Costs(user_cache("costs") / f"{key}.json")


def load_recording_decoder(
    manifest: Manifest, path: Path, *, context_length: int
) -> RecordingDecoder:
    """Load a decoder that this process wrote on the CPU, so that it records its activations."""
    from edgevlm.runtimes.llama_cpp.activations import RecordingDecoder

    return RecordingDecoder(
        path,
        context_length=context_length,
        bidirectional=bidirectional_entries(manifest, context_length),
        try_file=False,
    )


def bidirectional_entries(manifest: Manifest, context_length: int) -> int:
    """Return the most entries of a prompt that attend to each other both ways."""
    entries = {
        "causal": 0,
        "cross": 0,
        "prefix": context_length,
        "images": min(manifest.vision.tokens_per_tile or 0, context_length),
    }
    return entries[manifest.decoder.attention]


def default_context_length(manifest: Manifest) -> int:
    """Return the default context length, never more than the checkpoint was trained for.

    Attention over a whole prompt needs memory that grows with the square of the context, and such models
    answer one question about an image. Other models hold conversations, and at least the largest image.
    """
    image = max_image_tokens(manifest.image, manifest.vision) or 0
    wanted = image + TEXT_LENGTH
    if manifest.decoder.attention != "prefix":
        wanted = max(wanted, CONVERSATION_LENGTH)
    return min(manifest.decoder.context_length, wanted)


def graph_device(device: str) -> str:
    """Return the device of a decoder's graph for that of the vision graph.

    Providers that need known shapes, and OpenVINO's own runtime, run vision graphs only.
    """
    if device in ("auto", "cpu", "cuda"):
        return device
    return "cuda" if device == "tensorrt" else "cpu"


def default_gpu_layers(device: str, decoder: str) -> int:
    """Return -1 (all layers) if `device` is not the CPU and llama.cpp was built for a GPU, else 0.

    Args:
        decoder: name of the decoder's file; 0 for a graph.
    """
    if decoder.endswith(GRAPH_SUFFIX):
        return 0
    from edgevlm.runtimes.llama_cpp import library

    offloads = device != "cpu" and library.load_llama_cpp().llama_supports_gpu_offload()
    return -1 if offloads else 0
