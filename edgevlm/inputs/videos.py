"""Load the frames of a video: from a file by PyAV, or from images.

Only the frames that the model sees are kept. Nothing is fetched from the network: PyAV reads an open file,
and formats that name further files, such as playlists, are refused.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ImageError, InputError, MissingDependencyError, PromptError
from edgevlm.inputs.frame_sampling import VideoLength
from edgevlm.inputs.image_sources import is_bytes_like, is_file_object, open_source, type_name
from edgevlm.inputs.images import ImageSource, is_array, load_image
from edgevlm.inputs.pixels import MAX_PIXELS

if TYPE_CHECKING:
    import av.container

VideoSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Iterable[ImageSource]
)
"""One video, as one of these types:

- the path of a file, in which ``~`` is the home folder, or a ``file://`` URL;
- the bytes of a file, or a binary file object;
- an iterable of images, each an `ImageSource`, all of one size: the frames in their order; or an array
  ``[frames, height, width, 3]``.
"""

PLAYLISTS = frozenset({"hls", "dash", "concat", "imf", "image2", "webvtt", "sdp", "rtsp"})
"""Formats of FFmpeg whose files name other files or addresses."""
MAX_IMAGES = 10_000
"""Most images of a video, so that an iterable without an end is an error."""
MAX_FRAMES = 1 << 20
"""Most frames of a file; 4 hours at 60 in a second are 864,000."""


@dataclass(frozen=True)
class Video:
    """A video in place of images, for the methods of `VLM`; the model sees several frames of it."""

    source: VideoSource
    frames: int | None = None
    """Number of frames, evenly spread; with `fps`, the most frames. None: as many as `fps` asks for, and not
    more than the model's default."""
    fps: float | None = None
    """Frames of a file that the model sees in a second; for a list of images, how many there are in a second.
    None: the rate of the checkpoint."""


