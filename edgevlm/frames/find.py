"""Find out what a source is: the one place that reads what a user passes to `VLM.watch`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from edgevlm.errors import InputError, SourceError
from edgevlm.frames.capture import camera, network_stream, video_file
from edgevlm.frames.lerobot import DatasetVideos, is_dataset
from edgevlm.frames.recordings import Recording, is_recording
from edgevlm.frames.slot import FrameSlot, SlotSource
from edgevlm.frames.source import FrameSource, Pace, RawFrame
from edgevlm.inputs.images import ImageSource

CameraSource: TypeAlias = (
    int
    | str
    | os.PathLike[str]
    | FrameSlot
    | Iterable[ImageSource]
    | Callable[[], ImageSource | None]
)
"""One source of frames:

- the number of a camera, from 0, or the path of its device, such as ``/dev/video0``;
- an address: ``rtsp://``, ``http://``, ``https://``, ``rtmp://``, ``udp://`` or ``tcp://``;
- the path of a video file; of a folder of images, which come in the order of their names; of an MCAP file or
  a ROS bag; of a LeRobot data set;
- a `FrameSlot`, into which a program puts frames as they come;
- an iterator of images, each an `ImageSource`;
- a function without arguments that returns the next image, and None at the end. It may wait for the image.

An array that is delivered must not change afterwards.
"""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Files of a folder that are frames."""


def find_source(source: CameraSource, topic: str | None = None) -> FrameSource:
    """Return the source of frames that a user means; nothing is opened.

    Args:
        source: see `CameraSource`.
        topic: topic of a recording; camera of a LeRobot data set.

    Raises:
        InputError: the type is not supported, or `topic` is given for what has none.
        SourceError: the file does not exist, or the address has an unknown scheme.
    """
    found = _find(source, topic)
    if topic is not None and not isinstance(found, Recording | DatasetVideos):
        raise InputError(
            f"only recordings and data sets have a topic; {found.name} has none, so omit topic={topic!r}"
        )
    return found


def _find(source: CameraSource, topic: str | None) -> FrameSource:
    if isinstance(source, bool):
        raise InputError("a source must be a number, a path, an address, an iterator or a function")
    if isinstance(source, int):
        if source < 0:
            raise InputError(f"the number of a camera must be 0 or more, is {source}")
        return camera(source)
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        if "://" in text:
            return network_stream(text)
        return _find_path(Path(text).expanduser(), topic)
    if isinstance(source, FrameSlot):
        return SlotSource(source)
    if callable(source):
        return Callback(source)
    if isinstance(source, Iterable):
        return Images(source)
    raise InputError(
        f"a source must be a number, a path, an address, an iterator or a function, is "
        f"{type(source).__name__}"
    )


def _find_path(path: Path, topic: str | None) -> FrameSource:
    if path.is_char_device():
        return camera(str(path))
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    if is_recording(path):
        return Recording(path, topic)
    if is_dataset(path):
        return DatasetVideos(path, topic)
    if path.is_dir():
        return Folder(path)
    return video_file(str(path))


class Folder:
    """The images of a folder, in the order of their names."""

    pace: Pace = "pulled"

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def open(self) -> Iterator[RawFrame]:
        """List the folder and load its images; see `FrameSource.open`."""
        files = sorted(
            path for path in self._path.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if not files:
            raise SourceError(
                f"{self.name} has no image; files must end in one of {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        for path in files:
            yield RawFrame(path, None)


class Images:
    """The images of an iterable."""

    pace: Pace = "pulled"
    name = "the iterator"

    def __init__(self, images: Iterable[ImageSource]) -> None:
        self._images = images

    def open(self) -> Iterator[RawFrame]:
        """Iterate over the images; see `FrameSource.open`."""
        for image in self._images:
            yield RawFrame(image, None)


class Callback:
    """The images that a function returns, until it returns None."""

    pace: Pace = "pulled"
    name = "the function"

    def __init__(self, function: Callable[[], ImageSource | None]) -> None:
        self._function = function

    def open(self) -> Iterator[RawFrame]:
        """Call the function again and again; see `FrameSource.open`."""
        while (image := self._function()) is not None:
            yield RawFrame(image, None)
