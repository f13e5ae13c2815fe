"""The questions of `VLM.watch`: for a text, a typed value or a choice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.results import Answer, Choice, collect

if TYPE_CHECKING:
    from edgevlm.engine.model_lock import ChunkStream


class TextQuestion:
    """A question whose answer is a text, or a text that is parsed.

    Args:
        stream: begins an answer; takes the images and ``within``.
        parse: returns the value of an answer.
    """

    def __init__(self, stream: Callable[..., ChunkStream], parse: Callable[[Answer], Any]) -> None:
        self._begin = stream
        self._parse = parse
        self._stream: ChunkStream | None = None
        self._cancelled = False

    def answer(self, image: NDArray[np.uint8], within: float | None) -> tuple[Any, Answer]:
        """Ask about an image; see `FrameQuestion.answer`."""
        self._stream = stream = self._begin([image], within=within)
        if self._cancelled:
            stream.cancel()
        with closing(stream):
            answer = collect(stream)
        return self._parse(answer), answer

    def cancel(self) -> None:
        """Stop the answer, and refuse all later ones."""
        self._cancelled = True
        if self._stream is not None:
            self._stream.cancel()


class ChoiceQuestion:
    """A question whose answer is one of several labels.

    Args:
        choose: chooses; takes the images.
    """

    def __init__(self, choose: Callable[..., Choice]) -> None:
        self._choose = choose

    def answer(self, image: NDArray[np.uint8], within: float | None) -> tuple[str, Choice]:
        """Ask about an image; see `FrameQuestion.answer`."""
        choice = self._choose([image])
        return choice.label, choice

    def cancel(self) -> None:
        """Do nothing: a choice is one short computation."""
