"""Images of a topic in a recording: MCAP files and ROS bags, through rosbags."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgevlm.errors import MissingDependencyError, SourceError
from edgevlm.frames.ros_images import LazyMessage
from edgevlm.frames.source import Pace, RawFrame

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


def is_recording(path: Path) -> bool:
    """Return True for an MCAP file, a ROS 1 bag, a database of rosbag2 or a folder with its metadata."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file()
    return path.suffix.lower() in (".mcap", ".bag", ".db3")


class Recording:
    """Images of one topic, with the times at which they were recorded.

    Args:
        path: the file, or the folder of a rosbag2 recording.
        topic: the topic; None: the only one that has images.
    """

    pace: Pace = "timed"

    def __init__(self, path: Path, topic: str | None) -> None:
        self.name = str(path) if topic is None else f"{path}, topic {topic}"
        self._path = path
        self._topic = topic

    def open(self) -> Iterator[RawFrame]:
        """Open the recording and read its images; see `FrameSource.open`."""
        try:
            from rosbags.highlevel import AnyReader, AnyReaderError
            from rosbags.rosbag1 import ReaderError as Rosbag1Error
            from rosbags.rosbag2 import ReaderError as Rosbag2Error
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise MissingDependencyError(
                "recordings need rosbags: pip install 'edgevlm[camera]'"
            ) from error
        try:
            # The store serves recordings without definitions of their types.
            with AnyReader(
                [self._path], default_typestore=get_typestore(Stores.ROS2_HUMBLE)
            ) as reader:
                connection = self._find(reader.connections)
                for _, stamp, data in reader.messages([connection]):
                    message = reader.deserialize(data, connection.msgtype)
                    yield RawFrame(LazyMessage(message), stamp / 1e9)
        except (AnyReaderError, Rosbag1Error, Rosbag2Error, OSError) as error:
            raise SourceError(f"{self.name} cannot be read: {error}") from error

    def _find(self, connections: list[Any]) -> Any:
        """Return the connection of the topic.

        Raises:
            SourceError: there is no such topic, or several have images and none was named.
        """
        images = {one.topic: one for one in connections if one.msgtype in IMAGE_TYPES}
        if self._topic is None and len(images) == 1:
            return next(iter(images.values()))
        if self._topic in images:
            return images[self._topic]
        listed = ", ".join(sorted(images)) or "none"
        problem = "has no images of this topic" if self._topic else "needs a topic"
        raise SourceError(f"{self.name} {problem}; topics with images: {listed}")
