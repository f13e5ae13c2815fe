"""Devices and the execution providers of ONNX Runtime that drive them.

Of these, the CPU's and CUDA's were run by edgevlm's authors (docs/gpu.md). Options are those of ONNX
Runtime's pages on TensorRT, CoreML and QNN; who knows better passes ``providers=`` and none of them is set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import InputError, LoadError
from edgevlm.user_cache import user_cache

Provider = str | tuple[str, dict[str, Any]]
"""A provider's name as ONNX Runtime spells it, or name and options."""

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """How a device is asked for."""

    provider: str
    install: str
    """What gives an ONNX Runtime that has the provider."""
    beside: tuple[str, ...] = (CPU_PROVIDER,)
    """Providers for the operators that this one does not take."""
    options: tuple[tuple[str, str], ...] = ()
    """Of the provider; ``{cache}`` is a folder that outlives the process."""
    fixed_batch: bool = False
    """It compiles graphs whose shapes are known, and each other shape anew: one tile at a time."""
    context: bool = False
    """It writes what it compiled as a graph of its own, which is opened instead the next time."""


DEVICES = {
    "cpu": Device(CPU_PROVIDER, "pip install 'edgevlm[cpu]'", beside=()),
    "cuda": Device(
        CUDA_PROVIDER,
        "pip uninstall onnxruntime; pip install 'edgevlm[cuda]', with NVIDIA's driver",
    ),
    "tensorrt": Device(
        "TensorrtExecutionProvider",
        "pip uninstall onnxruntime; pip install 'edgevlm[cuda]' tensorrt, with NVIDIA's driver",
        beside=(CUDA_PROVIDER, CPU_PROVIDER),
        options=(  # building an engine takes minutes
            ("trt_engine_cache_enable", "True"),
            ("trt_engine_cache_path", "{cache}"),
            ("trt_timing_cache_enable", "True"),
            ("trt_timing_cache_path", "{cache}"),
        ),
        fixed_batch=True,
    ),
    "coreml": Device(
        "CoreMLExecutionProvider",
        "pip install 'edgevlm[cpu]' on macOS",
        options=(
            ("ModelFormat", "MLProgram"),
            ("RequireStaticInputShapes", "1"),
            ("ModelCacheDirectory", "{cache}"),
        ),
        fixed_batch=True,
    ),
    "qnn": Device(
        "QNNExecutionProvider",
        "pip uninstall onnxruntime; pip install onnxruntime-qnn",
        fixed_batch=True,
        context=True,
    ),
}


@dataclass(frozen=True)
class Selection:
    """What a session is created with."""

    wanted: list[Provider]
    required: list[str]
    """Those that must be there afterwards."""
    fixed_batch: bool = False
    contexts: Path | None = None
    """Folder of graphs that the first provider compiled; None if it writes none."""


def select(
    device: str, providers: Sequence[Provider] | None, available: Sequence[str]
) -> Selection:
    """Providers for a device, or those that are named.

    Args:
        device: ``auto`` (CUDA, else CPU) or one of `DEVICES`.
        available: names of those that this ONNX Runtime was built with.

    Raises:
        InputError: no such device, or no provider.
        LoadError: one that was asked for is not there.
    """
    if providers is not None:
        if isinstance(providers, str) or not providers:
            raise InputError(f"providers must be a list of at least one provider, is {providers!r}")
        selection = Selection(list(providers), [name(one) for one in providers])
    elif device == "auto":
        there: list[Provider] = [one for one in (CUDA_PROVIDER, CPU_PROVIDER) if one in available]
        selection = Selection(there, [])
    elif device in DEVICES:
        asked = DEVICES[device]
        beside = [one for one in asked.beside if one in available]
        cache = _cache(device) if asked.options or asked.context else None
        selection = Selection(
            [_provider(asked, cache), *beside],
            [asked.provider],
            asked.fixed_batch,
            cache if asked.context else None,
        )
    else:
        raise InputError(f"device must be auto, {', '.join(DEVICES)}, is {device!r}")
    for one in selection.required:
        if one not in available:
            raise LoadError(
                f"{one} is not in this ONNX Runtime, which has {', '.join(available)}; {mend(one)}"
            )
    return selection


def _cache(device: str) -> Path | None:
    """The folder where a device keeps what it compiles; None, with a warning, where there can be none."""
    cache = user_cache(device)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK):
            raise PermissionError(f"no permission to write into {cache}")
    except OSError as error:
        _logger.warning("%s keeps nothing that it compiles: %s", device, error)
        return None
    return cache


def _provider(asked: Device, cache: Path | None) -> Provider:
    """A device's provider with its options, those about a cache only if there is one."""
    options = {
        key: value.format(cache=cache)
        for key, value in asked.options
        if cache is not None or "cache" not in key.lower()
    }
    return (asked.provider, options) if options else asked.provider


def name(provider: Provider) -> str:
    """Without options."""
    return provider if isinstance(provider, str) else provider[0]


def mend(provider: str) -> str:
    """What to do if it is not there."""
    mends = {device.provider: device.install for device in DEVICES.values()}
    return f"install one that has it: {mends.get(provider, 'see onnxruntime.ai/docs/install')}"
