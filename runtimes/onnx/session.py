"""The vision graph in ONNX Runtime, on any of its execution providers.

Asked for a provider that it cannot start, ONNX Runtime warns and computes on the CPU. Here the session is
asked what it got: a device or provider that was named must be there, ``auto`` may fall back and says so.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ClosedError, InferenceError, LoadError
from edgevlm.runtimes import system
from edgevlm.runtimes.forks import check_not_forked, mark_started
from edgevlm.runtimes.imports import import_library
from edgevlm.runtimes.onnx import execution_providers
from edgevlm.runtimes.onnx.execution_providers import DEVICES, Provider, Selection
from edgevlm.runtimes.vision_checks import Port, check_file, check_graph, check_tiles
from edgevlm.validation import check_integer

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-directml",
)
"""PyPI distributions that all install the module ``onnxruntime``; the last installed overwrites."""

BATCH_DIMENSION = "n"
"""Its name in the graphs that edgevlm exports."""

_logger = logging.getLogger(__name__)


@functools.cache
def library() -> ModuleType:
    """The `onnxruntime` module, silent below errors.

    Raises:
        MissingDependencyError: not installed.
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
            "%s are installed together and overwrite each other's files, so that providers are lost; "
            "pip uninstall them all, then install the one you need",
            " and ".join(distributions),
        )
    return onnxruntime


def installed_distributions() -> list[str]:
    """Which of `DISTRIBUTIONS` are installed, with versions; more than one is a defect."""
    found = {
        distribution.metadata["Name"].lower(): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }
    return [f"{name} {found[name]}" for name in DISTRIBUTIONS if name in found]


def available_devices() -> list[str]:
    """Names of `DEVICES` whose provider this ONNX Runtime was built with; starting it may still fail."""
    available = library().get_available_providers()
    return [name for name, device in DEVICES.items() if device.provider in available]


def first_provider(device: str, providers: Sequence[Provider] | None) -> str:
    """The provider that `OnnxVision` tries first with these arguments.

    Raises:
        InputError, LoadError, MissingDependencyError: as `OnnxVision`.
    """
    selection = execution_providers.select(device, providers, library().get_available_providers())
    return execution_providers.name(selection.wanted[0])


