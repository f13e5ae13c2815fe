"""A bundle's two halves in their runtimes, told what the manifest says of them.

The only place that hands a manifest's data to a runtime; callers say file, device and threads.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm.manifest import Manifest
from edgevlm.runtimes.devices import ON_CPU, VisionTarget
from edgevlm.runtimes.llama_cpp import library
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import VisionRuntime

TEXT_LENGTH = 1024
"""Positions beside one picture for prompt and answer, in models that attend over the whole prompt."""

CONVERSATION_LENGTH = 4096
"""Room for a conversation of three pictures in 17 tiles; the KV cache of SmolVLM-256M takes 90 MB."""


def open_vision(
    manifest: Manifest,
    path: Path,
    *,
    target: VisionTarget = ON_CPU,
    threads: int | None = None,
) -> VisionRuntime:
    """The vision graph at `path`; errors as of `VisionTarget.open`."""
    return target.open(
        path,
        input_name=manifest.vision.input_name,
        output_name=manifest.vision.output_name,
        threads=threads,
    )


def open_decoder(
    manifest: Manifest,
    path: Path,
    *,
    context_length: int | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
) -> LlamaCppDecoder:
    """The decoder at `path`; arguments and errors as of `LlamaCppDecoder`.

    Args:
        context_length: None for `default_context_length`.
    """
    return LlamaCppDecoder(
        path,
        context_length=default_context_length(manifest)
        if context_length is None
        else context_length,
        threads=threads,
        gpu_layers=gpu_layers,
        bidirectional=manifest.decoder.attention == "prefix",
    )


def default_context_length(manifest: Manifest) -> int:
    """Positions to reserve if nobody says how many; never more than the checkpoint was made for.

    Attention over a whole prompt takes memory by the square of the context, and such models answer one
    question about a picture; the others hold conversations.
    """
    prefix = manifest.decoder.attention == "prefix"
    wanted = manifest.vision.tokens_per_tile + TEXT_LENGTH if prefix else CONVERSATION_LENGTH
    return min(manifest.decoder.context_length, wanted)


def default_gpu_layers(device: str) -> int:
    """All of the decoder's layers (-1) if `device` is no CPU and llama.cpp was built for a GPU, else 0."""
    offloads = device != "cpu" and library.library().llama_supports_gpu_offload()
    return -1 if offloads else 0
