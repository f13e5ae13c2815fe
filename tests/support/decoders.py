"""The tiny Llama in each decoder runtime, for tests of what all of them do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgevlm.runtimes import system
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.onnx.decoder import OnnxDecoder
from edgevlm.runtimes.protocols import DecoderRuntime
from tests.support.tiny_decoder import ExactDecoder
from tests.support.tiny_onnx_decoder import load_onnx_decoder

KINDS = ("llama.cpp", "llama.cpp with flash attention", "ONNX Runtime")
"""Names of the runtimes."""


def load_tiny(kind: str, gguf: Path, folder: Path, **settings: Any) -> DecoderRuntime:
    """Load the tiny Llama.

    Args:
        kind: one of `KINDS`.
        gguf: its GGUF file.
        folder: folder for other files.
        settings: arguments of `LlamaCppDecoder`.
    """
    settings = {"threads": 1, **settings}
    if kind == "ONNX Runtime":
        settings.pop("bidirectional", None)  # any number of entries
        return load_onnx_decoder(folder, **settings)
    if kind == "llama.cpp":
        return ExactDecoder(gguf, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "is_intel", lambda: False)
        return LlamaCppDecoder(gguf, **settings)


def fail_after_decoding(decoder: DecoderRuntime, patch: pytest.MonkeyPatch) -> None:
    """Let the native library of a decoder compute, and then be interrupted."""
    if isinstance(decoder, LlamaCppDecoder):
        owner: Any = decoder._llama
        name = "llama_decode"
    else:
        assert isinstance(decoder, OnnxDecoder) and decoder._graph is not None
        owner, name = decoder._graph, "run"
    compute = getattr(owner, name)

    def interrupted(*arguments: Any) -> None:
        compute(*arguments)
        raise KeyboardInterrupt

    patch.setattr(owner, name, interrupted)
