"""The vision graph in ONNX Runtime, on any of its execution providers.

If ONNX Runtime cannot start a provider, it warns and computes on the CPU. So this module checks the providers
of the new session: one that was asked for must be there; ``auto`` may fall back, with a warning.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.atomic_file import staged_file
from edgevlm.cancellation import CancelSignal
from edgevlm.errors import ClosedError, InferenceError, LoadError
from edgevlm.runtimes import system
from edgevlm.runtimes.forks import check_not_forked, mark_started
from edgevlm.runtimes.imports import import_library
from edgevlm.runtimes.onnx import execution_providers
from edgevlm.runtimes.onnx.execution_providers import ONNX_DEVICES, Provider, ProviderSelection
from edgevlm.runtimes.vision_checks import (
    TensorSpec,
    check_file,
    check_fixed_shapes,
    check_graph,
    check_tiles,
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


class OnnxVision:
    """A vision graph in ONNX Runtime; implements `VisionRuntime`.

    Args:
        path: the ONNX file, from uint8 ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``; n may be
            fixed to 1.
        input_name: the graph's only input.
        output_name: the output that holds the embeddings.
        device: ``auto`` (CUDA, else CPU) or one of `ONNX_DEVICES`.
        providers: ONNX Runtime's providers in order of preference, instead of `device`.
        threads: CPU threads; None takes one per physical core that this process may use.

    Raises:
        InputError: an argument has the wrong type or is outside its range.
        LoadError: the file is not such a graph, or a provider is not available.
        ClosedError: this process was forked from one that had used a model.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    BATCH_SIZE = 1
    """Tiles per run. On a CPU a larger batch costs memory and saves no time (`benchmarks/settings.py`). On a
    GPU a batch of 8 takes two thirds of the time and four times the memory, and each change of the batch
    size, which almost every image brings, costs 20 ms (docs/gpu.md)."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        input_name: str,
        output_name: str,
        device: str = "auto",
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
    ) -> None:
        check_not_forked()
        self._path = Path(path)
        self._session: Any = None
        if threads is None:
            threads = system.physical_cores()
        check_integer("threads", threads, 1, 512)
        onnxruntime = load_onnxruntime()
        selection = execution_providers.select_providers(
            device, providers, onnxruntime.get_available_providers()
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if (
            execution_providers.provider_name(selection.providers[0])
            == execution_providers.CPU_PROVIDER
        ):
            # Otherwise the second run allocates a second time, as one block, the memory that the first run
            # holds in many: 100 MB for tiles of 512 x 512, and it saves no time.
            options.enable_mem_pattern = False
        # Threads that spin after a run would take the cores from the decoder.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        check_file(self._path)
        if selection.fixed_shapes:
            options.add_free_dimension_override_by_name(BATCH_DIMENSION, 1)
        mark_started(self, "_session")
        session = self._open(selection, options)
        obtained = session.get_providers()
        for provider in selection.required:
            if provider not in obtained:
                raise LoadError(
                    f"{provider} was asked for and did not start (ONNX Runtime got "
                    f"{', '.join(obtained)}); {execution_providers.install_advice(provider)}"
                )
        first = execution_providers.provider_name(selection.providers[0])
        if first not in obtained:
            _logger.warning("%s did not start, the vision graph runs on %s", first, obtained[0])
        self.device: str = obtained[0]
        self.on_cpu = self.device == execution_providers.CPU_PROVIDER
        self._input_name, self._output_name = input_name, output_name
        self._tile_shape = check_graph(
            self._path,
            _tensor_specs(session.get_inputs()),
            _tensor_specs(session.get_outputs()),
            input_name,
            output_name,
        )
        if selection.fixed_shapes:
            check_fixed_shapes(self._path, self._tile_shape, device)
        self._session = session

    def _open(self, selection: ProviderSelection, options: Any) -> Any:
        """Create a session, from the provider's EPContext model if there is one."""
        allow_fallback = not selection.required
        if selection.context_folder is None:
            return self._create_session(
                self._path, selection.providers, options, allow_fallback=allow_fallback
            )
        compiled = selection.context_folder / f"{self._identity()}.onnx"
        if compiled.exists():
            try:
                return self._create_session(
                    compiled, selection.providers, options, allow_fallback=allow_fallback
                )
            except LoadError as error:
                _logger.warning("%s; ONNX Runtime compiles the graph again", error)
        with staged_file(compiled) as path:
            for key, value in (("enable", "1"), ("embed_mode", "1"), ("file_path", str(path))):
                options.add_session_config_entry(f"ep.context_{key}", value)
            session = self._create_session(
                self._path, selection.providers, options, allow_fallback=allow_fallback
            )
        return session

    def _identity(self) -> str:
        """Return a hash of the file's path, size and time, and of the ONNX Runtime that compiles it."""
        status = self._path.stat()
        parts = (
            self._path.resolve(),
            status.st_size,
            status.st_mtime_ns,
            *installed_distributions(),
        )
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]

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

    def encode(
        self, tiles: NDArray[np.uint8], *, cancel: CancelSignal | None = None
    ) -> NDArray[np.float32]:
        """Encode tiles.

        Args:
            tiles: uint8 ``[n, height, width, 3]``, n >= 1.
            cancel: stops this call from another thread, between two nodes of the graph; None: nothing does.

        Returns:
            float32 ``[n, tokens, width]``.

        Raises:
            InputError: the dtype or the shape is not the graph's.
            CancelledError: `cancel` stopped it. The next call is not affected.
            ClosedError: the vision graph is closed.
            InferenceError: ONNX Runtime failed (memory, device).
        """
        check_not_forked()
        if self._session is None:
            raise ClosedError(f"the vision graph {self._path} is closed; create a new one")
        check_tiles(tiles, self._tile_shape)
        cancel = cancel or CancelSignal()
        runs = []
        for start in range(0, len(tiles), self.BATCH_SIZE):
            runs.append(self._run(tiles[start : start + self.BATCH_SIZE], cancel))
        return np.concatenate(runs)

    def _run(self, batch: NDArray[np.uint8], cancel: CancelSignal) -> NDArray[np.float32]:
        options = (
            load_onnxruntime().RunOptions()
        )  # of this run alone, so `terminate` stops no other
        with cancel.interrupting(functools.partial(setattr, options, "terminate", True)):
            try:
                embeddings: NDArray[np.float32]
                (embeddings,) = self._session.run(
                    [self._output_name], {self._input_name: batch}, options
                )
            except Exception as error:  # see _create_session
                cancel.check()
                raise InferenceError(f"ONNX Runtime failed in {self._path}: {error}") from error
        return embeddings

    def close(self) -> None:
        """Free the session. A second call does nothing; every other later call raises ClosedError."""
        self._session = None


@functools.cache
def _load_cuda() -> None:
    """Load CUDA and cuDNN from pip's folders, where the system's linker does not look.

    ONNX Runtime prints the names of missing libraries; they go to stderr.
    """
    preload = getattr(load_onnxruntime(), "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(sys.stderr):
            preload()


def _tensor_specs(values: Sequence[Any]) -> dict[str, TensorSpec]:
    """Return types and shapes of a graph's inputs or outputs, by name."""
    kinds = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    specs: dict[str, TensorSpec] = {}
    for value in values:
        shape = [side if isinstance(side, int) else None for side in value.shape]
        specs[value.name] = kinds.get(value.type, value.type), shape
    return specs
