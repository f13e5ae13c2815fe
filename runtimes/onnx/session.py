"""Sessions of ONNX Runtime, on any of its execution providers."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from edgevlm.atomic_file import staged_file
from edgevlm.errors import LoadError
from edgevlm.runtimes import system
from edgevlm.runtimes.imports import import_library
from edgevlm.runtimes.onnx import execution_providers
from edgevlm.runtimes.onnx.execution_providers import ONNX_DEVICES, Provider
from edgevlm.runtimes.vision_checks import (
    check_file,
)
from edgevlm.validation import check_integer

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-directml",
)
"""PyPI distributions that all install the module ``onnxruntime``; the one installed last overwrites it."""

BATCH_DIMENSION = "n"
"""Name of the batch dimension in the graphs that edgevlm exports, unless it is 1."""

_logger = logging.getLogger(__name__)


@functools.cache
def load_onnxruntime() -> ModuleType:
    """Return the module ``onnxruntime``, which then logs errors only.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        LoadError: its shared library cannot be loaded.
    """
    onnxruntime = import_library(
        "onnxruntime",
        "ONNX Runtime",
        "the vision graph",
        "pip install 'edgevlm[cpu]', or 'edgevlm[cuda]' for an NVIDIA GPU",
        "pip install --force-reinstall 'edgevlm[cpu]'",
    )
    onnxruntime.set_default_logger_severity(3)
    if len(distributions := installed_distributions()) > 1:
        _logger.warning(
            "%s are installed together and overwrite each other's files, so providers are missing; "
            "pip uninstall all of them, then install the one that you need",
            " and ".join(distributions),
        )
    return onnxruntime


def installed_distributions() -> list[str]:
    """Return name and version of each installed one of `DISTRIBUTIONS`; more than one is a fault."""
    found = {
        distribution.metadata["Name"].lower(): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }
    return [f"{name} {found[name]}" for name in DISTRIBUTIONS if name in found]


def available_devices() -> list[str]:
    """Return the `ONNX_DEVICES` whose provider this ONNX Runtime has. It may still fail to start."""
    available = load_onnxruntime().get_available_providers()
    return [name for name, device in ONNX_DEVICES.items() if device.provider in available]


def first_provider(device: str, providers: Sequence[Provider] | None) -> str:
    """Return the name of the provider that `OnnxVision` tries first with these arguments.

    Raises:
        InputError: the device is unknown, or the list of providers is empty.
        LoadError: ONNX Runtime lacks a provider that was asked for, or cannot be loaded.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    selection = execution_providers.select_providers(
        device, providers, load_onnxruntime().get_available_providers()
    )
    return execution_providers.provider_name(selection.providers[0])


class SessionOpener:
    """Opens sessions of ONNX Runtime on the providers of a device.

    If ONNX Runtime cannot start a provider, it warns and computes on the CPU. So the providers of a new
    session are checked: one that was asked for must be there; ``auto`` may fall back, with a warning.

    Args:
        device: ``auto`` (CUDA, else CPU) or one of `ONNX_DEVICES`.
        providers: ONNX Runtime's providers in order of preference, instead of `device`.
        threads: CPU threads; None takes one per physical core that this process may use.

    Raises:
        InputError: an argument has the wrong type or is outside its range.
        LoadError: a provider is not available.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(
        self, device: str, providers: Sequence[Provider] | None, threads: int | None
    ) -> None:
        if threads is None:
            threads = system.physical_cores()
        self._threads = check_integer("threads", threads, 1, 512)
        self._selection = execution_providers.select_providers(
            device, providers, load_onnxruntime().get_available_providers()
        )
        self.fixed_shapes = self._selection.fixed_shapes
        """True if the provider needs known shapes."""

    def open(self, path: Path) -> Any:
        """Open a graph.

        Raises:
            LoadError: the file is no graph, or a provider that was asked for did not start.
        """
        selection = self._selection
        options = load_onnxruntime().SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        first = execution_providers.provider_name(selection.providers[0])
        if first == execution_providers.CPU_PROVIDER:
            # Otherwise the second run allocates a second time, as one block, the memory that the first run
            # holds in many: 100 MB for tiles of 512 x 512, and it saves no time.
            options.enable_mem_pattern = False
        # Threads that spin after a run would take the cores from the other runtime.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        check_file(path)
        if selection.fixed_shapes:
            options.add_free_dimension_override_by_name(BATCH_DIMENSION, 1)
        session = self._open(path, options)
        obtained = session.get_providers()
        for provider in selection.required:
            if provider not in obtained:
                raise LoadError(
                    f"{provider} was asked for and did not start (ONNX Runtime got "
                    f"{', '.join(obtained)}); {execution_providers.install_advice(provider)}"
                )
        if first not in obtained:
            _logger.warning("%s did not start, %s runs on %s", first, path.name, obtained[0])
        return session

    def _open(self, path: Path, options: Any) -> Any:
        """Create a session, from the provider's EPContext model if there is one."""
        selection = self._selection
        allow_fallback = not selection.required
        if selection.context_folder is None:
            return self._create_session(
                path, selection.providers, options, allow_fallback=allow_fallback
            )
        compiled = selection.context_folder / f"{_identity(path)}.onnx"
        if compiled.exists():
            try:
                return self._create_session(
                    compiled, selection.providers, options, allow_fallback=allow_fallback
                )
            except LoadError as error:
                _logger.warning("%s; ONNX Runtime compiles the graph again", error)
        with staged_file(compiled) as staged:
            for key, value in (("enable", "1"), ("embed_mode", "1"), ("file_path", str(staged))):
                options.add_session_config_entry(f"ep.context_{key}", value)
            session = self._create_session(
                path, selection.providers, options, allow_fallback=allow_fallback
            )
        return session

    def _create_session(
        self, path: Path, providers: list[Provider], options: Any, *, allow_fallback: bool
    ) -> Any:
        """Create a session with these providers, or with the last of them alone if a fallback is allowed."""
        if execution_providers.CUDA_PROVIDER in map(execution_providers.provider_name, providers):
            _load_cuda()
        try:
            return load_onnxruntime().InferenceSession(
                str(path), options, providers=providers, enable_fallback=False
            )
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            if allow_fallback and len(providers) > 1:
                return self._create_session(path, providers[-1:], options, allow_fallback=False)
            names = ", ".join(map(execution_providers.provider_name, providers))
            raise LoadError(f"ONNX Runtime cannot load {path} with {names}: {error}") from error


def _identity(path: Path) -> str:
    """Return a hash of the file's path, size and time, and of the ONNX Runtime that compiles it."""
    status = path.stat()
    parts = (
        path.resolve(),
        status.st_size,
        status.st_mtime_ns,
        *installed_distributions(),
    )
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


@functools.cache
def _load_cuda() -> None:
    """Load CUDA and cuDNN from pip's folders, where the system's linker does not look.

    ONNX Runtime prints the names of missing libraries; they go to stderr.
    """
    preload = getattr(load_onnxruntime(), "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(sys.stderr):
            preload()
