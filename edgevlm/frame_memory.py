"""The frames of one source that a model still sees beside the newest one; see ``memory`` of `VLM.watch`."""

from __future__ import annotations

import re
import time
from collections import deque

from edgevlm.engine.kv_cache import Window
from edgevlm.errors import InputError
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.validation import check_integer, check_number

MAX_FRAMES = 10_000


class FrameMemory:
    """The newest frames, so many of them or those of so many seconds.

    Args:
        limit: number of frames, or a text such as ``30s``.

    Raises:
        InputError: it is neither.
    """

    def __init__(self, limit: int | str) -> None:
        self.window = Window()
        """What the KV cache knows of these frames."""
        self._frames: deque[tuple[float, ProcessedImage]] = deque()
        self._count, self._seconds = MAX_FRAMES, None
        if isinstance(limit, str):
            found = re.fullmatch(r"(\d+(?:\.\d+)?) ?s", limit)
            if found is None:
                raise InputError(
                    f"memory must be a number of frames or seconds such as '30s', is {limit!r}"
                )
            self._seconds = check_number("memory in seconds", float(found[1]), 0.0, 1e6)
        else:
            self._count = check_integer("memory", limit, 1, MAX_FRAMES)

    @property
    def frames(self) -> list[ProcessedImage]:
        """The frames, the oldest first."""
        return [frame for _, frame in self._frames]

    def add(self, frame: ProcessedImage) -> None:
        """Add the newest frame, and forget those that are over the limit."""
        now = time.monotonic()
        self._frames.append((now, frame))
        while len(self._frames) > self._count or (
            self._seconds is not None and now - self._frames[0][0] > self._seconds
        ):
            self._frames.popleft()

    def forget_oldest(self) -> bool:
        """Forget the oldest frame; return False if only the newest one is there."""
        if len(self._frames) < 2:
            return False
        self._frames.popleft()
        return True
