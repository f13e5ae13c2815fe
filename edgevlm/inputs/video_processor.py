"""Videos as the engine takes them: frames as tiles, packed into spans, with the times of the prompt."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.inputs.frame_sampling import choose_frames
from edgevlm.inputs.image_processor import ProcessedImage, hash_pixels
from edgevlm.inputs.packing import plan_video_spans
from edgevlm.inputs.tiling import ImageBudget, Layout, Tiles, smart_resize, split_image
from edgevlm.inputs.tiling.tiles import FILTERS
from edgevlm.inputs.video_times import VideoTimes
from edgevlm.inputs.videos import VideoSource, open_video
from edgevlm.manifest import SmartResizeTiling, StretchTiling, VideoSpec, VisionSpec
from edgevlm.validation import check_integer, check_number

_logger = logging.getLogger("edgevlm")


class VideoProcessor:
    """Chooses the frames of videos and makes tiles of them, as a model was trained to see them.

    Args:
        spec: None for a model that takes no video.
    """

    def __init__(self, spec: VideoSpec | None, vision: VisionSpec) -> None:
        self._spec = spec
        self._vision = vision
        self._shrinks = False

    def process(
        self,
        source: VideoSource,
        budget: ImageBudget,
        *,
        frames: int | None = None,
        fps: float | None = None,
    ) -> ProcessedImage:
        """Load a video, and make tiles of the frames that the model sees.

        Args:
            budget: ``max_tokens`` is a limit for the whole video. ``detail="high"``: no limit but the
                checkpoint's own.
            frames: number of frames; with `fps`, the most frames.
            fps: frames in a second that the model sees of a file; for a list of images, the rate of the list.
                None: the rate of the checkpoint.

        Raises:
            InputError: the model takes no video, an argument is outside its range, or the budget is less than
                one tile.
            ImageError, MissingDependencyError: as of `open_video`, or the model does not take the aspect
                ratio.
        """
        spec = self._spec
        if spec is None:
            raise InputError(
                "this model takes no video; pass frames as several images. If its checkpoint takes videos, "
                "export it again with this edgevlm, without --image-size"
            )
        if frames is not None:
            check_integer("frames", frames, 1, 2**20)
        if fps is not None:
            check_number("fps", fps, 1e-3, 1e3)
        limit, by_default = budget.max_tokens, False
        if limit is None and budget.detail in (None, "auto"):
            limit, by_default = spec.default_max_tokens, True
        with open_video(source, spec.fps if fps is None else float(fps)) as video:
            if video.sampled:
                count = video.length.frames if frames is None else min(frames, video.length.frames)
                indices = spread(range(video.length.frames), count)
            else:
                indices = choose_frames(video.length, spec, frames=frames, fps=fps)
            most = self._max_frames(limit)
            if most is not None and most < len(indices) and not (by_default and frames is not None):
                if by_default:
                    self._warn(f"{most} of {len(indices)} frames")
                indices = spread(indices, most)
            loaded = video.read(indices)
        height, width, _ = loaded[0].shape
        count = math.ceil(len(loaded) / spec.frames_per_tile)
        size = None
        if isinstance(spec.tiling, SmartResizeTiling):
            size = choose_size(len(loaded), height, width, spec, spec.tiling)
            if limit is not None:
                size = self._limit_size(
                    (height, width), size, spec.tiling, count, limit, by_default
                )
        tiles = make_tiles(loaded, spec, size)
        shown_fps = len(indices) / video.length.frames * video.length.fps
        plans = plan_video_spans(count, size, self._vision, spec, shown_fps)
        times = VideoTimes(
            seconds=video.length.seconds,
            frames=len(indices),
            times=span_times([index / video.length.fps for index in indices], len(plans), spec),
        )
        layout = Layout(height, width, tile_sizes=tuple(tile.shape[:2] for tile in tiles))
        keys = tuple(map(hash_pixels, tiles))
        return ProcessedImage(keys, layout, plans, lambda: Tiles(tiles, layout), times)

    def _max_frames(self, limit: int | None) -> int | None:
        """Return the most frames of tiles of one size within a limit of embeddings; None: there is none.

        Raises:
            InputError: the limit is less than one tile.
        """
        tokens = self._vision.tokens_per_tile
        if limit is None or tokens is None:
            return None
        return ImageBudget(max_tokens=limit).max_tiles(tokens)

    def _limit_size(
        self,
        frame: tuple[int, int],
        size: tuple[int, int],
        tiling: SmartResizeTiling,
        tiles: int,
        limit: int,
        by_default: bool,
    ) -> tuple[int, int]:
        """Return the size of tiles within a limit of embeddings of all tiles together.

        Args:
            frame, size: height and width of a frame, and of a tile without the limit.

        Raises:
            InputError: the limit is less than one embedding for each tile.
        """
        tokens, share = size[0] * size[1] // tiling.factor**2, limit // tiles
        if tokens <= share:
            return size
        if not share:
            raise InputError(
                f"max_image_tokens is {limit}, but a video of {tiles} images takes at least {tiles} in this "
                f"model; choose fewer frames"
            )
        if by_default:
            self._warn(f"about {share} of {tokens} embeddings for each of {tiles} images")
        return smart_resize.choose_size(*frame, smart_resize.limit_tokens(tiling, share))

    def _warn(self, what: str) -> None:
        """Log a warning at the first video that the default limit makes smaller than the checkpoint would."""
        if not self._shrinks:
            self._shrinks = True
            _logger.warning(
                "a video is reduced to %s, the default of this model; frames, max_image_tokens or "
                "detail='high' allow more, with a context_length for them",
                what,
            )


def choose_size(
    frames: int, height: int, width: int, spec: VideoSpec, tiling: SmartResizeTiling
) -> tuple[int, int]:
    """Return height and width of the tiles of a video.

    If the bounds are those of the whole video, the formula is that of ``smart_resize`` in transformers'
    ``video_processing_qwen3_vl``.

    Raises:
        ImageError: the model does not take the aspect ratio.
    """
    if spec.area_of == "frame":
        return smart_resize.choose_size(height, width, tiling)
    factor, multiple = tiling.factor, spec.frames_per_tile
    frames = max(frames, multiple)
    size = height, width
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    smart_resize.check_aspect_ratio(height, width, size)
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    area = round(frames / multiple) * multiple * tall * wide
    if area > tiling.max_pixels:
        ratio = math.sqrt(frames * height * width / tiling.max_pixels)
        tall = max(factor, math.floor(height / ratio / factor) * factor)
        wide = max(factor, math.floor(width / ratio / factor) * factor)
    elif area < tiling.min_pixels:
        ratio = math.sqrt(tiling.min_pixels / (frames * height * width))
        tall = math.ceil(height * ratio / factor) * factor
        wide = math.ceil(width * ratio / factor) * factor
    return tall, wide


def make_tiles(
    frames: Sequence[NDArray[np.uint8]], spec: VideoSpec, size: tuple[int, int] | None
) -> tuple[NDArray[np.uint8], ...]:
    """Return the tiles of a video, uint8 ``[height, width, 3 * frames_per_tile]``.

    The last frame is repeated where frames are missing.

    Args:
        size: height and width of a tile; None: the tiling says it.
    """
    step = spec.frames_per_tile
    resized = [resize(frame, spec.tiling, size) for frame in frames]
    resized += resized[-1:] * (-len(resized) % step)
    return tuple(
        np.concatenate(resized[first : first + step], axis=-1)
        for first in range(0, len(resized), step)
    )


def resize(
    frame: NDArray[np.uint8],
    tiling: StretchTiling | SmartResizeTiling,
    size: tuple[int, int] | None,
) -> NDArray[np.uint8]:
    """Resize a frame to a tile; see `make_tiles`."""
    if size is None:
        return split_image(frame, tiling).pixels[0]
    height, width = size
    return np.asarray(Image.fromarray(frame).resize((width, height), FILTERS[tiling.resample]))


def span_times(times: Sequence[float], spans: int, spec: VideoSpec) -> tuple[float, ...]:
    """Return the time of each span in seconds: the mean of its first and its last frame.

    Args:
        times: seconds from the start of the video to each frame.
    """
    padded = [*times, *[times[-1]] * (-len(times) % spec.frames_per_tile)]
    step = len(padded) // spans
    return tuple(
        (padded[first] + padded[first + step - 1]) / 2 for first in range(0, len(padded), step)
    )


def spread(indices: Sequence[int], count: int) -> list[int]:
    """Return so many of the indices, evenly spread from the first to the last."""
    chosen = np.linspace(0, len(indices) - 1, count).round().astype(int)
    return [indices[index] for index in chosen]
