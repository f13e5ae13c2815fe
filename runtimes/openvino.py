"""The vision graph in Intel's OpenVINO: the same ONNX file, on the CPU, GPU or NPU.

OpenVINO keeps compiled graphs in the user's cache folder: the first load of a graph takes seconds, later
loads a fraction of a second.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import ClosedError, InferenceError, LoadError
from edgevlm.runtimes import system
from edgevlm.runtimes.forks import check_not_forked, mark_started
from edgevlm.runtimes.imports import import_library
from edgevlm.runtimes.vision_checks import (
    TensorSpec,
    check_file,
    check_fixed_shapes,
    check_graph,
    check_tiles,
)
from edgevlm.telemetry import without_openvino_reporter
from edgevlm.user_cache import user_cache
from edgevlm.validation import check_integer

OPENVINO_DEVICES = {"openvino": "CPU", "openvino:gpu": "GPU", "openvino:npu": "NPU"}
"""OpenVINO's name of each device."""

INSTALL_OPENVINO = "pip install 'edgevlm[openvino]'"

_logger = logging.getLogger(__name__)


@functools.cache
def load_openvino() -> ModuleType:
    """Return the module ``openvino``, imported without its telemetry.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        LoadError: its shared library cannot be loaded.
    """
    with without_openvino_reporter():
        return import_library(
            "openvino",
            "OpenVINO",
            "device openvino",
            INSTALL_OPENVINO,
            "pip install --force-reinstall 'edgevlm[openvino]'",
        )


class OpenVinoVision:
    """A vision graph in OpenVINO; implements `VisionRuntime`.

    Args:
        path: the ONNX file, from uint8 ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``; n may be
            fixed to 1.
        input_name: the graph's only input.
        output_name: the output that holds the embeddings.
        device: a key of `OPENVINO_DEVICES`.
        threads: CPU threads; None takes one per physical core that this process may use.
        cache: folder for compiled graphs; None takes the user's cache folder.

    Raises:
        InputError: an argument has the wrong type or is outside its range.
        LoadError: the file is not such a graph, or the device is not available.
        ClosedError: this process was forked from one that had used a model.
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
        self._request: Any = None
        threads = system.physical_cores() if threads is None else threads
        check_integer("threads", threads, 1, 512)
        target = OPENVINO_DEVICES[device]
        mark_started(self, "_request")
        core = load_openvino().Core()
        found = {name.partition(".")[0] for name in core.available_devices}
        if target not in found:
            raise LoadError(
                f"device {device} was asked for, but OpenVINO finds only {', '.join(sorted(found))}; "
                "install Intel's driver for it, or use device='openvino'"
            )
        check_file(self._path)
        self.on_cpu = target == "CPU"
        try:
            graph = core.read_model(self._path)
        except RuntimeError as error:
            raise LoadError(f"OpenVINO cannot load {self._path}: {error}") from error
        self._tile_shape = check_graph(
            self._path,
            _tensor_specs(graph.inputs),
            _tensor_specs(graph.outputs),
            input_name,
            output_name,
        )
        precision = ""
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if target == "CPU":
            # Set explicitly, so that OpenVINO computes in the precision that `device` reports. Its bf16
            # kernels for AMX are wrong for some graphs: embeddings of Qwen3-VL were 80 % off (2026.4).
            has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            precision = "bf16" if has_bf16 and not system.has_amx_bf16() else "f32"
            options |= {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
        self.device = f"OpenVINO {target} {precision}".strip()
        if target == "NPU":
            check_fixed_shapes(self._path, self._tile_shape, device)
        (tiles,) = graph.inputs
        self._batch_length = 8 if target == "GPU" and tiles.partial_shape[0].is_dynamic else 1
        if target != "GPU":  # a CPU gains nothing from batches, an NPU takes fixed shapes only
            graph.reshape([1, *(-1 if side is None else side for side in self._tile_shape)])
        compiled = self._compile(core, graph, target, options, cache or user_cache("openvino"))
        self._output = compiled.output(output_name)
        self._request = compiled.create_infer_request()

    def _compile(
        self, core: Any, graph: Any, target: str, options: dict[str, Any], cache: Path
    ) -> Any:
        """Compile the graph for the device, or load it from the cache if it is there and intact."""
        try:
            return core.compile_model(graph, target, options | {"CACHE_DIR": str(cache)})
        except RuntimeError as error:
            _logger.warning(
                "OpenVINO cannot use its cache %s (%s) and compiles without it", cache, error
            )
        try:
            return core.compile_model(graph, target, options)
        except RuntimeError as error:
            raise LoadError(
                f"OpenVINO cannot compile {self._path} for {target}: {error}"
            ) from error

    def encode(
        self,
        tiles: NDArray[np.uint8],
        *,
        question: str = "",
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        """Encode tiles.

        Args:
            tiles: uint8 ``[n, height, width, 3]``, n >= 1.
            question: not read; graphs with an input for it run in ONNX Runtime.
            cancel: stops this call from another thread; None: nothing does.

        Returns:
            float32 ``[n, tokens, width]``.

        Raises:
            InputError: the dtype or the shape is not the graph's.
            CancelledError: `cancel` stopped it. The next call is not affected.
            ClosedError: the vision graph is closed.
            InferenceError: OpenVINO failed (memory, device).
        """
        check_not_forked()
        if self._request is None:
            raise ClosedError(f"the vision graph {self._path} is closed; create a new one")
        check_tiles(tiles, self._tile_shape)
        cancel = cancel or CancelSignal()
        runs = []
        for start in range(0, len(tiles), self._batch_length):
            batch = np.ascontiguousarray(tiles[start : start + self._batch_length])
            with cancel.interrupting(self._request.cancel):
                try:
                    self._run(batch, cancel)
                except RuntimeError as error:
                    cancel.check()
                    raise InferenceError(f"OpenVINO failed in {self._path}: {error}") from error
            # The tensor is a view of OpenVINO's memory, which the next run overwrites.
            runs.append(self._request.get_tensor(self._output).data.copy())
        return np.concatenate(runs)

    def _run(self, batch: NDArray[np.uint8], cancel: CancelSignal) -> None:
        """Run the graph to its end, or stop it: a request that still runs takes no other batch."""
        try:
            self._request.start_async(batch, share_inputs=True)
            cancel.check()  # OpenVINO forgets a cancel before the start
            self._request.wait()
        except BaseException:
            self._request.cancel()
            with contextlib.suppress(RuntimeError):
                self._request.wait()
            raise

    def close(self) -> None:
        """Free the graph. A second call does nothing; every other later call raises ClosedError."""
        self._request = self._output = None


def _tensor_specs(values: Sequence[Any]) -> dict[str, TensorSpec]:
    """Return types and shapes of a graph's inputs or outputs, by name."""
    kinds = {"u8": "uint8", "f32": "float32"}
    found: dict[str, TensorSpec] = {}
    for value in values:
        kind = value.element_type.get_type_name()
        shape = [side.get_length() if side.is_static else None for side in value.partial_shape]
        found |= {name: (kinds.get(kind, kind), shape) for name in value.names}
    return found
