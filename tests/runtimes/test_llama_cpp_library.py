"""Messages about llama.cpp's build and its failures."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
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


def test_says_what_installs_llama_cpp(tiny_file: Path) -> None:
    """In a new process, which imports all parts but the library."""
    script = (
        "import sys; from pathlib import Path\n"
        "sys.modules['llama_cpp'] = None\n"
        "from edgevlm.errors import MissingDependencyError\n"
        "from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder\n"
        "from edgevlm.runtimes.llama_cpp.library import load_llama_cpp\n"
        "for load in (lambda: LlamaCppDecoder(sys.argv[1], context_length=8), load_llama_cpp):\n"
        "    try: load()\n"
        "    except MissingDependencyError as error: print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tiny_file)], capture_output=True, text=True, check=True
    )
    message = "a decoder in a GGUF file needs llama-cpp-python; pip install 'edgevlm[llama]'"
    assert ended.stdout.splitlines() == [message, message]
