"""edgevlm: small vision-language models on the machine in front of you.

The public names are imported on first use, so that ``import edgevlm`` stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgevlm import telemetry

if TYPE_CHECKING:
    from edgevlm.bundle import Bundle as Bundle
    from edgevlm.chat import Chat as Chat
    from edgevlm.engine.model_lock import ChunkStream as ChunkStream
    from edgevlm.errors import BundleError as BundleError
    from edgevlm.errors import BusyError as BusyError
    from edgevlm.errors import ContextError as ContextError
    from edgevlm.errors import DriftError as DriftError
    from edgevlm.errors import EdgeVLMError as EdgeVLMError
    from edgevlm.errors import ExportError as ExportError
    from edgevlm.errors import ImageError as ImageError
    from edgevlm.errors import InputError as InputError
    from edgevlm.errors import MissingDependencyError as MissingDependencyError
    from edgevlm.errors import PromptError as PromptError
    from edgevlm.errors import RuntimeLoadError as RuntimeLoadError
    from edgevlm.results import Answer as Answer
    from edgevlm.results import Chunk as Chunk
    from edgevlm.results import Stats as Stats
    from edgevlm.vlm import VLM as VLM

telemetry.disable()

__version__ = "0.1.0"

_HOMES = {
    "VLM": "edgevlm.vlm",
    "Chat": "edgevlm.chat",
    "Bundle": "edgevlm.bundle",
    "Answer": "edgevlm.results",
    "Chunk": "edgevlm.results",
    "ChunkStream": "edgevlm.engine.model_lock",
    "Stats": "edgevlm.results",
    "EdgeVLMError": "edgevlm.errors",
    "InputError": "edgevlm.errors",
    "ImageError": "edgevlm.errors",
    "PromptError": "edgevlm.errors",
    "ContextError": "edgevlm.errors",
    "BundleError": "edgevlm.errors",
    "RuntimeLoadError": "edgevlm.errors",
    "BusyError": "edgevlm.errors",
    "MissingDependencyError": "edgevlm.errors",
    "ExportError": "edgevlm.errors",
    "DriftError": "edgevlm.errors",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgevlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
