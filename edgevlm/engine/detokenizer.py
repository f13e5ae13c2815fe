"""Text of an answer from token pieces: whole characters, and stop strings."""

from __future__ import annotations

import codecs


class AnswerText:
    """Text of an answer while token pieces arrive.

    `push` and `finish` return what may be shown: whole characters, without leading white space, and
    nothing that a stop string could still take back.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._started = False
        self._pending = ""
        self.stopped = False
        """A stop string came."""

    def push(self, piece: bytes) -> str:
        """Text that became certain with the UTF-8 bytes `piece`."""
        return self._take(self._decoder.decode(piece), final=False)

    def finish(self) -> str:
        """The rest, once no piece follows."""
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
    """Length of the longest end of `text` that begins `stop`."""
    return next(
        (
            size
            for size in range(min(len(text), len(stop) - 1), 0, -1)
            if text.endswith(stop[:size])
        ),
        0,
    )
