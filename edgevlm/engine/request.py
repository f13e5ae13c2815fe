"""One request to the engine, checked and tokenized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.kv_cache import Window
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.prompt import Message, PromptItem
from edgevlm.options import Generation


@dataclass(frozen=True)
class PreparedRequest:
    """A request before its prompt is tokenized."""

    messages: Sequence[Message]
    images: Sequence[ProcessedImage]
    """One for each image part of the messages, in their order."""
    generation: Generation
    watch: Stopwatch
    """Started when the request came."""
    cancel: CancelSignal
    """Stops the work."""


@dataclass(frozen=True)
class Request:
    """A prompt and the settings of its answer."""

    items: Sequence[PromptItem]
    image: ProcessedImage | None
    """The last image of the messages, on which boxes and points of the answer are; None if there is none."""
    generation: Generation
    max_tokens: int
    """Limit of the answer; prompt and answer fit the context together."""
    watch: Stopwatch
    """Started when the request came."""
    cancel: CancelSignal
    """Stops the work."""
    window: Window | None = None
    """As in `KVCache.reuse_prefix`."""
