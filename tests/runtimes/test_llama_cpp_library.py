"""What is said of llama.cpp's build and of how it failed."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from edgevlm.runtimes.llama_cpp import library
from edgevlm.runtimes.llama_cpp.library import lacked_memory, recent_errors, why_no_gpu

ERROR = 4
"""GGML_LOG_LEVEL_ERROR."""


def log(text: str) -> None:
    library.library()
    library._callbacks[-1](ERROR, text.encode(), None)


@pytest.mark.parametrize(
    ("offloads", "system", "said"),
    [
        (True, "CUDA : ARCHS = 900 | CPU : AVX2 = 1", None),
        (False, "CPU : SSE3 = 1 | AVX2 = 1", "for the CPU only; CMAKE_ARGS=-DGGML_CUDA=on"),
        (
            False,
            "CUDA : ARCHS = 900 | CPU : AVX2 = 1",
            "for CUDA and finds no GPU; look at the driver",
        ),
        (False, "Vulkan : X = 1 | CPU : AVX2 = 1", "for Vulkan and finds no GPU"),
    ],
)
def test_why_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, offloads: bool, system: str, said: str | None
) -> None:
    build = SimpleNamespace(
        llama_supports_gpu_offload=lambda: offloads,
        llama_print_system_info=lambda: system.encode(),
    )
    monkeypatch.setattr(library, "library", lambda: build)
    assert (why_no_gpu() == "") if said is None else (said in why_no_gpu())


def test_the_installed_library_answers() -> None:
    offloads = library.library().llama_supports_gpu_offload()
    assert bool(why_no_gpu()) != offloads


def test_the_cause_is_said_before_llama_cpp_ends_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log("CUDA error: out of memory\n")
    log("  current device: 0, in function alloc\n")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "llama.cpp ends this process: CUDA error: out of memory"


def test_short_memory_is_told_from_damage() -> None:
    """The lines that llama.cpp wrote where 150 MB were left on a GPU, and at a file cut short."""
    recent_errors.clear()
    log("llama_model_load: error loading model: tensor 'a' data is not within the file bounds\n")
    assert not lacked_memory()
    log("llama_model_load: error loading model: unable to allocate CUDA0 buffer\n")
    assert lacked_memory()
    recent_errors.clear()
