"""Which runtime encodes pictures on which device; the only place that knows them all."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import InputError, LoadError, MissingDependencyError
from edgevlm.runtimes import openvino, system
from edgevlm.runtimes.onnx import execution_providers, session
from edgevlm.runtimes.onnx.execution_providers import CPU_PROVIDER, Provider
from edgevlm.runtimes.protocols import VisionRuntime

_logger = logging.getLogger(__name__)

DEVICES = ("auto", *execution_providers.DEVICES, *openvino.DEVICES)

FLOATS = ("fp16", "fp32")

INTEGERS = ("int8", "int8-static", "fp32", "fp16")
"""Precisions of graphs as ONNX Runtime runs them best on a CPU; most CPUs compute fp16 slowly."""

HALF_FLOATS = ("fp16", "fp32", "int8-static", "int8")
"""As devices do that compute in 16 bits: GPUs, NPUs, CPUs that multiply bf16 matrices."""

FIXED_INTEGERS = ("int8-static", "fp32", "fp16", "int8")
"""As OpenVINO does on other CPUs, where graphs that take scales as they come are slower than floats."""


@dataclass(frozen=True)
class VisionBackend:
    """A runtime and its settings; `load` loads a graph into it."""

    device: str
    providers: Sequence[Provider] | None
    precisions: tuple[str, ...]
    """Of graphs, in the order in which it runs them best."""
    allow_fallback: bool = False
    """To ONNX Runtime on the CPU, with a warning, if OpenVINO cannot run the graph."""

    def load(
        self, path: Path, *, input_name: str, output_name: str, threads: int | None
    ) -> VisionRuntime:
        """Load a graph; errors as of `OnnxVision` and `OpenVinoVision`."""
        device = self.device
        if device in openvino.DEVICES and self.providers is None:
            try:
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
                    "OpenVINO cannot run the vision graph, ONNX Runtime does: %s", error
                )
                device = "cpu"
        return session.OnnxVision(
            path,
            input_name=input_name,
            output_name=output_name,
            device=device,
            providers=self.providers,
            threads=threads,
        )


ON_CPU = VisionBackend("cpu", None, INTEGERS)
"""ONNX Runtime, whose arithmetic is then the same everywhere."""


def select(
    device: str, providers: Sequence[Provider] | None, precisions: Collection[str]
) -> VisionBackend:
    """The runtime for a device.

    ``auto`` is CUDA where ONNX Runtime has it; OpenVINO where it is installed and the CPU multiplies what
    the best graph for it holds (floats with AMX's bf16, int8 of fixed scales with VNNI); else ONNX Runtime
    on the CPU. ONNX Runtime does not use AMX for floats and gains nothing from fixed scales
    (`benchmarks/comparison.py`); other graphs it runs faster.

    Args:
        precisions: those of the graphs that may be taken.

    Raises:
        InputError: no such device.
        LoadError, MissingDependencyError: as `session.first_provider`.
    """
    if providers is None and device not in DEVICES:
        raise InputError(f"device must be one of {', '.join(DEVICES)}, is {device!r}")
    if providers is None and device in openvino.DEVICES:
        best = HALF_FLOATS if device != "openvino" or system.multiplies_bf16() else FIXED_INTEGERS
        return VisionBackend(device, None, best)
    on_cpu = session.first_provider(device, providers) == CPU_PROVIDER
    if providers is None and device == "auto" and on_cpu and _has_openvino():
        if system.multiplies_bf16() and any(name in FLOATS for name in precisions):
            return VisionBackend("openvino", None, HALF_FLOATS, allow_fallback=True)
        if system.multiplies_int8() and FIXED_INTEGERS[0] in precisions:
            return VisionBackend("openvino", None, FIXED_INTEGERS, allow_fallback=True)
    return VisionBackend(device, providers, INTEGERS if on_cpu else HALF_FLOATS)


def usable_devices() -> list[str]:
    """``cpu``, and ``cuda`` and ``openvino`` where they are installed; starting them may still fail."""
    there = [name for name in ("cpu", "cuda") if name in session.available_devices()]
    return there + ["openvino"] * _has_openvino()


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None
