"""llama.cpp's shared library through llama-cpp-python: loaded once, version checked, log redirected."""

from __future__ import annotations

import collections
import ctypes
import functools
import importlib
import logging
import sys
from types import ModuleType
from typing import Any

from edgevlm.errors import LoadError
from edgevlm.runtimes.imports import import_library
from edgevlm.runtimes.llama_cpp.installation import (
    BUILD_WITH_CUDA,
    INSTALL_LLAMA,
    INSTALL_LLAMA_CPP,
    LLAMA_CPP_PYTHON_VERSION,
    REBUILD_LLAMA_CPP,
)

GPU_BACKENDS = ("CUDA", "ROCm", "Vulkan", "SYCL", "MUSA")
"""llama.cpp's GPU backends by the names that ``llama_print_system_info`` prints."""

_logger = logging.getLogger(__name__)
recent_errors: collections.deque[str] = collections.deque(maxlen=3)
"""The last errors that llama.cpp logged. Clear it before a call to explain a failure of that call."""

_callbacks: list[Any] = []
"""References that keep the log callback alive while the library may call it."""


@functools.cache
def load_llama_cpp() -> ModuleType:
    """Return the module ``llama_cpp``, initialized, with its log redirected to `logging` (DEBUG).

    Raises:
        MissingDependencyError: llama-cpp-python is not installed.
        LoadError: the version is not `LLAMA_CPP_PYTHON_VERSION`, or the library cannot be loaded.
    """
    importlib.import_module("numpy.ctypeslib")  # takes milliseconds, which a request may not have
    llama_cpp = import_library(
        "llama_cpp",
        "llama-cpp-python",
        "a decoder in a GGUF file",
        INSTALL_LLAMA,
        REBUILD_LLAMA_CPP,
    )
    if llama_cpp.__version__ != LLAMA_CPP_PYTHON_VERSION:
        raise LoadError(
            f"llama-cpp-python {llama_cpp.__version__} is installed, edgevlm needs exactly "
            f"{LLAMA_CPP_PYTHON_VERSION}; {INSTALL_LLAMA_CPP}"
        )

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes makes it
    def log(level: int, text: bytes, user_data: object) -> None:
        line = text.decode("utf-8", "replace").rstrip()
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            recent_errors.append(line)
            if line.startswith("CUDA error"):
                _logger.error("llama.cpp aborts this process: %s", line)  # its last message
        if line and _logger.isEnabledFor(logging.DEBUG):
            _logger.debug("%s", line)

    _callbacks.append(log)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@functools.cache
def load_strlen() -> Any:
    """Return C's ``strlen`` as an abort callback for llama.cpp.

    llama.cpp calls it after each node of a graph with the address of a C string, and stops if the string is
    not empty. A Python function would wait for the GIL there, up to milliseconds for each node.
    """
    library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    return ctypes.cast(library.strlen, load_llama_cpp().ggml_abort_callback)


def no_gpu_reason() -> str:
    """Return why llama.cpp cannot use a GPU, and the fix; an empty string if it can."""
    llama_cpp = load_llama_cpp()
    if llama_cpp.llama_supports_gpu_offload():
        return ""
    for backend in GPU_BACKENDS:
        if f"{backend} : " in llama_cpp.llama_print_system_info().decode():
            return (
                f"llama.cpp is built for {backend} and finds no GPU; check the driver (nvidia-smi, "
                "rocm-smi), CUDA_VISIBLE_DEVICES and the GPUs of the container"
            )
    return f"this llama.cpp is built for the CPU only; {BUILD_WITH_CUDA}"


def failure_reason() -> str:
    """Return llama.cpp's last errors as the end of a message; empty if there are none."""
    return f": {'; '.join(recent_errors)}" if recent_errors else ""


def out_of_memory() -> bool:
    """Return True if llama.cpp's last errors say that memory, of the machine or a GPU, was short."""
    return any("allocate" in line for line in recent_errors)
