"""Videos of one camera in a LeRobot data set, versions 2 and 3 of the format, through PyAV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgevlm.errors import SourceError
from edgevlm.frames.capture import video_file
from edgevlm.frames.source import Pace, RawFrame


def is_dataset(path: Path) -> bool:
    """Return True for the folder of a LeRobot data set."""
    return (path / "meta" / "info.json").is_file()


class DatasetVideos:
    """All frames of one camera, episode after episode.

    The time of a frame is its number divided by the frames per second of the data set. So time times rate is
    the ``index`` of its row in the Parquet files, which are not read.

    Args:
        path: folder of the data set.
        camera: such as ``observation.images.front``; None: the only camera.
    """

    pace: Pace = "timed"

    def __init__(self, path: Path, camera: str | None) -> None:
        self.name = str(path) if camera is None else f"{path}, camera {camera}"
        self._path = path
        self._camera = camera

    def open(self) -> Iterator[RawFrame]:
        """Decode the videos of the camera in their order; see `FrameSource.open`."""
        try:
            info = json.loads((self._path / "meta" / "info.json").read_text(encoding="utf-8"))
            rate = float(info["fps"])
            if not rate > 0:
                raise ValueError(f"fps is {rate:g}")
            camera = self._find(info["features"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{self.name}: meta/info.json cannot be read: {error!r}") from error
        # videos/chunk-000/CAMERA/episode_000000.mp4 in version 2, videos/CAMERA/chunk-000/file-000.mp4 in 3
        files = [
            file
            for file in sorted((self._path / "videos").rglob("*.mp4"))
            if camera in file.relative_to(self._path).parts
        ]
        if not files:
            raise SourceError(f"{self.name} has no videos/**/{camera}/**/*.mp4; download them")
        index = 0
        for file in files:
            for frame in video_file(str(file)).open():
                yield RawFrame(frame.image, index / rate)
                index += 1

    def _find(self, features: dict[str, Any]) -> str:
        """Return the camera.

        Raises:
            SourceError: there is no such camera, or several and none was named.
        """
        cameras = [name for name, feature in features.items() if feature["dtype"] == "video"]
        if self._camera is None and len(cameras) == 1:
            return cameras[0]
        if self._camera in cameras:
            return self._camera
        images = [name for name, feature in features.items() if feature["dtype"] == "image"]
        stored = f"; images in Parquet files are not read: {', '.join(images)}" if images else ""
        listed = ", ".join(sorted(cameras)) or "none"
        problem = "has no videos of this topic" if self._camera else "needs a topic"
        raise SourceError(f"{self.name} {problem}; cameras with videos: {listed}{stored}")
