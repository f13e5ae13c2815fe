"""What a source of frames is: a camera, a file, a folder, a recording, an iterator or a function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from edgevlm.inputs.images import ImageSource

Pace = Literal["live", "pushed", "timed", "pulled"]
"""How frames come.

- ``live``: by themselves, whether or not anybody reads them, and a lost source may come back;
- ``pushed``: by themselves, and their end is the end;
- ``timed``: each at its time, from a file;
- ``pulled``: the next one when it is asked for.
"""


@dataclass(frozen=True)
class RawFrame:
    """A frame as a source delivers it."""

    image: ImageSource
    time: float | None
    """Seconds on the clock of the source; None if it has none."""
    arrived: float | None = None
    """When it arrived, in seconds of `time.monotonic`; None: it arrives now."""
    dropped: int = 0
    """Frames before this one that the source itself replaced."""


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
