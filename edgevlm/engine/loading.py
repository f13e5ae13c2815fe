"""Load the vision graph and the decoder of a bundle into their runtimes.

Only this module passes data of the manifest to a runtime. Callers choose file, device and threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from edgevlm.engine.costs import Costs
from edgevlm.errors import LoadError
from edgevlm.inputs.packing import max_image_tokens
from edgevlm.manifest import FileEntry, Manifest
from edgevlm.runtimes import system
from edgevlm.runtimes.devices import CPU_BACKEND, VisionBackend
from edgevlm.runtimes.llama_cpp import library
from edgevlm.runtimes.llama_cpp.activations import RecordingDecoder
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import VisionRuntime
from edgevlm.user_cache import user_cache
from edgevlm.versions import installed_versions

RUNTIMES = ("edgevlm", "llama-cpp-python", "onnxruntime", "onnxruntime-gpu", "openvino")
"""Distributions on whose version the costs of a request depend."""

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
    return backend.load(
        path,
        input_name=manifest.vision.input_name,
        output_name=manifest.vision.output_name,
        threads=threads,
    )


def load_decoder(
    manifest: Manifest,
    path: Path,
    *,
    context_length: int | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    kv: str = "f16",
    try_file: bool = True,
) -> LlamaCppDecoder:
    """Load the decoder at `path`; arguments and errors as of `LlamaCppDecoder`.

    Args:
        context_length: None for `default_context_length`.

    Raises:
        LoadError: the manifest numbers positions in a grid, and the decoder has no M-RoPE.
    """
    length = default_context_length(manifest) if context_length is None else context_length
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
    if manifest.decoder.positions == "grid" and not decoder.grid_positions:
        decoder.close()
        raise LoadError(
            f"manifest.decoder.positions is 'grid', but a position of {path} has one number; the files are "
            f"not of one bundle, get it again"
        )
    return decoder


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


def default_gpu_layers(device: str) -> int:
    """Return -1 (all layers) if `device` is not the CPU and llama.cpp was built for a GPU, else 0."""
    offloads = device != "cpu" and library.load_llama_cpp().llama_supports_gpu_offload()
    return -1 if offloads else 0
