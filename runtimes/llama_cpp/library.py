"""llama.cpp's shared library through llama-cpp-python: loaded once, of the right version, silent."""

from __future__ import annotations

import collections
import ctypes
import functools
import logging
from types import ModuleType
from typing import Any

from edgevlm.errors import LoadError
from edgevlm.runtimes.imports import import_library
from edgevlm.runtimes.llama_cpp.guard import (
    BUILD_WITH_CUDA,
    INSTALL,
    LLAMA_CPP_PYTHON_VERSION,
    REBUILD,
)

GPU_BACKENDS = ("CUDA", "ROCm", "Vulkan", "SYCL", "MUSA")
"""Of llama.cpp, as ``llama_print_system_info`` names those that it was built with."""

_logger = logging.getLogger(__name__)
recent_errors: collections.deque[str] = collections.deque(maxlen=3)
"""What llama.cpp logged as errors last; clear it before a call whose failure is to be explained."""
_callbacks: list[Any] = []
"""Keeps the log callback alive for as long as the library can call it."""


@functools.cache
def library() -> ModuleType:
    """The `llama_cpp` module, of the right version, initialised, its log routed to `logging` (DEBUG).

    Raises:
        MissingDependencyError: llama-cpp-python is not installed.
        LoadError: another version, or its shared library cannot be loaded.
    """
    llama_cpp = import_library("llama_cpp", "llama-cpp-python", "the decoder", INSTALL, REBUILD)
    if llama_cpp.__version__ != LLAMA_CPP_PYTHON_VERSION:
        raise LoadError(
            f"llama-cpp-python {llama_cpp.__version__} is installed, edgevlm needs exactly "
            f"{LLAMA_CPP_PYTHON_VERSION}; {INSTALL}"
        )

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes makes it
    def log(level: int, text: bytes, user_data: object) -> None:
        line = text.decode("utf-8", "replace").rstrip()
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            recent_errors.append(line)
            if line.startswith("CUDA error"):
                _logger.error("llama.cpp ends this process: %s", line)  # and says no more of it
        if line and _logger.isEnabledFor(logging.DEBUG):
            _logger.debug("%s", line)

    _callbacks.append(log)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def why_no_gpu() -> str:
    """What is wrong, and the mend, if llama.cpp can put no layers on a GPU; empty if it can."""
    llama_cpp = library()
    if llama_cpp.llama_supports_gpu_offload():
        return ""
    for backend in GPU_BACKENDS:
        if f"{backend} : " in llama_cpp.llama_print_system_info().decode():
            return (
                f"llama.cpp is built for {backend} and finds no GPU; look at the driver (nvidia-smi, "
                "rocm-smi) and at what CUDA_VISIBLE_DEVICES and the container let this process see"
            )
    return f"this llama.cpp is built for the CPU only; {BUILD_WITH_CUDA}"


def failure_reason() -> str:
    """What llama.cpp logged as errors last, for the end of a message."""
    return f": {'; '.join(recent_errors)}" if recent_errors else ""


def lacked_memory() -> bool:
    """Whether that was memory, of the machine or of a GPU."""
    return any("allocate" in line for line in recent_errors)
