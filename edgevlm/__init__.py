"""edgevlm: small vision-language models on the machine in front of you.

The public names are imported on first use, so that ``import edgevlm`` stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgevlm import telemetry

if TYPE_CHECKING:
    from edgevlm.async_stream import AsyncChunkStream as AsyncChunkStream
    from edgevlm.boxes import Box as Box
    from edgevlm.boxes import Point as Point
    from edgevlm.bundle import Bundle as Bundle
    from edgevlm.chat import Chat as Chat
    from edgevlm.chat import Overflow as Overflow
    from edgevlm.engine.model_lock import ChunkStream as ChunkStream
    from edgevlm.errors import AnswerError as AnswerError
    from edgevlm.errors import BackendError as BackendError
    from edgevlm.errors import BundleError as BundleError
    from edgevlm.errors import BusyError as BusyError
    from edgevlm.errors import CancelledError as CancelledError
    from edgevlm.errors import ChatFileError as ChatFileError
    from edgevlm.errors import ClosedError as ClosedError
    from edgevlm.errors import ContextError as ContextError
    from edgevlm.errors import DeadlineError as DeadlineError
    from edgevlm.errors import DriftError as DriftError
    from edgevlm.errors import EdgeVLMError as EdgeVLMError
    from edgevlm.errors import ExportError as ExportError
    from edgevlm.errors import ImageError as ImageError
    from edgevlm.errors import IncompleteAnswerError as IncompleteAnswerError
    from edgevlm.errors import InferenceError as InferenceError
    from edgevlm.errors import InputError as InputError
    from edgevlm.errors import LoadError as LoadError
    from edgevlm.errors import MissingDependencyError as MissingDependencyError
    from edgevlm.errors import PromptError as PromptError
    from edgevlm.errors import SourceError as SourceError
    from edgevlm.errors import StalledError as StalledError
    from edgevlm.frames.find import CameraSource as CameraSource
    from edgevlm.frames.slot import FrameSlot as FrameSlot
    from edgevlm.inputs.images import ImageSource as ImageSource
    from edgevlm.inputs.tiling import Detail as Detail
    from edgevlm.inputs.videos import Video as Video
    from edgevlm.inputs.videos import VideoSource as VideoSource
    from edgevlm.manifest import FileEntry as FileEntry
    from edgevlm.manifest import Manifest as Manifest
    from edgevlm.options import ExtractOptions as ExtractOptions
    from edgevlm.options import Generation as Generation
    from edgevlm.options import GenerationOptions as GenerationOptions
    from edgevlm.results import Answer as Answer
    from edgevlm.results import CacheInfo as CacheInfo
    from edgevlm.results import Choice as Choice
    from edgevlm.results import ChoiceScore as ChoiceScore
    from edgevlm.results import Chunk as Chunk
    from edgevlm.results import Deadline as Deadline
    from edgevlm.results import FinishReason as FinishReason
    from edgevlm.results import Prompt as Prompt
    from edgevlm.results import PromptText as PromptText
    from edgevlm.results import PromptTile as PromptTile
    from edgevlm.results import Stats as Stats
    from edgevlm.results import TokenLogprob as TokenLogprob
    from edgevlm.tool_calls import ToolCall as ToolCall
    from edgevlm.vlm import VLM as VLM
    from edgevlm.watch import Seen as Seen
    from edgevlm.watch import Watch as Watch
    from edgevlm.watch import WatchStats as WatchStats

telemetry.disable()

__version__ = "0.1.0"

_MODULES = {
    "VLM": "edgevlm.vlm",
    "Chat": "edgevlm.chat",
    "Overflow": "edgevlm.chat",
    "CameraSource": "edgevlm.frames.find",
    "FrameSlot": "edgevlm.frames.slot",
    "Seen": "edgevlm.watch",
    "Watch": "edgevlm.watch",
    "WatchStats": "edgevlm.watch",
    "SourceError": "edgevlm.errors",
    "StalledError": "edgevlm.errors",
    "Bundle": "edgevlm.bundle",
    "FileEntry": "edgevlm.manifest",
    "Manifest": "edgevlm.manifest",
    "ExtractOptions": "edgevlm.options",
    "Generation": "edgevlm.options",
    "GenerationOptions": "edgevlm.options",
    "ImageSource": "edgevlm.inputs.images",
    "Video": "edgevlm.inputs.videos",
    "VideoSource": "edgevlm.inputs.videos",
    "Detail": "edgevlm.inputs.tiling",
    "ChunkStream": "edgevlm.engine.model_lock",
    "Box": "edgevlm.boxes",
    "Point": "edgevlm.boxes",
    "AsyncChunkStream": "edgevlm.async_stream",
    "Answer": "edgevlm.results",
    "CacheInfo": "edgevlm.results",
    "Choice": "edgevlm.results",
    "ChoiceScore": "edgevlm.results",
    "Chunk": "edgevlm.results",
    "Deadline": "edgevlm.results",
    "FinishReason": "edgevlm.results",
    "Prompt": "edgevlm.results",
    "PromptText": "edgevlm.results",
    "PromptTile": "edgevlm.results",
    "Stats": "edgevlm.results",
    "TokenLogprob": "edgevlm.results",
    "ToolCall": "edgevlm.tool_calls",
    "EdgeVLMError": "edgevlm.errors",
    "InputError": "edgevlm.errors",
    "ImageError": "edgevlm.errors",
    "PromptError": "edgevlm.errors",
    "ContextError": "edgevlm.errors",
    "BundleError": "edgevlm.errors",
    "BackendError": "edgevlm.errors",
    "LoadError": "edgevlm.errors",
    "InferenceError": "edgevlm.errors",
    "ChatFileError": "edgevlm.errors",
    "ClosedError": "edgevlm.errors",
    "AnswerError": "edgevlm.errors",
    "IncompleteAnswerError": "edgevlm.errors",
    "BusyError": "edgevlm.errors",
    "CancelledError": "edgevlm.errors",
    "DeadlineError": "edgevlm.errors",
    "MissingDependencyError": "edgevlm.errors",
    "ExportError": "edgevlm.errors",
    "DriftError": "edgevlm.errors",
}
"""Public name to the module that defines it."""

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'edgevlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
