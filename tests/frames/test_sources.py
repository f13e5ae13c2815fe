"""Sources of frames: what each kind of argument is, what it delivers, and what is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from edgevlm.errors import InputError, SourceError
from edgevlm.frames.find import find_source
from edgevlm.frames.source import FrameSource
from edgevlm.inputs.images import load_image

SIZE = (32, 48)


def solid(value: int) -> NDArray[np.uint8]:
    return np.full((*SIZE, 3), value, np.uint8)


def frames(source: FrameSource) -> list[tuple[int, float | None]]:
    """Return the rounded brightness and the time of each frame."""
    with contextlib.closing(source.open()) as opened:  # type: ignore[type-var]
        return [(round(load_image(one.image).mean() / 10) * 10, one.time) for one in opened]


def write_video(path: Path, values: list[int], rate: int = 10) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = SIZE
        stream.bit_rate = 4_000_000
        for value in values:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(solid(value), format="rgb24")))
        container.mux(stream.encode())


def write_recording(path: Path, topics: dict[str, list[int]], storage: StoragePlugin) -> None:
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    with Writer(path, version=9, storage_plugin=storage) as writer:
        for topic, values in topics.items():
            connection = writer.add_connection(topic, "sensor_msgs/msg/Image", typestore=store)
            for index, value in enumerate(values):
                stamp = types["builtin_interfaces/msg/Time"](sec=0, nanosec=0)
                header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")
                image = types["sensor_msgs/msg/Image"](
                    header=header,
                    height=SIZE[0],
                    width=SIZE[1],
                    encoding="bgr8",
                    is_bigendian=0,
                    step=SIZE[1] * 3,
                    data=solid(value).reshape(-1),
                )
                data = store.serialize_cdr(image, "sensor_msgs/msg/Image")
                writer.write(connection, 1_700_000_000_000_000_000 + index * 100_000_000, data)


def test_a_video_file(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", [0, 100, 200])
    source = find_source(tmp_path / "video.mp4")
    assert source.pace == "timed"
    found = frames(source)
    assert [value for value, _ in found] == [0, 100, 200]
    np.testing.assert_allclose([at for _, at in found if at is not None], [0, 0.1, 0.2], atol=1e-6)


def test_a_folder(tmp_path: Path) -> None:
    for name, value in (("b.png", 100), ("a.jpg", 0), ("c.PNG", 200)):
        Image.fromarray(solid(value)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = find_source(str(tmp_path))
    assert source.pace == "pulled"
    assert frames(source) == [(0, None), (100, None), (200, None)]


def test_an_iterator_and_a_function() -> None:
    assert frames(find_source(iter([solid(10), solid(20)]))) == [(10, None), (20, None)]
    values = iter([solid(30), solid(40), None])
    assert frames(find_source(lambda: next(values))) == [(30, None), (40, None)]


@pytest.mark.parametrize("storage", list(StoragePlugin))
def test_a_recording(tmp_path: Path, storage: StoragePlugin) -> None:
    path = tmp_path / "recording"
    write_recording(path, {"/camera": [0, 100]}, storage)
    expected = [(0, 1_700_000_000.0), (100, 1_700_000_000.1)]
    assert frames(find_source(path)) == expected
    if storage is StoragePlugin.MCAP:
        (file,) = path.glob("*.mcap")
        assert frames(find_source(file, topic="/camera")) == expected


def test_the_topic_of_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    write_recording(path, {"/left": [0], "/right": [100]}, StoragePlugin.MCAP)
    assert frames(find_source(path, topic="/right")) == [(100, 1_700_000_000.0)]
    with pytest.raises(SourceError, match="needs a topic; topics with images: /left, /right"):
        frames(find_source(path))
    with pytest.raises(SourceError, match=r"/up has no images of this topic; .*: /left, /right"):
        frames(find_source(path, topic="/up"))


LAYOUTS = {
    "v2.1": "videos/chunk-{chunk:03d}/{camera}/episode_{number:06d}.mp4",
    "v3.0": "videos/{camera}/chunk-{chunk:03d}/file-{number:03d}.mp4",
}
"""Videos of a LeRobot data set, by the version of its format."""


def write_dataset(folder: Path, version: str, cameras: dict[str, list[list[int]]]) -> None:
    """Write the files of a LeRobot data set that have frames: for each camera the values of each video."""
    for camera, videos in cameras.items():
        for number, values in enumerate(videos):
            file = folder / LAYOUTS[version].format(
                camera=camera, chunk=number // 2, number=number if version == "v2.1" else number % 2
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            write_video(file, values)
    features: dict[str, Any] = {camera: {"dtype": "video"} for camera in cameras}
    features["observation.images.depth"] = {"dtype": "image"}
    features["action"] = {"dtype": "float32"}
    info = {"codebase_version": version, "fps": 10, "features": features}
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("version", LAYOUTS)
def test_a_lerobot_data_set(tmp_path: Path, version: str) -> None:
    front, wrist = [[0, 50], [100], [150, 200]], [[250]]
    cameras = {"observation.images.front": front, "observation.images.wrist": wrist}
    write_dataset(tmp_path, version, cameras)
    source = find_source(tmp_path, topic="observation.images.front")
    assert source.pace == "timed"
    found = frames(source)
    assert [value for value, _ in found] == [0, 50, 100, 150, 200]
    np.testing.assert_allclose([at for _, at in found if at is not None], np.arange(5) / 10)
    assert len(frames(find_source(tmp_path, topic="observation.images.wrist"))) == 1
    listed = r"cameras with videos: observation\.images\.front, observation\.images\.wrist"
    with pytest.raises(SourceError, match=f"needs a topic; {listed}"):
        frames(find_source(tmp_path))
    with pytest.raises(
        SourceError, match=f"{listed}; images in Parquet files are not read: .*depth"
    ):
        frames(find_source(tmp_path, topic="observation.images.depth"))


def test_a_damaged_lerobot_data_set(tmp_path: Path) -> None:
    write_dataset(tmp_path, "v3.0", {"observation.image": [[0, 100]]})
    assert frames(find_source(tmp_path)) == [(0, 0.0), (100, 0.1)]
    (video,) = tmp_path.rglob("*.mp4")
    video.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(SourceError, match=r"file-000\.mp4 cannot be opened"):
        frames(find_source(tmp_path))
    video.unlink()
    with pytest.raises(SourceError, match="download them"):
        frames(find_source(tmp_path))
    damaged = ["{", "[]", '{"fps": 10}', '{"fps": 0, "features": {}}']
    for text in [*damaged, '{"fps": 10, "features": {"a": 1}}']:
        (tmp_path / "meta" / "info.json").write_text(text)
        with pytest.raises(SourceError, match=r"meta/info\.json cannot be read"):
            frames(find_source(tmp_path))


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (-1, "number of a camera must be 0 or more, is -1"),
        (True, "must be a number, a path"),
        (1.5, "is float"),
        (None, "is NoneType"),
    ],
)
def test_wrong_types(source: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        find_source(source)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        find_source(tmp_path / "missing.mp4")
    with pytest.raises(SourceError, match="begin with gopher:// cannot be opened; use one of http"):
        find_source("gopher://host/video")
    with pytest.raises(InputError, match="only recordings and data sets have a topic"):
        find_source(tmp_path, topic="/camera")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(SourceError, match="cannot be opened: Invalid data"):
        frames(find_source(tmp_path / "text.mp4"))
    (tmp_path / "damaged.mcap").write_bytes(b"\x89MCAP0\r\n" + bytes(40))
    with pytest.raises(SourceError, match="cannot be read"):
        frames(find_source(tmp_path / "damaged.mcap"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match="has no image"):
        frames(find_source(empty))


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", [0, 100])
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/video.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(SourceError):
        frames(find_source(playlist))


def test_messages_have_no_password() -> None:
    assert find_source("rtsp://user:secret@host/stream").name == "rtsp://host/stream"


def generator() -> Iterator[NDArray[np.uint8]]:
    yield solid(1)


def test_sources_of_each_pace(tmp_path: Path) -> None:
    assert find_source(0).pace == "live"
    assert find_source("http://host/stream").pace == "live"
    assert find_source(generator()).pace == "pulled"
