"""How a video becomes tiles, and where their embeddings stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgevlm.manifest.images import SmartResizeTiling, StretchTiling
from edgevlm.manifest.parsing import require


@dataclass(frozen=True)
class VideoSpec:
    """How the frames of a video are chosen and prepared; implemented in `edgevlm.inputs.video_processor`.

    How a video is written in the prompt is in `edgevlm.manifest.PromptSpec`.
    """

    tiling: StretchTiling | SmartResizeTiling
    """How a frame becomes a tile."""
    frames_per_tile: int
    """Consecutive frames that the vision graph encodes at once, 1 or 2. A tile of two has their channels one
    after the other, ``[height, width, 6]``."""
    area_of: Literal["frame", "video"]
    """What the bounds of the area of a smart-resize tiling hold for: each frame (Qwen2-VL), or all frames
    together (Qwen3-VL). ``frame`` for other tilings."""
    sampling: Literal["inset", "spread", "stride"]
    """Rule by which frames are chosen from a file: `edgevlm.inputs.frame_sampling`."""
    fps: float
    """Frames in a second that are chosen if the caller sets nothing."""
    min_frames: int
    """Fewest frames that are chosen, if the video has so many."""
    max_frames: int
    """Most frames that are chosen if the caller sets nothing."""
    default_max_tokens: int
    """Limit of embeddings of a video whose caller sets no budget."""
    spans: Literal["tiles", "video"]
    """``tiles``: the embeddings of each tile stand in the prompt by themselves. ``video``: those of all tiles
    are one span (Qwen2-VL)."""
    positions_per_second: float | None = None
    """Positions between two tiles that are a second apart, if the span is that of the video (Qwen2.5-VL).
    Null: each tile is one position after the one before (Qwen2-VL)."""

    def check(self) -> None:
        """Check the values."""
        require(
            self.frames_per_tile in (1, 2),
            "frames_per_tile",
            self.frames_per_tile,
            "must be 1 or 2",
        )
        require(self.fps > 0, "fps", self.fps, "must be positive")
        for name in ("min_frames", "default_max_tokens"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(
            self.max_frames >= self.min_frames,
            "max_frames",
            self.max_frames,
            f"must be at least min_frames {self.min_frames}",
        )
        require(
            self.area_of == "frame" or isinstance(self.tiling, SmartResizeTiling),
            "area_of",
            self.area_of,
            'can be "video" only for a smart-resize tiling',
        )
        require(
            self.positions_per_second is None or self.positions_per_second > 0,
            "positions_per_second",
            self.positions_per_second,
            "must be positive or null",
        )
