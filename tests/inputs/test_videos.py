"""Frames of video files and of lists of images."""

from __future__ import annotations

import io
import itertools
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import ImageError, InputError, MissingDependencyError
from edgevlm.inputs.frame_sampling import VideoLength
from edgevlm.inputs.tiling import CHECKPOINT_BUDGET
from edgevlm.inputs.video_processor import VideoProcessor
from edgevlm.inputs.videos import VideoSource, open_video
from tests.core.test_manifest import EXAMPLE

HEIGHT, WIDTH = 48, 64


def gray(level: int, width: int = WIDTH) -> NDArray[np.uint8]:
    """A frame whose upper left quarter is white."""
    frame = np.full((HEIGHT, width, 3), level, np.uint8)
    frame[: HEIGHT // 2, : width // 2] = 255
    return frame


def encode(
    levels: list[int], form: str = "mp4", codec: str = "mpeg4", rate: int = 10, **options: str
) -> bytes:
    """Return a video file with a frame of each gray level."""
    file = io.BytesIO()
    with av.open(file, "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.bit_rate = 4_000_000
        for level in levels:
            frame = av.VideoFrame.from_ndarray(gray(level), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


LEVELS = list(range(0, 200, 10))
MP4 = encode(LEVELS)


def levels_of(frames: list[NDArray[np.uint8]]) -> list[int]:
    return [round(float(frame[-1, -1].mean()) / 10) * 10 for frame in frames]


@pytest.mark.parametrize(
    "data",
    [
        MP4,
        encode(LEVELS, "matroska"),
        encode(LEVELS, "avi"),
        encode(LEVELS, "mpegts", "mpeg2video", 25),
        encode(LEVELS, "mp4", movflags="frag_keyframe+empty_moov"),
    ],
    ids=["mp4", "mkv without a number of frames", "avi", "transport stream", "fragments"],
)
def test_frames_of_a_file(data: bytes) -> None:
    with open_video(data, 1.0) as video:
        assert video.length.frames == len(LEVELS)
        assert video.length.fps in (10, 25)
        assert not video.sampled
        assert levels_of(video.read([0, 7, 8, 19])) == [0, 70, 80, 190]
        assert levels_of(video.read([3])) == [30], "a second time"


def test_sources_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a b.mp4"
    path.write_bytes(MP4)
    sources: list[VideoSource] = [str(path), path, path.as_uri(), MP4, io.BytesIO(MP4)]
    for source in sources:
        with open_video(source, 1.0) as video:
            assert levels_of(video.read([5])) == [50]


def test_frames_are_upright() -> None:
    """A telephone that is held upright writes lying frames, and how to turn them."""
    data = bytearray(MP4)
    matrix = (
        data.index(b"tkhd") + 4 + 4 + 36
    )  # after version and flags, and the fields of version 0
    clockwise = (0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, *clockwise)
    with open_video(bytes(data), 1.0) as video:
        (frame,) = video.read([10])
    assert frame.shape == (WIDTH, HEIGHT, 3)
    expected = np.rot90(gray(100), -1).astype(int)
    assert np.abs(frame - expected).mean() < 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"no video at all", "cannot be decoded"),
        (MP4[:500], "cannot be decoded"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n", "cannot be"),
        (b"ffconcat version 1.0\nfile '/etc/hostname'\n", "cannot be"),
    ],
    ids=["empty", "text", "cut", "playlist", "list of files"],
)
def test_refused_files(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message), open_video(data, 1.0):
        pass


def test_refused_sources(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no video at .*no such file"), open_video("a.mp4", 1.0):
        pass
    with pytest.raises(ImageError, match="web address"), open_video("http://a.de/a.mp4", 1.0):
        pass
    with pytest.raises(ImageError, match=r"a video must be .* is int"), open_video(3, 1.0):  # type: ignore[arg-type]
        pass
    with pytest.raises(ImageError, match=r"shape .* has \[48, 64, 3\]"), open_video(gray(1), 1.0):
        pass
    with pytest.raises(InputError, match="no frame"), open_video([], 1.0):
        pass
    endless = itertools.repeat(gray(1))
    with pytest.raises(InputError, match="more than 10,000 images"), open_video(endless, 1.0):
        pass


def test_a_file_without_video() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ImageError, match="no video stream"), open_video(file.getvalue(), 1.0):
        pass


def test_a_truncated_file() -> None:
    with open_video(MP4, 1.0) as video:
        video.length = VideoLength(25, 10.0)  # as the header of a file that was cut says
        with pytest.raises(ImageError, match="truncated: it has 25 frames, and no frame 22"):
            video.read([0, 22])


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"edgevlm\[video\]"), open_video(MP4, 1.0):
        pass
    with open_video([gray(10)], 1.0) as video:
        assert len(video.read([0])) == 1


def test_frames_of_images() -> None:
    images = [gray(level) for level in LEVELS]
    sources: list[VideoSource] = [
        images,
        (Image.fromarray(image) for image in images),
        np.stack(images),
    ]
    for source in sources:
        with open_video(source, 4.0) as video:
            assert (video.length.frames, video.length.fps, video.sampled) == (20, 4.0, True)
            assert levels_of(video.read([2, 3])) == [20, 30]


def test_frames_of_other_sizes() -> None:
    with (
        open_video([gray(1), gray(2, 32)], 1.0) as video,
        pytest.raises(ImageError, match="one size, have 32 x 48 and 64 x 48"),
    ):
        video.read([0, 1])


def test_a_model_without_videos() -> None:
    with pytest.raises(InputError, match="takes no video"):
        VideoProcessor(None, EXAMPLE.vision).process([gray(1)], CHECKPOINT_BUDGET)