class OpenVideo(Protocol):
    """An open video."""

    length: VideoLength
    """Length of the video."""
    sampled: bool
    """True if its frames were chosen already: images that the caller passed."""

    def read(self, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return frames, RGB uint8 ``[height, width, 3]``, all of one size.

        Args:
            indices: indices of the frames, in ascending order.

        Raises:
            ImageError: a frame cannot be read, or frames differ in size.
        """
        ...


@contextlib.contextmanager
def open_video(source: VideoSource, fps: float) -> Iterator[OpenVideo]:
    """Open a video.

    Args:
        fps: images in a second; a file has its own rate.

    Raises:
        ImageError: the file does not exist or is not a video.
        InputError: there is no image, or there are too many.
        MissingDependencyError: the source is a file, and PyAV is not installed.
    """
    array = is_array(source)
    if not array and (
        isinstance(source, str | os.PathLike) or is_bytes_like(source) or is_file_object(source)
    ):
        with open_source(source, "video") as (file, name):
            yield VideoFile(file, name)
        return
    if isinstance(source, Mapping | Set) or not isinstance(source, Iterable):
        raise ImageError(
            f"a video must be a path, bytes, a binary file or a list of images, is {type_name(source)}"
        )
    shape = getattr(source, "shape", ())
    if array and len(shape) != 4:
        raise ImageError(
            f"an array of frames must have the shape [frames, height, width, 3], has {list(shape)}"
        )
    images = list(itertools.islice(cast("Iterable[ImageSource]", source), MAX_IMAGES + 1))
    if len(images) > MAX_IMAGES:
        raise InputError(
            f"the video has more than {MAX_IMAGES:,} images; pass fewer, a model sees some hundreds at most"
        )
    if not images:
        raise InputError("the video has no frame; pass at least one image")
    yield VideoImages(images, fps)


def load_video_part(part: Mapping[str, Any]) -> VideoSource:
    """Return the video of a content part, which has the keys that transformers defines.

    Args:
        part: has one of the keys ``video`` (any `VideoSource`), ``path`` and ``url`` (a ``file://`` URL).

    Raises:
        PromptError: the part has none of these keys, or several.
    """
    keys = [key for key in ("video", "path", "url") if part.get(key) is not None]
    if len(keys) != 1:
        found = " and ".join(map(repr, keys)) or "none of them"
        raise PromptError(
            f"a video part needs its video under 'video', 'path' or 'url', has {found}"
        )
    return cast("VideoSource", part[keys[0]])


class VideoImages:
    """A video whose frames are images; see `Video`.

    Args:
        images: the frames.
        fps: frames in a second.
    """

    sampled = True

    def __init__(self, images: Sequence[ImageSource], fps: float) -> None:
        self._images = images
        self.length = VideoLength(len(images), fps)

    def read(self, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Load frames; see `Video.read`."""
        frames = [load_image(self._images[index]) for index in indices]
        sizes = sorted({frame.shape[:2] for frame in frames})
        if len(sizes) > 1:
            shown = " and ".join(f"{width} x {height}" for height, width in sizes[:2])
            raise ImageError(f"the frames of a video must have one size, have {shown} pixels")
        return frames


class VideoFile:
    """A video file, decoded by PyAV; see `Video`.

    Args:
        file: the open file.
        name: its name for messages.

    Raises:
        ImageError: the file is not a video.
        MissingDependencyError: PyAV is not installed.
    """

    sampled = False

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        with self._open() as container:
            self.length = self._measure(container)

    def read(self, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Decode the file up to the last of these frames; see `Video.read`."""
        with self._open() as container:
            frames = list(self._pick(container, indices))
        if len(frames) < len(indices):
            raise ImageError(
                f"{self._name} is truncated: it has {self.length.frames} frames, and no frame "
                f"{indices[len(frames)]} could be decoded"
            )
        return frames

    @contextlib.contextmanager
    def _open(self) -> Iterator[av.container.InputContainer]:
        """Open the file from its beginning.

        Raises:
            ImageError: the file is no video, or damaged.
        """
        try:
            import av
        except ImportError as error:
            raise MissingDependencyError(
                "video files need PyAV: pip install 'edgevlm[video]'; or pass the frames as a list of images"
            ) from error
        self._file.seek(0)
        try:
            # No protocol may be opened beside the file itself.
            options = {"protocol_whitelist": "none"}
            with av.open(self._file, mode="r", options=options) as container:
                if PLAYLISTS.intersection(container.format.name.split(",")):
                    raise ImageError(
                        f"{self._name} is of the format {container.format.name}, which names other files; "
                        f"pass the video itself"
                    )
                if not container.streams.video:
                    raise ImageError(f"{self._name} has no video stream; pass a video file")
                yield container
        except av.FFmpegError as error:
            raise ImageError(
                f"{self._name} cannot be decoded as a video: {error.strerror}"
            ) from error

    def _measure(self, container: av.container.InputContainer) -> VideoLength:
        """Return the length that the header says, or count the frames."""
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{self._name} has frames of {width} x {height} pixels, more than {MAX_PIXELS:,}; make them "
                f"smaller"
            )
        rate = stream.average_rate or stream.guessed_rate
        frames = stream.frames
        if not frames:
            frames = sum(packet.size > 0 for packet in container.demux(stream))
        if not rate or rate <= 0 or not 0 < frames <= MAX_FRAMES:
            raise ImageError(
                f"{self._name} has {frames} frames at a rate of {rate}; a video needs at least one frame, at "
                f"most {MAX_FRAMES:,}, and a positive rate"
            )
        return VideoLength(int(frames), float(rate))

    def _pick(
        self, container: av.container.InputContainer, indices: Sequence[int]
    ) -> Iterator[NDArray[np.uint8]]:
        """Decode up to the last index, and return the frames of the indices, upright."""
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        wanted = iter(indices)
        index = next(wanted, None)
        for number, frame in enumerate(container.decode(stream)):
            if number == index:
                # The angle is against the clock, as that of NumPy.
                turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                yield np.ascontiguousarray(turned)
                index = next(wanted, None)
            if index is None:
                return
