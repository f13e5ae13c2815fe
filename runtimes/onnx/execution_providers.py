"""Devices of ONNX Runtime: their execution providers and options.

The authors of edgevlm ran the providers of the CPU and of CUDA (docs/gpu.md); the others were not run. Their
options come from ONNX Runtime's pages on TensorRT, CoreML and QNN. The argument ``providers`` replaces all of
them.
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
"""ONNX Runtime's name of a provider, or its name and options."""

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnnxDevice:
    """The execution provider of a device, and how to configure it."""

    provider: str
    """ONNX Runtime's name of the provider."""
    install_hint: str
    """How to install an ONNX Runtime that has the provider."""
    fallback_providers: tuple[str, ...] = (CPU_PROVIDER,)
    """Providers for the operators that this one lacks."""
    options: tuple[tuple[str, str], ...] = ()
    """Options of the provider."""
    cache_options: tuple[tuple[str, str], ...] = ()
    """Options that are set only if there is a cache folder; ``{folder}`` stands for its path."""
    fixed_shapes: bool = False
    """True if the provider needs known shapes: the batch dimension is fixed to 1, and a graph for tiles of
    any size is refused."""
    ep_context: bool = False
    """True if the provider writes compiled graphs as EPContext models, which load faster the next time."""


ONNX_DEVICES = {
    "cpu": OnnxDevice(CPU_PROVIDER, "pip install 'edgevlm[cpu]'", fallback_providers=()),
    "cuda": OnnxDevice(
        CUDA_PROVIDER,
        "pip uninstall onnxruntime; pip install 'edgevlm[cuda]', with NVIDIA's driver",
    ),
    "tensorrt": OnnxDevice(
        "TensorrtExecutionProvider",
        "pip uninstall onnxruntime; pip install 'edgevlm[cuda]' tensorrt, with NVIDIA's driver",
        fallback_providers=(CUDA_PROVIDER, CPU_PROVIDER),
        cache_options=(  # building an engine takes minutes
            ("trt_engine_cache_enable", "True"),
            ("trt_engine_cache_path", "{folder}"),
            ("trt_timing_cache_enable", "True"),
            ("trt_timing_cache_path", "{folder}"),
        ),
        fixed_shapes=True,
    ),
    "coreml": OnnxDevice(
        "CoreMLExecutionProvider",
        "pip install 'edgevlm[cpu]' on macOS",
        options=(("ModelFormat", "MLProgram"), ("RequireStaticInputShapes", "1")),
        cache_options=(("ModelCacheDirectory", "{folder}"),),
        fixed_shapes=True,
    ),
    "qnn": OnnxDevice(
        "QNNExecutionProvider",
        "pip uninstall onnxruntime; pip install onnxruntime-qnn",
        fixed_shapes=True,
        ep_context=True,
    ),
}
"""The devices that ONNX Runtime can run a vision graph on."""


@dataclass(frozen=True)
class ProviderSelection:
    """The providers of a session."""

    providers: list[Provider]
    """Providers in order of preference."""
    required: list[str]
    """Names of the providers that the session must have."""
    fixed_shapes: bool = False
    """True if the provider needs known shapes; see `OnnxDevice.fixed_shapes`."""
    context_folder: Path | None = None
    """Folder of the first provider's EPContext models; None if it writes none."""


def select_providers(
    device: str, providers: Sequence[Provider] | None, available: Sequence[str]
) -> ProviderSelection:
    """Return the providers for a device, or those that are named.

    Args:
        device: ``auto`` (CUDA, else CPU) or one of `ONNX_DEVICES`.
        providers: providers in order of preference, instead of `device`.
        available: names of the providers that this ONNX Runtime was built with.

    Raises:
        InputError: the device is unknown, or the list of providers is empty.
        LoadError: this ONNX Runtime lacks a provider that was asked for.
    """
    if providers is not None:
        if isinstance(providers, str) or not providers:
            raise InputError(f"providers must be a list of at least one provider, is {providers!r}")
        selection = ProviderSelection(list(providers), [provider_name(one) for one in providers])
    elif device == "auto":
        found: list[Provider] = [one for one in (CUDA_PROVIDER, CPU_PROVIDER) if one in available]
        selection = ProviderSelection(found, [])
    elif device in ONNX_DEVICES:
        asked = ONNX_DEVICES[device]
        fallbacks = [one for one in asked.fallback_providers if one in available]
        folder = _cache_folder(device) if asked.cache_options or asked.ep_context else None
        selection = ProviderSelection(
            [_with_options(asked, folder), *fallbacks],
            [asked.provider],
            asked.fixed_shapes,
            folder if asked.ep_context else None,
        )
    else:
        raise InputError(f"device must be auto, {', '.join(ONNX_DEVICES)}, is {device!r}")
    for one in selection.required:
        if one not in available:
            raise LoadError(
                f"{one} is not in this ONNX Runtime, which has {', '.join(available)}; "
                f"{install_advice(one)}"
            )
    return selection


def _cache_folder(device: str) -> Path | None:
    """Return a device's cache folder; None, after a warning, if it cannot be written to."""
    folder = user_cache(device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write into {folder}")
    except OSError as error:
        _logger.warning(
            "no cache for %s, so every load compiles the graph again: %s", device, error
        )
        return None
    return folder


def _with_options(device: OnnxDevice, folder: Path | None) -> Provider:
    """Return a device's provider with its options.

    Args:
        device: the device.
        folder: the cache folder; None leaves the options of the cache out.
    """
    options = dict(device.options)
    if folder is not None:
        options |= {key: value.format(folder=folder) for key, value in device.cache_options}
    return (device.provider, options) if options else device.provider


def provider_name(provider: Provider) -> str:
    """Return the name of a provider, without its options."""
    return provider if isinstance(provider, str) else provider[0]


def install_advice(provider: str) -> str:
    """Return how to install an ONNX Runtime that has the provider."""
    hints = {device.provider: device.install_hint for device in ONNX_DEVICES.values()}
    hint = hints.get(provider, "see onnxruntime.ai/docs/install")
    return f"install an ONNX Runtime that has it: {hint}"