class OnnxVision:
    """A vision graph; implements `VisionRuntime`.

    Args:
        path: the ONNX file: uint8 ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``.
        input_name: the graph's only input.
        output_name: the output that holds the embeddings.
        device: ``auto`` (CUDA, else CPU) or one of `DEVICES`.
        providers: ONNX Runtime's providers in order of preference, instead of `device`.
        threads: CPU threads; None takes one per physical core that this process may use.

    Raises:
        InputError: an argument of the wrong type or range.
        LoadError: a file that is no such graph, a provider that is not there, or a process that was
            forked from one that had used a model.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    BATCH_LENGTH = 1
    """Tiles per run. On a CPU more cost memory and win nothing (`benchmarks/settings.py`). On a GPU eight
    together take two thirds of the time, four times the memory, and 20 ms more whenever their number
    changes, as it does in almost every picture (docs/gpu.md)."""

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
        onnxruntime = library()
        selection = execution_providers.select(
            device, providers, onnxruntime.get_available_providers()
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if execution_providers.name(selection.wanted[0]) == execution_providers.CPU_PROVIDER:
            # Else the second run allocates in one piece what the first already holds in many: 100 MB for
            # tiles of 512 x 512, and no time won.
            options.enable_mem_pattern = False
        # Threads that spin for more work after a run would take the cores from the decoder.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        check_file(self._path)
        if selection.fixed_batch:
            options.add_free_dimension_override_by_name(BATCH_DIMENSION, 1)
        mark_started(self, "_session")
        session = self._open(selection, options)
        obtained = session.get_providers()
        for provider in selection.required:
            if provider not in obtained:
                raise LoadError(
                    f"{provider} was asked for and did not start (ONNX Runtime got "
                    f"{', '.join(obtained)}); {execution_providers.mend(provider)}"
                )
        first = execution_providers.name(selection.wanted[0])
        if first not in obtained:
            _logger.warning("%s did not start, the vision graph runs on %s", first, obtained[0])
        self.device: str = obtained[0]
        self.on_cpu = self.device == execution_providers.CPU_PROVIDER
        self._input_name, self._output_name = input_name, output_name
        self._tile_shape = check_graph(
            self._path,
            _ports(session.get_inputs(), selection.fixed_batch),
            _ports(session.get_outputs(), selection.fixed_batch),
            input_name,
            output_name,
        )
        self._session = session

    def _open(self, selection: Selection, options: Any) -> Any:
        """A session; of what the provider compiled before, if it writes that and did."""
        fall_back = not selection.required
        if selection.contexts is None:
            return self._create_session(self._path, selection.wanted, options, fall_back=fall_back)
        kept = selection.contexts / f"{self._identity()}.onnx"
        if kept.exists():
            try:
                return self._create_session(kept, selection.wanted, options, fall_back=fall_back)
            except LoadError as error:
                _logger.warning("%s, compiling anew", error)
        with tempfile.TemporaryDirectory(dir=selection.contexts) as folder:
            aside = Path(folder) / kept.name
            for key, value in (("enable", "1"), ("embed_mode", "1"), ("file_path", str(aside))):
                options.add_session_config_entry(f"ep.context_{key}", value)
            session = self._create_session(
                self._path, selection.wanted, options, fall_back=fall_back
            )
            if aside.exists():
                os.replace(aside, kept)
        return session

    def _identity(self) -> str:
        """Of the file and of the ONNX Runtime that compiles it."""
        status = self._path.stat()
        parts = (
            self._path.resolve(),
            status.st_size,
            status.st_mtime_ns,
            *installed_distributions(),
        )
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]

    def _create_session(
        self, path: Path, wanted: list[Provider], options: Any, *, fall_back: bool
    ) -> Any:
        """A session with all of `wanted`, or with the last of them alone if it may fall back."""
        if execution_providers.CUDA_PROVIDER in map(execution_providers.name, wanted):
            _load_cuda()
        try:
            return library().InferenceSession(
                str(path), options, providers=wanted, enable_fallback=False
            )
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            if fall_back and len(wanted) > 1:
                return self._create_session(path, wanted[-1:], options, fall_back=False)
            names = ", ".join(map(execution_providers.name, wanted))
            raise LoadError(f"ONNX Runtime cannot load {path} with {names}: {error}") from error

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``; n >= 1, any n.

        Raises:
            InputError: another dtype or shape than the graph takes.
            ClosedError: the vision graph was closed.
            InferenceError: ONNX Runtime failed (memory, device).
        """
        check_not_forked()
        if self._session is None:
            raise ClosedError(f"the vision graph {self._path} is closed; create a new one")
        check_tiles(tiles, self._tile_shape)
        runs = []
        for start in range(0, len(tiles), self.BATCH_LENGTH):
            batch = tiles[start : start + self.BATCH_LENGTH]
            try:
                (embeddings,) = self._session.run([self._output_name], {self._input_name: batch})
            except Exception as error:  # see _create_session
                raise InferenceError(f"ONNX Runtime failed in {self._path}: {error}") from error
            runs.append(embeddings)
        return np.concatenate(runs)

    def close(self) -> None:
        """Free the session; every later call raises ClosedError. May be called again."""
        self._session = None


@functools.cache
def _load_cuda() -> None:
    """CUDA and cuDNN as pip installs them, where the system's linker does not look.

    What is missing is said on stderr.
    """
    preload = getattr(library(), "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(sys.stderr):
            preload()


def _ports(values: Sequence[Any], fixed_batch: bool) -> dict[str, Port]:
    """What ONNX Runtime says of a graph's inputs or outputs; a batch that was fixed here is free."""
    kinds = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    ports: dict[str, Port] = {}
    for value in values:
        shape = [side if isinstance(side, int) else None for side in value.shape]
        if fixed_batch:
            shape[:1] = [None]
        ports[value.name] = kinds.get(value.type, value.type), shape
    return ports
