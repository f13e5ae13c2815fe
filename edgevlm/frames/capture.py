"""Cameras, network streams and video files, through PyAV."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import MissingDependencyError, SourceError
from edgevlm.frames.source import Pace, RawFrame
from edgevlm.inputs.pixels import MAX_PIXELS

if TYPE_CHECKING:
    import av
    import av.container

OPEN_SECONDS, READ_SECONDS = 10.0, 5.0
"""A source that takes longer to open, or for its next frame, is lost."""

CAMERA_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
"""FFmpeg's input device for cameras on each system."""

NETWORK_PROTOCOLS: Mapping[str, str] = {
    "http": "http,tcp,httpproxy",
    "https": "https,http,tls,tcp,httpproxy",
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsp,rtsps,rtp,tls,udp,tcp",
    "rtmp": "rtmp,tcp",
    "udp": "udp",
    "tcp": "tcp",
}
"""Schemes of addresses, and the protocols of FFmpeg that one of them may use."""


class LazyFrame:
    """A decoded frame, converted to RGB when an array is made of it."""

    def __init__(self, frame: av.VideoFrame) -> None:
        self._frame = frame

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        """Return RGB uint8 ``[height, width, 3]``, upright."""
        pixels = self._frame.to_ndarray(format="rgb24")
        # The angle is against the clock, as that of NumPy.
        return np.ascontiguousarray(np.rot90(pixels, round(self._frame.rotation / 90) % 4))


class Capture:
    """Frames of one address that FFmpeg opens.

    Args:
        address: path, URL or name of a camera.
        pace: as of `FrameSource`.
        options: options of FFmpeg.
        format: FFmpeg's format; None: FFmpeg finds it.
        name: name for messages; None: the address without a password.
    """

    def __init__(
        self,
        address: str,
        *,
        pace: Pace,
        options: Mapping[str, str],
        format: str | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or address
        self.pace: Pace = pace
        self._address = address
        self._options = dict(options)
        self._format = format

    def open(self) -> Iterator[RawFrame]:
        """Open the address and decode its frames; see `FrameSource.open`."""
        try:
            import av
        except ImportError as error:
            raise MissingDependencyError(
                "cameras and videos need PyAV: pip install 'edgevlm[camera]'; or pass an iterator of images"
            ) from error
        try:
            container = av.open(
                self._address,
                format=self._format,
                options=self._options,
                timeout=(OPEN_SECONDS, READ_SECONDS),
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"{self.name} cannot be opened: {_reason(error)}") from error
        with contextlib.closing(container):
            yield from self._decode(container, av.FFmpegError)

    def _decode(
        self, container: av.container.InputContainer, ffmpeg_error: type[Exception]
    ) -> Iterator[RawFrame]:
        if not container.streams.video:
            raise SourceError(f"{self.name} has no video stream")
        stream = container.streams.video[0]
        live = self.pace == "live"
        stream.thread_type = "SLICE" if live else "AUTO"  # threads by frames delay the newest
        size = stream.codec_context.width, stream.codec_context.height
        if size[0] * size[1] > MAX_PIXELS:
            raise SourceError(
                f"{self.name} has frames of {size[0]} x {size[1]} pixels, more than {MAX_PIXELS:,}; make "
                f"them smaller"
            )
        first: float | None = None
        try:
            for frame in container.decode(stream):
                if live:
                    yield RawFrame(LazyFrame(frame), None)
                    continue
                at = float(frame.time or 0.0)
                first = at if first is None else first
                yield RawFrame(LazyFrame(frame), max(0.0, at - first))
        except ffmpeg_error as error:
            raise SourceError(f"{self.name} cannot be decoded: {_reason(error)}") from error


def camera(number_or_device: int | str, format_options: Mapping[str, str] | None = None) -> Capture:
    """Return a camera of this machine.

    Args:
        number_or_device: its number, from 0; or the path of a device, such as ``/dev/video0``.
        format_options: options of FFmpeg's input device, such as ``{"video_size": "640x480"}``.

    Raises:
        SourceError: cameras cannot be opened on this system.
    """
    device_format = CAMERA_FORMATS.get(sys.platform)
    if device_format is None:
        raise SourceError(f"cameras cannot be opened on {sys.platform}; pass an iterator of images")
    device = str(number_or_device)
    if isinstance(number_or_device, int):
        device = {"linux": f"/dev/video{number_or_device}"}.get(sys.platform, device)
    return Capture(
        device,
        pace="live",
        options=format_options or {},
        format=device_format,
        name=f"camera {number_or_device}",
    )


def network_stream(url: str) -> Capture:
    """Return the stream at an address. No other kind of address is opened, whatever the stream says.

    Raises:
        SourceError: the scheme is not one of `NETWORK_PROTOCOLS`.
    """
    scheme, _, rest = url.partition("://")
    protocols = NETWORK_PROTOCOLS.get(scheme.lower())
    if protocols is None:
        raise SourceError(
            f"addresses that begin with {scheme}:// cannot be opened; use one of "
            f"{', '.join(NETWORK_PROTOCOLS)}"
        )
    options = {"protocol_whitelist": protocols, "fflags": "nobuffer", "flags": "low_delay"}
    if scheme.lower().startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # UDP loses packets, and frames are grey then
    host = rest.rpartition("@")[2]  # no password in messages
    return Capture(url, pace="live", options=options, name=f"{scheme}://{host}")


def video_file(path: str) -> Capture:
    """Return the frames of a video file, which may not name other files or addresses."""
    return Capture(path, pace="timed", options={"protocol_whitelist": "file"}, name=path)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
