"""Text of an answer from token pieces: whole characters, and stop strings."""

from __future__ import annotations

import codecs


class Detokenizer:
    """Turns token pieces into text, and ends it before a stop string.

    `push` and `finish` return whole characters, without leading white space. Text that may be the beginning
    of a stop string is held back.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._started = False
        self._pending = ""
        self.stopped = False
        """True if a stop string was found."""

    def push(self, piece: bytes) -> str:
        """Add the UTF-8 bytes of a token and return the text that is complete."""
        return self._take(self._decoder.decode(piece), final=False)

    def finish(self) -> str:
        """Return the rest, after the last token."""
        return self._take(self._decoder.decode(b"", final=True), final=True)

    def _take(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        if not self._started:
            text = text.lstrip()
            self._started = bool(text)
        self._pending += text
        found = [
            (at + len(stop), at) for stop in self._stop if (at := self._pending.find(stop)) >= 0
        ]
        if found:
            self.stopped = True
            certain = min(found)[1]  # the one that was complete first, however the pieces fell
        elif final:
            certain = len(self._pending)
        else:
            certain = len(self._pending) - max(
                (_overlap(self._pending, stop) for stop in self._stop), default=0
            )
        shown, self._pending = self._pending[:certain], self._pending[certain:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of `stop`."""
    return next(
        (
            size
            for size in range(min(len(text), len(stop) - 1), 0, -1)
            if text.endswith(stop[:size])
        ),
        0,
    )
