"""The vision graph in Intel's OpenVINO: the same ONNX file, on the CPU, GPU or NPU.

What OpenVINO compiles for a device is kept in the user's cache folder: the first load of a graph takes
seconds, later ones a fraction.
"""

from __future__ import annotations

import functools
import logging
import os
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
from edgevlm.runtimes.vision_checks import Port, check_file, check_graph, check_tiles
from edgevlm.telemetry import without_openvino_reporter
from edgevlm.user_cache import user_cache
from edgevlm.validation import check_integer

DEVICES = {"openvino": "CPU", "openvino:gpu": "GPU", "openvino:npu": "NPU"}
"""Device as edgevlm and as OpenVINO names it."""

INSTALL = "pip install 'edgevlm[openvino]'"

_logger = logging.getLogger(__name__)


@functools.cache
def library() -> ModuleType:
    """The `openvino` module.

    Raises:
        MissingDependencyError: not installed.
        LoadError: its shared library cannot be loaded.
    """
    with without_openvino_reporter():
        return import_library(
            "openvino",
            "OpenVINO",
            "device openvino",
            INSTALL,
            "pip install --force-reinstall 'edgevlm[openvino]'",
        )


class OpenVinoVision:
    """A vision graph; implements `VisionRuntime`.

    Args:
        path: the ONNX file: uint8 ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``.
        input_name: the graph's only input.
        output_name: the output that holds the embeddings.
        device: one of `DEVICES`.
        threads: CPU threads; None takes one per physical core that this process may use.
        cache: folder for compiled graphs; None is the user's.

    Raises:
        InputError: an argument of the wrong type or range.
        LoadError: a file that is no such graph, a device that is not there, or a process that was
            forked from one that had used a model.
        MissingDependencyError: OpenVINO is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        input_name: str,
        output_name: str,
        device: str = "openvino",
        threads: int | None = None,
        cache: Path | None = None,
    ) -> None:
        check_not_forked()
        self._path = Path(path)
        self._compiled: Any = None
        threads = system.physical_cores() if threads is None else threads
        check_integer("threads", threads, 1, 512)
        target = DEVICES[device]
        mark_started(self, "_compiled")
        core = library().Core()
        there = {name.partition(".")[0] for name in core.available_devices}
        if target not in there:
            raise LoadError(
                f"device {device} was asked for, but OpenVINO finds only {', '.join(sorted(there))} here; "
                "install Intel's driver for it, or take device='openvino'"
            )
        check_file(self._path)
        precision = ""
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if target == "CPU":
            # Said aloud, so that what `device` reports is what is computed.
            halves = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            precision = "bf16" if halves else "f32"
            options |= {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
        self.device = f"OpenVINO {target} {precision}".strip()
        self.on_cpu = target == "CPU"
        try:
            graph = core.read_model(self._path)
        except RuntimeError as error:
            raise LoadError(f"OpenVINO cannot load {self._path}: {error}") from error
        self._tile_shape = check_graph(
            self._path, _ports(graph.inputs), _ports(graph.outputs), input_name, output_name
        )
        self._batch_length = 8 if target == "GPU" else 1
        if target != "GPU":  # a CPU gains nothing from batches, an NPU takes fixed shapes only
            graph.reshape([1, *self._tile_shape])
        self._compiled = self._compile(
            core, graph, target, options, cache or user_cache("openvino")
        )
        self._output = self._compiled.output(output_name)

    def _compile(
        self, core: Any, graph: Any, target: str, options: dict[str, Any], cache: Path
    ) -> Any:
        """The graph for the device, from the cache if it is there and whole."""
        try:
            return core.compile_model(graph, target, options | {"CACHE_DIR": str(cache)})
        except RuntimeError as error:
            _logger.warning("OpenVINO's cache %s cannot be used (%s), compiling anew", cache, error)
        try:
            return core.compile_model(graph, target, options)
        except RuntimeError as error:
            raise LoadError(
                f"OpenVINO cannot compile {self._path} for {target}: {error}"
            ) from error

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``; n >= 1, any n.

        Raises:
            InputError: another dtype or shape than the graph takes.
            ClosedError: the vision graph was closed.
            InferenceError: OpenVINO failed (memory, device).
        """
        check_not_forked()
        if self._compiled is None:
            raise ClosedError(f"the vision graph {self._path} is closed; create a new one")
        check_tiles(tiles, self._tile_shape)
        runs = []
        for start in range(0, len(tiles), self._batch_length):
            batch = np.ascontiguousarray(tiles[start : start + self._batch_length])
            try:
                # The result is OpenVINO's own memory, which the next run overwrites.
                runs.append(self._compiled(batch)[self._output].copy())
            except RuntimeError as error:
                raise InferenceError(f"OpenVINO failed in {self._path}: {error}") from error
        return np.concatenate(runs)

    def close(self) -> None:
        """Free the graph; every later call raises ClosedError. May be called again."""
        self._compiled = self._output = None


def _ports(values: Sequence[Any]) -> dict[str, Port]:
    """What OpenVINO says of a graph's inputs or outputs."""
    kinds = {"u8": "uint8", "f32": "float32"}
    found: dict[str, Port] = {}
    for value in values:
        kind = value.element_type.get_type_name()
        shape = [side.get_length() if side.is_static else None for side in value.partial_shape]
        found |= {name: (kinds.get(kind, kind), shape) for name in value.names}
    return found
