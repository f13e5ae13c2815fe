"""What a prompt says of a video."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoTimes:
    """The times of a video and of its spans."""

    seconds: float
    """Length of the whole video."""
    frames: int
    """Number of frames that the model sees."""
    times: tuple[float, ...]
    """Seconds from the start of the video to each span."""
