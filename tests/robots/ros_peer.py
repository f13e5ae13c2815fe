"""A camera and a listener in ROS 2, for the tests of the node; run with ROS 2, as a process of its own.

It reads commands from stdin, one JSON object a line, and writes what happens to stdout the same way:

- ``{"camera": {"topic": ..., "rate": 30}}`` publishes squares of changing colors; rate 0 ends it;
- ``{"image": {"topic": ..., "encoding": ...}}`` publishes one green square;
- ``{"question": ...}`` publishes on ``/edgevlm/question``;
- ``{"state": ...}`` asks the node for a transition, by the number of ``lifecycle_msgs/Transition``.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
import time
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from numpy.typing import NDArray
from PIL import Image as PillowImage
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

COLORS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 220)}
WIDTH, HEIGHT = 160, 120
PADDING = 5
"""Bytes after each line."""


def square(color: str) -> NDArray[np.uint8]:
    """A square on white, RGB uint8 ``[height, width, 3]``."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    image[20:100, 40:120] = COLORS[color]
    return image


def channels(image: NDArray[np.uint8], encoding: str) -> NDArray[Any]:
    """Return the values of a message, ``[height, width, channels]``."""
    if encoding.startswith("mono") or encoding == "8UC1":
        values = image.mean(axis=2, keepdims=True).astype(np.uint8)
    else:
        # OpenCV's names without an order are BGR.
        swapped = encoding.startswith("bgr") or encoding.startswith("8UC")
        values = image[..., ::-1] if swapped else image
        if "a" in encoding or encoding == "8UC4":
            values = np.dstack([values, np.full(image.shape[:2], 255, np.uint8)])
    wide: NDArray[Any] = values.astype(np.uint16) * 257
    return wide if encoding.endswith("16") else values


def yuv(image: NDArray[np.uint8], luma: int) -> NDArray[np.uint8]:
    """Return two bytes for a pixel; the first luma byte is at place `luma`."""
    red, green, blue = np.moveaxis(image.astype(float), -1, 0)
    y = 16 + 0.256788 * red + 0.504129 * green + 0.097906 * blue
    u = (128 - 0.148223 * red - 0.290993 * green + 0.439216 * blue)[:, ::2]
    v = (128 + 0.439216 * red - 0.367788 * green - 0.071427 * blue)[:, ::2]
    lines = np.empty((HEIGHT, WIDTH // 2, 4), np.uint8)
    lines[..., luma], lines[..., luma + 2] = y[:, ::2], y[:, 1::2]
    lines[..., 1 - luma], lines[..., 3 - luma] = u, v
    return lines.reshape(HEIGHT, WIDTH, 2)


def bayer(image: NDArray[np.uint8], pattern: str) -> NDArray[np.uint8]:
    """Return one color for each pixel."""
    mosaic = np.empty((HEIGHT, WIDTH, 1), np.uint8)
    for place, color in enumerate(pattern):
        row, column = divmod(place, 2)
        mosaic[row::2, column::2, 0] = image[row::2, column::2, "rgb".index(color)]
    return mosaic


def message(image: NDArray[np.uint8], encoding: str, big: bool = False) -> Any:
    """Return a ``sensor_msgs/Image`` with padded lines, or a ``CompressedImage`` for jpeg and png."""
    if encoding in ("jpeg", "png"):
        buffer = io.BytesIO()
        PillowImage.fromarray(image).save(buffer, encoding)
        return CompressedImage(format=encoding, data=buffer.getvalue())
    if encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv"):
        values: NDArray[Any] = yuv(image, 1 if encoding in ("yuv422", "uyvy") else 0)
    elif encoding.startswith("bayer"):
        values = bayer(image, encoding[6:10])
    else:
        values = channels(image, encoding)
    ordered = np.ascontiguousarray(values, values.dtype.newbyteorder(">" if big else "<"))
    lines = np.frombuffer(ordered.tobytes(), np.uint8).reshape(HEIGHT, -1)
    lines = np.pad(lines, ((0, 0), (0, PADDING)))
    found = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=lines.shape[1])
    found.is_bigendian = int(big)
    found.data = lines.tobytes()
    return found


class Peer(Node):  # type: ignore[misc,unused-ignore]
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._topics: dict[str, Any] = {}
        self._timer: Any = None
        self._count = 0
        self.create_subscription(String, "/edgevlm/answer", self._answer, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._status, 100)
        self._questions = self.create_publisher(String, "/edgevlm/question", 10)
        self._states = self.create_client(ChangeState, "/edgevlm/change_state")

    def tell(self, **values: Any) -> None:
        sys.stdout.write(json.dumps({"at": time.time(), **values}) + "\n")
        sys.stdout.flush()

    def _answer(self, found: String) -> None:
        self.tell(answer=json.loads(found.data))

    def _status(self, found: DiagnosticArray) -> None:
        for one in found.status:
            values = {item.key: item.value for item in one.values}
            self.tell(level=one.level[0], message=one.message, values=values)

    def run(self, command: dict[str, Any]) -> None:
        if "camera" in command:
            self._camera(**command["camera"])
        elif "image" in command:
            self._image(**command["image"])
        elif "question" in command:
            while not self._questions.get_subscription_count():
                time.sleep(0.02)
            self._questions.publish(String(data=command["question"]))
        else:
            self._states.wait_for_service()
            request = ChangeState.Request(transition=Transition(id=command["state"]))
            future = self._states.call_async(request)
            future.add_done_callback(lambda done: self.tell(changed=done.result().success))

    def _publish(self, topic: str, found: Any, **told: Any) -> None:
        if topic not in self._topics:
            publisher = self.create_publisher(type(found), topic, qos_profile_sensor_data)
            self._topics[topic] = publisher
            while not publisher.get_subscription_count():
                time.sleep(0.02)
        now = self.get_clock().now().to_msg()
        found.header.stamp = now
        self._topics[topic].publish(found)
        self.tell(published=now.sec + now.nanosec / 1e9, **told)

    def _image(self, topic: str, encoding: str, big: bool = False) -> None:
        self._publish(topic, message(square("green"), encoding, big), encoding=encoding)

    def _camera(self, topic: str, rate: float, size: int = 1) -> None:
        """Publish with a rate; `size` multiplies width and height."""
        if self._timer is not None:
            self._timer.destroy()
            self._timer = None
        images = {
            color: np.kron(square(color), np.ones((size, size, 1), np.uint8)) for color in COLORS
        }

        def publish() -> None:
            color = list(COLORS)[self._count % len(COLORS)]
            image = images[color]
            found = Image(height=image.shape[0], width=image.shape[1], encoding="rgb8")
            found.step = 3 * found.width
            found.data = image.tobytes()
            self._publish(topic, found, color=color, index=self._count)
            self._count += 1

        if rate:
            self._timer = self.create_timer(1 / rate, publish)


def main() -> None:
    rclpy.init()
    peer = Peer(sys.argv[1])
    commands: list[dict[str, Any]] = []

    def run() -> None:
        while commands:
            peer.run(commands.pop(0))

    guard = peer.create_guard_condition(run)

    def read() -> None:
        for line in sys.stdin:
            commands.append(json.loads(line))
            guard.trigger()
        rclpy.try_shutdown()

    threading.Thread(target=read, daemon=True).start()
    peer.tell(ready=True)
    with contextlib.suppress(ExternalShutdownException, KeyboardInterrupt):
        rclpy.spin(peer)


if __name__ == "__main__":
    main()
