"""Messages about llama.cpp's build and its failures."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from edgevlm.runtimes.llama_cpp import library
from edgevlm.runtimes.llama_cpp.library import no_gpu_reason, out_of_memory, recent_errors

ERROR = 4
"""GGML_LOG_LEVEL_ERROR."""


def log(text: str) -> None:
    library.load_llama_cpp()
    library._callbacks[-1](ERROR, text.encode(), None)


@pytest.mark.parametrize(
    ("offloads", "system", "reason"),
    [
        (True, "CUDA : ARCHS = 900 | CPU : AVX2 = 1", None),
        (False, "CPU : SSE3 = 1 | AVX2 = 1", "for the CPU only; CMAKE_ARGS=-DGGML_CUDA=on"),
        (
            False,
            "CUDA : ARCHS = 900 | CPU : AVX2 = 1",
            "for CUDA and finds no GPU; check the driver",
        ),
        (False, "Vulkan : X = 1 | CPU : AVX2 = 1", "for Vulkan and finds no GPU"),
    ],
)
def test_why_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, offloads: bool, system: str, reason: str | None
) -> None:
    build = SimpleNamespace(
        llama_supports_gpu_offload=lambda: offloads,
        llama_print_system_info=lambda: system.encode(),
    )
    monkeypatch.setattr(library, "load_llama_cpp", lambda: build)
    assert (no_gpu_reason() == "") if reason is None else (reason in no_gpu_reason())


def test_the_installed_library_answers() -> None:
    offloads = library.load_llama_cpp().llama_supports_gpu_offload()
    assert bool(no_gpu_reason()) != offloads


def test_the_cause_is_said_before_llama_cpp_ends_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log("CUDA error: out of memory\n")
    log("  current device: 0, in function alloc\n")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "llama.cpp aborts this process: CUDA error: out of memory"


def test_short_memory_is_told_from_damage() -> None:
    """The lines that llama.cpp wrote where 150 MB were left on a GPU, and at a file cut short."""
    recent_errors.clear()
    log("llama_model_load: error loading model: tensor 'a' data is not within the file bounds\n")
    assert not out_of_memory()
    log("llama_model_load: error loading model: unable to allocate CUDA0 buffer\n")
    assert out_of_memory()
    recent_errors.clear()
