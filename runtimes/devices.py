"""The vision runtime for each device. No other module knows all of them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import InputError, LoadError, MissingDependencyError
from edgevlm.runtimes import openvino, system
from edgevlm.runtimes.onnx import execution_providers, session, vision
from edgevlm.runtimes.onnx.execution_providers import CPU_PROVIDER, Provider
from edgevlm.runtimes.protocols import VisionRuntime
from edgevlm.runtimes.questions import QuestionInput

_logger = logging.getLogger(__name__)

VISION_DEVICES = ("auto", *execution_providers.ONNX_DEVICES, *openvino.OPENVINO_DEVICES)
"""Names of the devices that a vision graph can run on."""

FLOAT_PRECISIONS = ("fp16", "fp32")
"""Precisions of graphs without quantized weights."""

INT8_FIRST = ("int8", "int8-static", "fp32", "fp16", "int4")
"""Precisions in the order of preference of ONNX Runtime on a CPU: most CPUs compute fp16 slowly.

``int8-static``, with fixed scales of activations, is in bundles of earlier versions only."""

FP16_FIRST = ("fp16", "fp32", "int8-static", "int8", "int4")
"""The order of preference of devices that compute in 16 bits: GPUs, NPUs, CPUs with AMX for bf16."""

OPENVINO_INT8_FIRST = ("int8-static", "int8", "fp32", "fp16", "int4")
"""The order of preference of OpenVINO on other CPUs. Bundles that have ``int8-static`` are of earlier
versions, whose ``int8`` OpenVINO computes more slowly."""


@dataclass(frozen=True)
class VisionBackend:
    """A vision runtime and its settings; `load` loads a graph into it."""

    device: str
    """One of `VISION_DEVICES`."""
    providers: Sequence[Provider] | None
    """ONNX Runtime's providers in order of preference, instead of `device`; None if `device` decides."""
    precisions: tuple[str, ...]
    """Precisions of graphs in order of preference."""
    allow_fallback: bool = False
    """True if a graph that OpenVINO cannot run runs in ONNX Runtime on the CPU, with a warning."""

    def load(
        self,
        path: Path,
        *,
        input_name: str,
        output_name: str,
        threads: int | None,
        question: QuestionInput | None = None,
    ) -> VisionRuntime:
        """Load a graph.

        Args:
            path: the ONNX file.
            input_name: name of the graph's input.
            output_name: name of the output that holds the embeddings.
            threads: CPU threads; None takes one per physical core.
            question: the graph's input for the question; None: there is none. OpenVINO takes none.

        Raises:
            InputError: an argument has the wrong type or is outside its range.
            LoadError: the graph or the device cannot be loaded.
            MissingDependencyError: the runtime is not installed.
        """
        device = self.device
        if device in openvino.OPENVINO_DEVICES and self.providers is None:
            try:
                if question is not None:
                    raise LoadError(
                        f"device {device} takes no vision graph that reads the question, as {path} does; "
                        f"choose device='cpu'"
                    )
                return openvino.OpenVinoVision(
                    path,
                    input_name=input_name,
                    output_name=output_name,
                    device=device,
                    threads=threads,
                )
            except (MissingDependencyError, LoadError) as error:
                if not self.allow_fallback:
                    raise
                _logger.warning(
                    "OpenVINO cannot run the vision graph; ONNX Runtime runs it instead: %s", error
                )
                device = "cpu"
        return vision.OnnxVision(
            path,
            input_name=input_name,
            output_name=output_name,
            device=device,
            providers=self.providers,
            threads=threads,
            question=question,
        )


CPU_BACKEND = VisionBackend("cpu", None, INT8_FIRST)
"""ONNX Runtime on the CPU, for results that do not depend on the devices of the machine."""


def select_backend(
    device: str, providers: Sequence[Provider] | None, precisions: Collection[str]
) -> VisionBackend:
    """Return the vision runtime for a device.

    ``auto`` selects CUDA if ONNX Runtime has it. Else it selects OpenVINO if that is installed and the CPU
    has fast instructions for one of the graphs: AMX's bf16 for floats, VNNI for ``int8-static`` of earlier
    versions. Else it selects ONNX Runtime on the CPU. OpenVINO computes ``int8`` in less time
    (`benchmarks/precision/vision.py`), but it takes more memory, takes longer to load, and is slower with
    the ``int8`` of earlier versions. So a user chooses it for ``int8`` by its name.

    Args:
        device: one of `VISION_DEVICES`.
        providers: ONNX Runtime's providers in order of preference, instead of `device`.
        precisions: precisions of the graphs that are available.

    Raises:
        InputError: the device is unknown.
        LoadError: ONNX Runtime lacks the provider of the device, or cannot be loaded.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    if providers is None and device not in VISION_DEVICES:
        raise InputError(f"device must be one of {', '.join(VISION_DEVICES)}, is {device!r}")
    if providers is None and device in openvino.OPENVINO_DEVICES:
        best = FP16_FIRST if device != "openvino" or system.has_amx_bf16() else OPENVINO_INT8_FIRST
        return VisionBackend(device, None, best)
    on_cpu = session.first_provider(device, providers) == CPU_PROVIDER
    if providers is None and device == "auto" and on_cpu and _has_openvino():
        if system.has_amx_bf16() and any(name in FLOAT_PRECISIONS for name in precisions):
            return VisionBackend("openvino", None, FP16_FIRST, allow_fallback=True)
        if system.has_vnni() and "int8-static" in precisions:
            return VisionBackend("openvino", None, OPENVINO_INT8_FIRST, allow_fallback=True)
    return VisionBackend(device, providers, INT8_FIRST if on_cpu else FP16_FIRST)


def usable_devices() -> list[str]:
    """Return ``cpu``, and ``cuda`` and ``openvino`` if they are installed. They may still fail to start."""
    installed = [name for name in ("cpu", "cuda") if name in session.available_devices()]
    return installed + ["openvino"] * _has_openvino()


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None
