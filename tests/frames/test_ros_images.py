"""Images of ROS messages: every encoding, lines with padding, both byte orders, damage."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import ImageError
from edgevlm.frames.ros_images import BAYER, CHANNELS, COUNTS, YUV, image_from_message


@dataclass
class Message:
    """The fields of ``sensor_msgs/Image``."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: bytes | NDArray[np.uint8]


@dataclass
class Compressed:
    """The fields of ``sensor_msgs/CompressedImage``."""

    format: str
    data: bytes


def message(
    values: NDArray[np.generic], encoding: str, *, padding: int = 0, big: bool = False
) -> Message:
    """Return a message with the values ``[height, width, channels]``, and `padding` bytes in each line."""
    height, width = values.shape[:2]
    ordered = np.ascontiguousarray(values, values.dtype.newbyteorder(">" if big else "<"))
    lines = np.frombuffer(ordered.tobytes(), np.uint8).reshape(height, -1)
    lines = np.pad(lines, ((0, 0), (0, padding)), constant_values=77)
    return Message(height, width, encoding, int(big), lines.shape[1], lines.tobytes())


@given(
    encoding=st.sampled_from(sorted(CHANNELS)),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 5),
    big=st.booleans(),
    seed=st.integers(0, 99),
)
def test_channels(
    encoding: str, height: int, width: int, padding: int, big: bool, seed: int
) -> None:
    kind, order = CHANNELS[encoding]
    count = COUNTS.get(encoding, 3)
    top = np.iinfo(kind).max
    values = np.random.default_rng(seed).integers(0, top, (height, width, count), kind, True)
    found = image_from_message(message(values, encoding, padding=padding, big=big))
    expected = values // (1 if kind is np.uint8 else 256)
    for place, channel in enumerate(order):
        np.testing.assert_array_equal(found[..., place], expected[..., channel])


@pytest.mark.parametrize(("encoding", "luma"), sorted(YUV.items()))
def test_yuv(encoding: str, luma: int) -> None:
    """Pillow's YCbCr has the full range, so colors are compared after their conversion to RGB and back."""
    colors = {
        (0, 0, 0): (16, 128, 128),
        (255, 255, 255): (235, 128, 128),
        (255, 0, 0): (81, 90, 240),
    }
    for rgb, (y, u, v) in colors.items():
        pair = [y, u, y, v] if luma == 0 else [u, y, v, y]
        values = np.tile(np.array(pair, np.uint8), (2, 3)).reshape(2, 6, 2)
        found = image_from_message(message(values, encoding))
        assert found.shape == (2, 6, 3)
        assert np.abs(found.astype(int) - rgb).max() <= 1


@pytest.mark.parametrize("encoding", sorted(BAYER))
def test_bayer_of_one_color_is_this_color(encoding: str) -> None:
    color = (200, 100, 50)
    pattern = BAYER[encoding]
    tile = np.array([color["rgb".index(name)] for name in pattern], np.uint8).reshape(2, 2)
    values = np.tile(tile, (3, 4))[:5, :7, None]
    found = image_from_message(message(values, encoding, padding=3))
    np.testing.assert_array_equal(found, np.broadcast_to(color, (5, 7, 3)))


def test_compressed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    found = image_from_message(Compressed("png", file.getvalue()))
    np.testing.assert_array_equal(found, pixels)
    with pytest.raises(ImageError):
        image_from_message(Compressed("png", file.getvalue()[:20]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"encoding": "32FC1"}, "'32FC1' are not supported; publish one of rgb8"),
        ({"step": 5}, "needs lines of 12 bytes; the message has a step of 5"),
        ({"data": b"12"}, "and 2 bytes"),
        ({"width": 0}, "needs lines of 0 bytes"),
        ({"height": 0}, "an image of 4 x 0 pixels"),
    ],
)
def test_what_is_refused(change: dict[str, object], match: str) -> None:
    whole = message(np.zeros((2, 4, 3), np.uint8), "rgb8")
    with pytest.raises(ImageError, match=match):
        image_from_message(Message(**{**vars(whole), **change}))
