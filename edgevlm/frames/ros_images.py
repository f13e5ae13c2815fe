"""Convert images of ROS messages, ``sensor_msgs/Image`` and ``CompressedImage``, to RGB.

Works with the messages of rclpy, of rosbags and of others: only the fields are read. The encodings are those
of ``sensor_msgs/image_encodings.hpp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ImageError
from edgevlm.inputs.images import load_image

CHANNELS: Mapping[str, tuple[type[np.uint8 | np.uint16], tuple[int, int, int]]] = {
    "rgb8": (np.uint8, (0, 1, 2)),
    "rgba8": (np.uint8, (0, 1, 2)),
    "bgr8": (np.uint8, (2, 1, 0)),
    "bgra8": (np.uint8, (2, 1, 0)),
    "8UC3": (np.uint8, (2, 1, 0)),
    "8UC4": (np.uint8, (2, 1, 0)),
    "rgb16": (np.uint16, (0, 1, 2)),
    "rgba16": (np.uint16, (0, 1, 2)),
    "bgr16": (np.uint16, (2, 1, 0)),
    "bgra16": (np.uint16, (2, 1, 0)),
    "mono8": (np.uint8, (0, 0, 0)),
    "8UC1": (np.uint8, (0, 0, 0)),
    "mono16": (np.uint16, (0, 0, 0)),
}
"""Type of a channel, and the channels that are red, green and blue. OpenCV's names without an order are BGR,
as cv_bridge takes them."""

COUNTS = {
    "rgba8": 4,
    "bgra8": 4,
    "rgba16": 4,
    "bgra16": 4,
    "8UC4": 4,
    "mono8": 1,
    "8UC1": 1,
    "mono16": 1,
}
"""Channels of the encodings that do not have three."""

YUV = {"yuv422": 1, "uyvy": 1, "yuv422_yuy2": 0, "yuyv": 0}
"""Encodings of two bytes for a pixel, and the place of the first luma byte."""

BAYER = {"bayer_rggb8": "rggb", "bayer_bggr8": "bggr", "bayer_gbrg8": "gbrg", "bayer_grbg8": "grbg"}
"""Encodings of one color for a pixel, and the colors of a square of 2 x 2 pixels, line by line."""


def image_from_message(message: Any) -> NDArray[np.uint8]:
    """Return the RGB image of a message, uint8 ``[height, width, 3]``.

    Args:
        message: a ``sensor_msgs/Image`` or ``sensor_msgs/CompressedImage``.

    Raises:
        ImageError: the encoding is not supported, the data do not have the size that the fields say, or a
            compressed image is damaged.
    """
    if not hasattr(message, "encoding"):
        return load_image(bytes(message.data))
    height, width, step = int(message.height), int(message.width), int(message.step)
    encoding = str(message.encoding)
    if encoding in CHANNELS:
        kind, order = CHANNELS[encoding]
        count = COUNTS.get(encoding, 3)
        lines = _lines(message, height, width * count * np.dtype(kind).itemsize, step)
        values: NDArray[np.uint16] = lines.view(
            np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
        )
        pixels = values.reshape(height, width, count)[..., list(order)]
        rgb: NDArray[np.uint8] = (pixels if kind is np.uint8 else pixels >> 8).astype(np.uint8)
        return rgb
    if encoding in YUV:
        lines = _lines(message, height, width * 2, step)
        return _rgb_of_yuv(lines.reshape(height, width // 2, 4), YUV[encoding])
    if encoding in BAYER:
        lines = _lines(message, height, width, step)
        return _rgb_of_bayer(lines.reshape(height, width), BAYER[encoding])
    known = ", ".join([*CHANNELS, *YUV, *BAYER])
    raise ImageError(
        f"images with the encoding {encoding!r} are not supported; publish one of {known}"
    )


class LazyMessage:
    """A message, converted to RGB when an array is made of it."""

    def __init__(self, message: Any) -> None:
        self._message = message

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        """Return RGB uint8 ``[height, width, 3]``."""
        return image_from_message(self._message)


def _lines(message: Any, height: int, used: int, step: int) -> NDArray[np.uint8]:
    """Return the lines of an image without padding, uint8 ``[height, used]``."""
    data = np.frombuffer(message.data, np.uint8)
    if height < 1 or used < 1 or step < used or data.size < height * step:
        raise ImageError(
            f"an image of {message.width} x {height} pixels in {message.encoding} needs lines of {used} "
            f"bytes; the message has a step of {step} and {data.size} bytes"
        )
    lines: NDArray[np.uint8] = data[: height * step].reshape(height, step)[:, :used]
    return np.ascontiguousarray(lines)


def _rgb_of_yuv(pairs: NDArray[np.uint8], luma: int) -> NDArray[np.uint8]:
    """Return RGB of two pixels in four bytes; the formula of ITU-R BT.601, limited range.

    Args:
        pairs: uint8 ``[height, width / 2, 4]``.
        luma: place of the first luma byte, 0 (YUYV) or 1 (UYVY).
    """
    values = pairs.astype(np.float32)
    y = values[..., [luma, luma + 2]] - 16
    u = values[..., [1 - luma]] - 128
    v = values[..., [3 - luma]] - 128
    rgb = np.stack(
        [
            1.164383 * y + 1.596027 * v,
            1.164383 * y - 0.391762 * u - 0.812968 * v,
            1.164383 * y + 2.017232 * u,
        ],
        axis=-1,
    )
    height, half = pairs.shape[:2]
    rounded: NDArray[np.uint8] = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return rounded.reshape(height, 2 * half, 3)


def _rgb_of_bayer(mosaic: NDArray[np.uint8], pattern: str) -> NDArray[np.uint8]:
    """Return RGB of a Bayer mosaic: each missing color is the mean of its neighbors (bilinear)."""
    height, width = mosaic.shape
    if min(height, width) < 2:
        raise ImageError(f"a Bayer image of {width} x {height} pixels has not all colors")
    rgb = np.empty((height, width, 3), np.uint8)
    for channel, color in enumerate("rgb"):
        known = np.zeros((height + 2, width + 2), np.float32)
        weight = np.zeros_like(known)
        for place, name in enumerate(pattern):
            if name == color:
                row, column = divmod(place, 2)
                known[1 + row : -1 : 2, 1 + column : -1 : 2] = mosaic[row::2, column::2]
                weight[1 + row : -1 : 2, 1 + column : -1 : 2] = 1
        mean = np.rint(_spread(known) / _spread(weight)).astype(np.uint8)
        rgb[..., channel] = np.where(weight[1:-1, 1:-1] > 0, mosaic, mean)
    return rgb


def _spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sums over 3 x 3 pixels with weights 1 2 1 in both directions."""
    lines = values[:-2] + 2 * values[1:-1] + values[2:]
    sums: NDArray[np.float32] = lines[:, :-2] + 2 * lines[:, 1:-1] + lines[:, 2:]
    return sums
