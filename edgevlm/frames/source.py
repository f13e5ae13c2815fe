"""What a source of frames is: a camera, a file, a folder, a recording, an iterator or a function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from edgevlm.inputs.images import ImageSource

Pace = Literal["live", "timed", "pulled"]
"""``live``: frames come by themselves, whether or not anybody reads them, and a lost source may come back;
``timed``: each frame has a time, from a file; ``pulled``: the next frame comes when it is asked for."""


@dataclass(frozen=True)
class RawFrame:
    """A frame as a source delivers it."""

    image: ImageSource
    time: float | None
    """Seconds on the clock of the source; None if it has none."""


class FrameSource(Protocol):
    """A source of frames.

    Its frames come in their order. Each call of `open` begins anew; of a live source with the frames that
    come from now on.
    """

    name: str
    """Name for messages."""
    pace: Pace

    def open(self) -> Iterator[RawFrame]:
        """Open the source, and iterate over its frames. Closing the generator frees the source.

        Raises:
            SourceError: the source cannot be opened or read.
            MissingDependencyError: the library that reads it is not installed.
        """
        ...
