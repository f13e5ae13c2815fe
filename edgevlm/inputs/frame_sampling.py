"""Which frames of a video file a model sees: the rules of transformers' video processors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgevlm.manifest import VideoSpec

SKIPPED_SECONDS = 1
"""Seconds at both ends of a long video that ``inset`` leaves out."""


@dataclass(frozen=True)
class VideoLength:
    """Length of a video."""

    frames: int
    """Number of frames; at least 1."""
    fps: float
    """Frames in a second; positive."""

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.fps


def choose_frames(
    length: VideoLength, spec: VideoSpec, *, frames: int | None = None, fps: float | None = None
) -> list[int]:
    """Return the indices of the frames that a model sees, in ascending order; at least one.

    The rule is that of ``sample_frames`` in transformers:

    - ``inset``: SmolVLM. Frames are spread evenly over the video, without the first and the last second of a
      long one.
    - ``stride``: Qwen2-VL and Qwen2.5-VL. Each frame is the same time after the one before.
    - ``spread``: Qwen3-VL. Frames are spread evenly over the video, from its first to its last.

    Args:
        frames: number of frames; with `fps`, the most frames. None: as many as `fps` asks for.
        fps: frames in a second; None: those of the checkpoint if `frames` is None, too.
    """
    if spec.sampling == "inset":
        return _inset(length, fps or spec.fps, frames or spec.max_frames)
    count = frames if frames is not None and fps is None else None
    if count is None:
        most = min(spec.max_frames if frames is None else frames, length.frames)
        count = _count(length, spec, fps or spec.fps, most)
    if spec.sampling == "stride":
        return _stride(length.frames, count, spec.frames_per_tile)
    chosen = np.linspace(0, length.frames - 1, min(count, length.frames)).round().astype(int)
    return [int(index) for index in chosen]


def _count(length: VideoLength, spec: VideoSpec, fps: float, most: int) -> int:
    """Return the number of frames for a rate."""
    wanted = length.frames / length.fps * fps
    if spec.sampling == "spread":
        wanted = int(wanted)
    else:
        most = max(1, most // spec.frames_per_tile * spec.frames_per_tile)
    count = min(max(wanted, spec.min_frames), most)
    if spec.sampling == "stride":
        count = math.floor(count / spec.frames_per_tile) * spec.frames_per_tile
    return max(1, int(count))


def _stride(total: int, count: int, multiple: int) -> list[int]:
    count = min(total, max(multiple, round(count / multiple) * multiple))
    # PyTorch's arange rounds to float32, which makes whole numbers whole again.
    return [int(index) for index in (np.arange(count) * (total / count)).astype(np.float32)]


def _inset(length: VideoLength, fps: float, most: int) -> list[int]:
    count = max(1, min(round(fps * length.seconds), most))
    first, last = 0, length.frames - 1
    if length.seconds - 2 * SKIPPED_SECONDS > most * fps:
        first = int(SKIPPED_SECONDS * length.fps)
        last = min(int(length.frames - SKIPPED_SECONDS * length.fps), last)
        if first >= last:
            first, last = 0, length.frames - 1
    return [int(index) for index in np.unique(np.linspace(first, last, count, dtype=int))]
