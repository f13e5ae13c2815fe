"""Which runtime encodes pictures on which device; the only place that knows them all."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import InputError
from edgevlm.runtimes import cpu, onnx, openvino
from edgevlm.runtimes.base import VisionRuntime

DEVICES = ("auto", *onnx.DEVICES, *openvino.DEVICES)

FLOATS = ("fp16", "fp32")
"""Precisions that devices with 16-bit arithmetic run best."""


@dataclass(frozen=True)
class VisionTarget:
    """A runtime and what to tell it; `open` loads a graph into it."""

    device: str
    providers: Sequence[onnx.Provider] | None
    half_floats: bool
    """It computes 16-bit floats faster than int8."""

    def open(
        self, path: Path, *, input_name: str, output_name: str, threads: int | None
    ) -> VisionRuntime:
        """Load a graph; raises as `OnnxVision` and `OpenVinoVision`."""
        if self.device in openvino.DEVICES and self.providers is None:
            return openvino.OpenVinoVision(
                path,
                input_name=input_name,
                output_name=output_name,
                device=self.device,
                threads=threads,
            )
        return onnx.OnnxVision(
            path,
            input_name=input_name,
            output_name=output_name,
            device=self.device,
            providers=self.providers,
            threads=threads,
        )


def select(
    device: str, providers: Sequence[onnx.Provider] | None, precisions: Collection[str]
) -> VisionTarget:
    """The runtime for a device.

    ``auto`` is CUDA where ONNX Runtime has it; OpenVINO where it is installed, the CPU multiplies bf16
    matrices in hardware (AMX) and there is a graph in floats; else ONNX Runtime on the CPU. On such a
    CPU OpenVINO in bf16 takes half the time of ONNX Runtime in int8; on others int8 wins.

    Args:
        precisions: those of the graphs that may be taken.

    Raises:
        InputError: no such device.
        RuntimeLoadError, MissingDependencyError: as `onnx.first_provider`.
    """
    if providers is None and device not in DEVICES:
        raise InputError(f"device must be one of {', '.join(DEVICES)}, is {device!r}")
    if providers is None and device in openvino.DEVICES:
        return VisionTarget(device, None, device != "openvino" or cpu.multiplies_bf16())
    on_cpu = onnx.first_provider(device, providers) == onnx.CPU_PROVIDER
    if providers is None and device == "auto" and on_cpu and _openvino_is_faster(precisions):
        return VisionTarget("openvino", None, True)
    return VisionTarget(device, providers, not on_cpu)


def usable_devices() -> list[str]:
    """``cpu``, and ``cuda`` and ``openvino`` where they are installed; starting them may still fail."""
    there = [name for name in ("cpu", "cuda") if name in onnx.available_devices()]
    return there + ["openvino"] * _has_openvino()


def _openvino_is_faster(precisions: Collection[str]) -> bool:
    return _has_openvino() and cpu.multiplies_bf16() and any(name in precisions for name in FLOATS)


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None
