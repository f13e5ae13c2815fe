"""The questions of `VLM.watch`: for a text, a typed value or a choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.results import Answer, Choice, Chunk, collect

if TYPE_CHECKING:
    from edgevlm.engine.model_lock import ChunkStream


class TextQuestion:
    """A question whose answer is a text, or a text that is parsed.

    Args:
        stream: begins an answer; takes the images, ``within`` and the signal that cancels it.
        parse: returns the value of an answer.
    """

    def __init__(
        self,
        stream: Callable[[list[NDArray[np.uint8]], float | None, CancelSignal], ChunkStream],
        parse: Callable[[Answer], Any],
    ) -> None:
        self._begin = stream
        self._parse = parse
        self._signal: CancelSignal | None = None
        self._stream: ChunkStream | None = None
        self._cancelled = False
        self.text = ""

    def answer(self, image: NDArray[np.uint8], within: float | None) -> tuple[Any, Answer]:
        """Ask about an image; see `FrameQuestion.answer`."""
        self._signal = signal = CancelSignal()
        if self._cancelled:
            signal.cancel()
        self._stream = stream = self._begin([image], within, signal)
        if self._cancelled:
            stream.cancel()
        try:
            with closing(stream):
                answer = collect(self._note_text(stream))
        finally:
            self.text = ""
        return self._parse(answer), answer

    def _note_text(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self.text += chunk.text
            yield chunk

    def cancel(self) -> None:
        """Stop the answer, also one that waits for the model, and refuse all later ones."""
        self._cancelled = True
        if self._signal is not None:
            self._signal.cancel()
        if self._stream is not None:
            self._stream.cancel()


class ChoiceQuestion:
    """A question whose answer is one of several labels.

    Args:
        choose: chooses; takes the images, ``within`` and the signal that cancels it.
    """

    text = ""

    def __init__(
        self, choose: Callable[[list[NDArray[np.uint8]], float | None, CancelSignal], Choice]
    ) -> None:
        self._choose = choose
        self._signal: CancelSignal | None = None
        self._cancelled = False

    def answer(self, image: NDArray[np.uint8], within: float | None) -> tuple[str, Choice]:
        """Ask about an image; see `FrameQuestion.answer`."""
        self._signal = signal = CancelSignal()
        if self._cancelled:
            signal.cancel()
        choice = self._choose([image], within, signal)
        return choice.label, choice

    def cancel(self) -> None:
        """Stop the choice, also one that waits for the model, and refuse all later ones."""
        self._cancelled = True
        if self._signal is not None:
            self._signal.cancel()
